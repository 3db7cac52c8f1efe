"""Mutation in compiled loops: children's genes, changed where they stand in scratch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import NUMBERS, WHOLE, WHOLE_NUMBERS, draw_words, looked_up, numbers, philox_block

NO_GENE, EVERY_GENE, SOME_GENES = range(3)
"""Which genes are changed."""

SEGMENT = 256
"""Genes in a segment: the distances from one changed gene to the next begin anew in each."""


@cache
def mutation_loop(function: Any, source: int, width: int = 16) -> Any:
    """The mutation of a compiled `function(gene, scale, draw) -> gene`: a compiled loop.

    The generation calls it as `mutate(start, keys, data, scales, scratch, out)`: the genes from index `start` on of a
    few children, a seed each in `keys`, in rows of `out`. `scales` are the genes' own; where that is 0 a gene is left
    alone. `data` are (which genes, kind of draw, its width in bits, table, distances between some genes). `source` says
    what a draw is, and `width` how many bits it has if it is a whole number of a noise.
    """
    whole_numbers, whole_type = WHOLE_NUMBERS[width]
    by_table, whole = source != NUMBERS, source == WHOLE

    @compiled
    def unless_zero(gene: Any, scale: Any, draw: Any) -> Any:
        changed = function(gene, scale, draw)
        return changed if scale != 0 else gene

    @compiled
    def some_of_a_segment(
        segment: int, row: int, start: int, keys: Any, data: Any, scales: Any, words: Any, out: Any
    ) -> None:
        """Each changed gene takes a word for the distance to it, and one for what is done there."""
        _, kind, width, table, (thresholds, guide, blocks) = data
        mask = np.uint32((np.uint64(1) << np.uint64(width)) - np.uint64(1))
        at, end = segment * SEGMENT - 1, min((segment + 1) * SEGMENT, start + out.shape[1])
        used = 0
        while True:
            if used == 4 * blocks:
                philox_block(kind, keys, row, row + 1, segment, blocks, words)
                blocks += 1
            distance, number = words[row, np.uint64(used)], words[row, np.uint64(used + 1)] & mask
            used += 2
            passed = np.uint64(guide[distance >> np.uint32(24)])
            while passed < SEGMENT and thresholds[passed] <= distance:
                passed += np.uint64(1)
            at += 1 + np.int64(passed)
            if at >= end:
                return
            i = np.uint64(at - start)
            if at >= start and scales[i] != 0:
                out[row, i] = function(out[row, i], scales[i], table[number] if by_table else number)

    @compiled
    def mutate(start: int, keys: Any, data: Any, scales: Any, scratch: Any, out: Any) -> None:
        which, kind, width, table, distances = data
        if which == EVERY_GENE:
            random, drawn, rooms = scratch
            wholes = rooms.view(whole_type)
            words, small, large = random
            skip = 0
            if whole:
                skip = draw_words(kind, width, keys, start, out.shape[1], words)
            elif width:
                skip = numbers(kind, width, keys, start, out.shape[1], random)
            for row in range(keys.size):
                if whole:
                    column = whole_numbers(words, row, skip, out.shape[1], wholes, None)
                    for i in range(out.shape[1]):
                        drawn[i] = wholes[np.uint64(column + i)]  # as a number of the genes' dtype
                        out[row, i] = unless_zero(out[row, i], scales[i], drawn[i] + np.float32(0.5))
                elif by_table:
                    looked_up(row, skip + out.shape[1], width, table, random, drawn)
                    for i in range(out.shape[1]):
                        out[row, i] = unless_zero(out[row, i], scales[i], drawn[np.uint64(skip + i)])
                elif width <= 8:
                    for i in range(out.shape[1]):
                        out[row, i] = unless_zero(out[row, i], scales[i], small[row, np.uint64(skip + i)])
                else:
                    for i in range(out.shape[1]):
                        out[row, i] = unless_zero(out[row, i], scales[i], large[row, np.uint64(skip + i)])
        elif which == SOME_GENES:
            words = scratch[0][0]
            for segment in range(start // SEGMENT, (start + out.shape[1] + SEGMENT - 1) // SEGMENT):
                for block in range(distances[2]):
                    philox_block(kind, keys, 0, keys.size, segment, block, words)
                for row in range(keys.size):
                    some_of_a_segment(segment, row, start, keys, data, scales, words, out)

    return mutate
