"""Crossover in compiled loops: how the genes of two parents become those of a child.

The generation calls such a loop as `cross(start, first, mothers, fathers, keys, genes, data, scratch, out)`: the genes
from index `start` on of a few children, number `first` and on, a seed each in `keys`, from rows of `genes` (the
parents') into rows of `out`, all in scratch. `data` is what the crossover brings along.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import TABLE, draw_words, looked_up, numbers, philox_block, whole_signs
from flatstore.noise import CROSSOVER


@cache
def crossover_loop(function: Any, source: int) -> Any:
    """The crossover of a compiled `function(a, b, draw) -> gene`; its data are (width, table).

    A draw is a number of `width` bits (`NUMBERS`), or what stands in the table at that number (`TABLE`).
    """
    by_table = source == TABLE

    @compiled
    def cross(
        start: int, first: int, mothers: Any, fathers: Any, keys: Any, genes: Any, data: Any, scratch: Any, out: Any
    ) -> None:
        width, table = data
        random, drawn, _ = scratch
        _, small, large = random
        skip = 0
        if width:
            skip = numbers(CROSSOVER, width, keys, start, out.shape[1], random)
        for row in range(keys.size):
            a, b = np.uint64(mothers[first + row]), np.uint64(fathers[first + row])
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
def from_either(
    start: int, first: int, mothers: Any, fathers: Any, keys: Any, genes: Any, data: Any, scratch: Any, out: Any
) -> None:
    """Each gene from the mother or the father, by a bit that is set or not; there are no data."""
    words, small, _ = scratch[0]
    signs = small.view(np.int8)[0]
    skip = draw_words(CROSSOVER, 1, keys, start, out.shape[1], words)
    for row in range(keys.size):
        a, b = np.uint64(mothers[first + row]), np.uint64(fathers[first + row])
        column = np.uint64(whole_signs(words, row, skip, out.shape[1], signs, None))
        for i in range(np.uint64(out.shape[1])):
            mother, father = genes[a, i], genes[b, i]  # both are loaded, so that this becomes vector instructions
            out[row, i] = mother if signs[column + i] else father


@compiled
def at_points(
    start: int, first: int, mothers: Any, fathers: Any, keys: Any, genes: Any, data: Any, scratch: Any, out: Any
) -> None:
    """The parents take turns, from one cut to the next; data are the cuts, ascending indices, shape (children, k)."""
    for row in range(keys.size):
        child = first + row
        now, then, i = np.uint64(mothers[child]), np.uint64(fathers[child]), 0
        for j in range(data.shape[1] + 1):
            end = min(max(data[child, j] - start, i), out.shape[1]) if j < data.shape[1] else out.shape[1]
            for gene in range(np.uint64(i), np.uint64(end)):
                out[row, gene] = genes[now, gene]
            i, now, then = end, then, now


@compiled
def by_unit(
    start: int, first: int, mothers: Any, fathers: Any, keys: Any, genes: Any, data: Any, scratch: Any, out: Any
) -> None:
    """Units of genes come whole from either parent: a fair bit for each; unit -1 always from the mother.

    Data are the indices at which the leaves begin, with one past the end, and the unit of each leaf.
    """
    begins, units = data
    words = scratch[0][0]
    first_leaf = max(np.searchsorted(begins, start, side="right") - 1, 0)
    for row in range(keys.size):
        leaf, i, drawn = first_leaf, 0, -1
        while i < out.shape[1]:
            end = min(begins[leaf + 1] - start, out.shape[1]) if leaf < units.size else out.shape[1]
            unit = units[leaf] if leaf < units.size else -1
            if unit >= 0 and unit // 128 != drawn:
                drawn = unit // 128
                philox_block(CROSSOVER, keys, row, row + 1, drawn, 0, words)
            fair = (words[row, unit % 128 // 32] >> np.uint32(unit % 32)) & np.uint32(1)
            parent = np.uint64(fathers[first + row] if unit >= 0 and fair == 0 else mothers[first + row])
            for gene in range(np.uint64(i), np.uint64(end)):
                out[row, gene] = genes[parent, gene]
            i, leaf = end, leaf + 1
