"""Mutation in compiled loops: children's genes, changed where they stand in scratch."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import draws, looked_up, philox_block

NONE, DENSE, SPARSE, RESET = range(4)
"""What is done with a draw: nothing, added to every gene, added to some, put in the place of some."""

SEGMENT = 256
"""Genes in a segment: the jumps from one touched gene to the next begin anew in each."""


@compiled
def mutate(start: int, keys: Any, how: Any, table: Any, jumps: Any, scales: Any, scratch: Any, out: Any) -> None:
    """Mutate a row of `out` for each key, the genes from index `start` on.

    `how` is (mode, kind, width): draws of that kind and width are looked up in `table`, and multiplied by the gene's
    own number in `scales`. Where that is 0 a gene is left alone.
    """
    mode, kind, width = how
    if mode == DENSE:
        random, drawn = scratch
        skip = draws(kind, width, keys, start, out.shape[1], random)
        for row in range(keys.size):
            looked_up(row, skip + out.shape[1], width, table, random, drawn)
            for i in range(out.shape[1]):
                old, scale = out[row, i], scales[i]
                new = old + scale * drawn[np.uint64(skip + i)]
                out[row, i] = new if scale != 0 else old
    elif mode != NONE:
        words = scratch[0][0]
        ahead = jumps[2]
        for segment in range(start // SEGMENT, (start + out.shape[1] + SEGMENT - 1) // SEGMENT):
            for block in range(ahead):
                philox_block(kind, keys, 0, keys.size, segment, block, words)
            for row in range(keys.size):
                _segment(segment, row, start, keys, how, table, jumps, scales, words, out)


@compiled
def _segment(
    segment: int, row: int, start: int, keys: Any, how: Any, table: Any, jumps: Any, scales: Any, words: Any, out: Any
) -> None:
    """The touched genes of one segment: each takes a word for the jump to it, and one for what is done there."""
    mode, kind, _ = how
    thresholds, guide, drawn = jumps
    mask = np.uint32(table.size - 1)
    at, end = segment * SEGMENT - 1, min((segment + 1) * SEGMENT, start + out.shape[1])
    used = 0
    while True:
        if used == 4 * drawn:
            philox_block(kind, keys, row, row + 1, segment, drawn, words)
            drawn += 1
        jump, draw = words[row, np.uint64(used)], words[row, np.uint64(used + 1)]
        used += 2
        gap = np.uint64(guide[jump >> np.uint32(24)])
        while gap < SEGMENT and thresholds[gap] <= jump:
            gap += np.uint64(1)
        at += 1 + np.int64(gap)
        if at >= end:
            return
        i = np.uint64(at - start)
        if at >= start and scales[i] != 0:
            value = scales[i] * table[draw & mask]
            out[row, i] = value if mode == RESET else out[row, i] + value
