"""One generation of a genetic algorithm, in the population's own memory.

A block is the same few hundred genes of all members. What the parents have there is loaded into scratch, and the
children are written over the members that they replace:

```
              genes ->
members       | block 0 | block 1 | block 2 |        scratch of a thread: one block of the parents,
   |          |  done   | <-> now |         |                             and a few of the children
```

Blocks run over the packed index, across leaves. They meet *runs*: neighbours in the index that are neighbours in
memory, (begin, end, place of the first, places from one member to the next). So each gene of a parent is read once and
each of a child written once, and many tiny leaves cost what a large one does.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.bounds import UNBOUNDED, bring_back
from flatstore.kernels.cpu.prefetch import fetch
from flatstore.kernels.cpu.storage import STORAGE
from flatstore.layout import Array

CHILDREN = 16
"""How many children are made together: few enough to stay in the first cache."""

AHEAD = 4
"""How many members before its turn one is fetched: hardware does not guess that the next block of genes is far away."""

GAP = 1 << 10
"""Indices of no run that are passed over in a block, rather than begin a new range."""


def ranges(runs: Array, gap: int = GAP) -> list[tuple[int, int]]:
    """The ranges of the index that hold runs, first index and end; gaps of up to `gap` between runs are passed over."""
    found: list[tuple[int, int]] = []
    for begin, end, *_ in runs.tolist():
        if found and begin - found[-1][1] <= gap:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


@compiled
def first_run(runs: Any, start: int) -> Any:
    """The first run that ends behind the index `start`."""
    return np.searchsorted(runs[:, 1], start, side="right")


@compiled
def spread(start: int, ranges: Any, values: Any, otherwise: float, out: Any) -> None:
    """A number for each gene from index `start` on: the value of the range it is in, `otherwise` where there is none.

    `ranges` are first indices and ends, ascending, shape (values, 2).
    """
    stop, k = start + out.size, first_run(ranges, start)
    out[:] = otherwise
    while k < values.size and ranges[k, 0] < stop:
        low, high = max(ranges[k, 0] - start, 0), min(ranges[k, 1] - start, out.size)
        for i in range(np.uint64(low), np.uint64(high)):
            out[i] = values[k]
        k += 1


@cache
def writer(dtype: str) -> Any:
    """The compiled loop that writes rows of scratch over members, the genes start .. stop - 1."""
    store = STORAGE[dtype][3]

    @compiled
    def write(start: int, stop: int, first: int, rows: Any, members: Any, raw: Any, runs: Any) -> None:
        k = first
        while k < runs.shape[0] and runs[k, 0] < stop:
            low, high = max(start, runs[k, 0]), min(stop, runs[k, 1])
            for row in range(members.size):
                at = runs[k, 2] + low - runs[k, 0] + members[row] * runs[k, 3]
                for i in range(high - low):
                    raw[np.uint64(at + i)] = store(rows[row, np.uint64(low - start + i)])
            k += 1

    return write


@cache
def reader(dtype: str) -> Any:
    """The compiled loop that reads the genes start .. stop - 1 of members into rows of scratch."""
    load = STORAGE[dtype][2]

    @compiled
    def read(start: int, stop: int, first: int, rows: Any, members: Any, raw: Any, runs: Any) -> None:
        k = first
        while k < runs.shape[0] and runs[k, 0] < stop:
            low, high = max(start, runs[k, 0]), min(stop, runs[k, 1])
            for row in range(members.size):
                at = runs[k, 2] + low - runs[k, 0] + members[row] * runs[k, 3]
                if row + AHEAD < members.size:
                    soon = at + (members[row + AHEAD] - members[row]) * runs[k, 3]
                    for i in range(np.uint64(0), np.uint64(high - low), np.uint64(64 // raw.itemsize)):
                        fetch(raw, np.uint64(soon) + i)
                for i in range(high - low):
                    rows[row, np.uint64(low - start + i)] = load(raw[np.uint64(at + i)])
            k += 1

    return read


@cache
def generation_loop(cross: Any, mutate: Any, dtype: str) -> Any:
    """The compiled loop of a generation, for the loops of a crossover and of a mutation, and the name of a dtype."""
    read, write = reader(dtype), writer(dtype)

    @compiled
    def generate(
        begin: int,
        end: int,
        raw: Any,
        runs: Any,
        family: Any,
        keys: Any,
        crossover_data: Any,
        mutation_data: Any,
        scales: Any,
        bounds: Any,
        rows: Any,
        scratch: Any,
        note: Any,
    ) -> None:
        """Replace the genes begin .. end - 1.

        `note[0]` is where the block at work starts, `note[2]` is one more as soon as its parents have been read: in one
        number each, so that both are true at any instant at which a process may be killed.
        """
        parents, slots, mothers, fathers = family
        outside, bounded, lows, highs = bounds
        genes, children, scale, low, high = rows
        for start in range(begin, end, genes.shape[1]):
            note[0] = start
            stop = min(start + genes.shape[1], end)
            run = first_run(runs, start)
            read(start, stop, run, genes, parents, raw, runs)
            note[2] = start + 1
            spread(start, scales[0], scales[1], 0.0, scale)
            if outside != UNBOUNDED:
                spread(start, bounded, lows, -np.inf, low)
                spread(start, bounded, highs, np.inf, high)
            for first in range(0, slots.size, CHILDREN):
                some, seeds = slots[first : first + CHILDREN], keys[first : first + CHILDREN]
                cross(start, first, mothers, fathers, seeds, genes, crossover_data, scratch, children)
                mutate(start, seeds, mutation_data, scale, scratch, children)
                if outside != UNBOUNDED:
                    bring_back(outside, low, high, seeds.size, children)
                write(start, stop, run, children, some, raw, runs)
        note[0] = end

    return generate
