"""Crossover in compiled loops: how the genes of two parents become those of a child.

The generation calls a *crossing*, `cross(start, brood, mothers, fathers, keys, genes, given, scratch, out)`: the genes
from index `start` on of a few children, number `brood` and on, from rows of `genes` into rows of `out`, all in scratch.
`given` is what the crossover brings along.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import draws, looked_up, numbers, philox_block
from flatstore.noise import CROSSOVER


@cache
def gene_by_gene(function: Any, by_table: bool) -> Any:
    """The crossing of a compiled `function(a, b, draw) -> gene`; given are (width, table).

    A draw is a number of `width` bits or, by table, what stands in the table at that number.
    """

    @compiled
    def cross(
        start: int, brood: int, mothers: Any, fathers: Any, keys: Any, genes: Any, given: Any, scratch: Any, out: Any
    ) -> None:
        width, table = given
        random, drawn = scratch
        _, small, large = random
        skip = 0
        if by_table:
            skip = draws(CROSSOVER, width, keys, start, out.shape[1], random)
        elif width:
            skip = numbers(CROSSOVER, width, keys, start, out.shape[1], random)
        for row in range(keys.size):
            a, b = np.uint64(mothers[brood + row]), np.uint64(fathers[brood + row])
            if by_table:
                looked_up(row, skip + out.shape[1], width, table, random, drawn)
                for i in range(out.shape[1]):
                    out[row, i] = function(genes[a, i], genes[b, i], drawn[np.uint64(skip + i)])
            elif width <= 8:
                for i in range(out.shape[1]):
                    out[row, i] = function(genes[a, i], genes[b, i], small[row, np.uint64(skip + i)])
            else:
                for i in range(out.shape[1]):
                    out[row, i] = function(genes[a, i], genes[b, i], large[row, np.uint64(skip + i)])

    return cross


@compiled
def at_points(
    start: int, brood: int, mothers: Any, fathers: Any, keys: Any, genes: Any, given: Any, scratch: Any, out: Any
) -> None:
    """The parents take turns, from one cut to the next; given are the cuts, ascending indices, shape (children, k)."""
    for row in range(keys.size):
        child = brood + row
        now, then, i = np.uint64(mothers[child]), np.uint64(fathers[child]), 0
        for j in range(given.shape[1] + 1):
            end = min(max(given[child, j] - start, i), out.shape[1]) if j < given.shape[1] else out.shape[1]
            for gene in range(np.uint64(i), np.uint64(end)):
                out[row, gene] = genes[now, gene]
            i, now, then = end, then, now


@compiled
def by_unit(
    start: int, brood: int, mothers: Any, fathers: Any, keys: Any, genes: Any, given: Any, scratch: Any, out: Any
) -> None:
    """Units of genes come whole from either parent: a fair bit for each; unit -1 always from the mother.

    Given are the indices at which the leaves begin, with one past the end, and the unit of each leaf.
    """
    begins, units = given
    words = scratch[0][0]
    first = max(np.searchsorted(begins, start, side="right") - 1, 0)
    for row in range(keys.size):
        leaf, i, drawn = first, 0, -1
        while i < out.shape[1]:
            end = min(begins[leaf + 1] - start, out.shape[1]) if leaf < units.size else out.shape[1]
            unit = units[leaf] if leaf < units.size else -1
            if unit >= 0 and unit // 128 != drawn:
                drawn = unit // 128
                philox_block(CROSSOVER, keys, row, row + 1, drawn, 0, words)
            fair = (words[row, unit % 128 // 32] >> np.uint32(unit % 32)) & np.uint32(1)
            parent = np.uint64(fathers[brood + row] if unit >= 0 and fair == 0 else mothers[brood + row])
            for gene in range(np.uint64(i), np.uint64(end)):
                out[row, gene] = genes[parent, gene]
            i, leaf = end, leaf + 1
