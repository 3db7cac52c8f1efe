"""A generation over the threads: the loop over the genes of each dtype, cut into tasks of a few blocks.

A *dtype loop* is a compiled loop with its arguments, all but the range of the index that it is run over; a *task* is
one such range, and what has failed of it is what an `UnfinishedError` says is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from flatstore.ga.bounds import Bounds, limits
from flatstore.ga.crossover import Crossover, Mother
from flatstore.ga.mutation import Mutation, mutating
from flatstore.kernels import each, threads
from flatstore.kernels.cpu import CHILDREN, STORAGE, first_run, generation_loop, ranges, writer
from flatstore.layout import Array
from flatstore.store import Population

SCRATCH = 1 << 19
"""Bytes of the parents' genes that a thread has before it, where the population is not too large for that."""

ROOM = 544
"""Random numbers beyond a block's width that scratch has room for: whole blocks of 128, or those of a segment."""

TASK = 1 << 20
"""Genes of all members that a thread takes on at a time: about a millisecond."""

Left = tuple[str, int, int]
"""Genes that a generation has left to do: the name of their dtype, the first index, and the end."""


class UnfinishedError(RuntimeError):
    """An operator failed in the middle of a generation. `left` says which genes are still the parents'."""

    __module__ = "flatstore.ga"

    left: tuple[Left, ...]

    def __reduce__(self) -> Any:
        return UnfinishedError, (self.left,)

    def __init__(self, left: tuple[Left, ...]) -> None:
        self.left = left
        shown = ", ".join(f"{start} .. {stop - 1} ({dtype})" for dtype, start, stop in left[:4])
        super().__init__(
            f"expected crossover and mutation to run to the end, got an error in them; the genes {shown}"
            f"{', …' if len(left) > 4 else ''} are the parents' still, all others the children's; "
            "fix: mend the operator, and finish by the same call of ga.step with left=error.left"
        )


class Operators(NamedTuple):
    """How children are made of their parents, whatever the dtype."""

    crossover: Crossover | None
    mutate: Mutation | None
    bounds: Bounds | None


class Family(NamedTuple):
    """Who begets whom. A parent is counted by its place among `parents`, a child by its place among `slots`."""

    parents: Array
    """The members that are parents, ascending."""
    slots: Array
    """The members that the children replace."""
    mothers: Array
    """Of each child."""
    fathers: Array
    """Of each child."""


class DtypeLoop(NamedTuple):
    """The compiled loop that replaces the genes of one dtype by the children's, and what it is called with."""

    loop: Any
    arguments: tuple[Any, ...]
    """All that it takes between the range of the index and the scratch of a thread."""
    parents: Array
    """The members that are read, and written back where an operator fails."""
    raw: Array
    """The population's memory, as numbers of the width that is stored."""
    runs: Array
    """Where the genes lie in it, as `flatstore.kernels.cpu.generation` says."""
    real: Any
    """What is computed with: float32 or float64."""


def dtype_loop(pop: Population, dtype: str, operators: Operators, family: Family, keys: Array) -> DtypeLoop:
    """The loop over the genes of a dtype; `keys` are the children's seeds.

    Raises `ValueError` for operators that do not suit the layout.
    """
    stored, real, _, _ = STORAGE[dtype]
    crossover = Mother() if operators.crossover is None else operators.crossover
    cross = crossover.crossing(pop.layout, keys, real)
    mutate, scales = mutating(operators.mutate, pop.layout, real)
    raw, runs = pop.raw(stored), pop.runs(dtype)
    bounds = tuple(limits(operators.bounds, pop.layout, dtype))
    arguments = (raw, runs, tuple(family), keys, cross.data, mutate.data, scales, bounds)
    return DtypeLoop(generation_loop(cross.loop, mutate.loop, dtype), arguments, family.parents, raw, runs, real)


def run(pop: Population, loops: dict[str, DtypeLoop], left: Iterable[Left] | None) -> None:
    """Run the loops, by dtype, over all genes, or over those that are left; tasks are spread over the threads.

    Raises `UnfinishedError` if an operator failed and some genes, not all, have been replaced.
    """
    todo = genes_of(loops) if left is None else _checked(loops, list(left))
    if not todo:
        return
    members = max(len(genes.parents) for genes in loops.values())
    reals = {genes.real for genes in loops.values()}
    workers, width = _workers_and_width(pop, reals, members, max(stop - start for _, start, stop in todo))
    chunk = width * max(1, TASK // (width * pop.size))
    tasks = [(name, at, min(at + chunk, stop)) for name, start, stop in todo for at in range(start, stop, chunk)]
    scratch: dict[Any, Any] = {}
    undone: dict[int, Left] = dict(enumerate(tasks))

    def task(i: int, worker: int) -> None:
        name, start, stop = tasks[i]
        genes = loops[name]
        if (worker, genes.real) not in scratch:
            scratch[worker, genes.real] = _scratch(width, members, genes.real)
        rows, numbers, at = scratch[worker, genes.real]
        at[:] = start, 0
        try:
            genes.loop(start, stop, *genes.arguments, rows, numbers, at)
            del undone[i]
        except BaseException:
            begin = int(at[0])
            # The loop read the parents of this block before it wrote: write them back.
            if at[1]:
                write, end = writer(name), min(begin + width, stop)
                write(begin, end, first_run(genes.runs, begin), rows[0], genes.parents, genes.raw, genes.runs)
            undone[i] = (name, begin, stop)
            raise

    with pop.memory.writing():
        try:
            each(task, len(tasks), workers)
        except BaseException as error:
            if not undone or undone == dict(enumerate(tasks)):
                raise
            unfinished = UnfinishedError(tuple(undone[i] for i in sorted(undone)))
            if not isinstance(error, Exception):  # Ctrl-C, while an operator failed
                error.add_note(f"{unfinished}: left={unfinished.left}")
                raise
            raise unfinished from error


def genes_of(loops: dict[str, DtypeLoop]) -> list[Left]:
    """The ranges of the index that hold genes, dtype by dtype."""
    return [(name, begin, end) for name, genes in loops.items() for begin, end in ranges(genes.runs)]


def _checked(loops: dict[str, DtypeLoop], todo: list[Left]) -> list[Left]:
    whole = {name: (int(genes.runs[0, 0]), int(genes.runs[-1, 1])) for name, genes in loops.items()}
    ends: dict[str, int] = {}
    for name, start, stop in sorted(todo):
        if name not in whole or not max(whole[name][0], ends.get(name, 0)) <= start < stop <= whole[name][1]:
            genes = ", ".join(f"{name} in {begin} .. {end}" for name, (begin, end) in whole.items())
            raise ValueError(
                f"left: expected ranges that do not overlap, of genes of {genes}, got {name} in {start} .. {stop}; "
                "fix: pass error.left of this generation's UnfinishedError"
            )
        ends[name] = stop
    return todo


def _scratch(width: int, members: int, real: Any) -> Any:
    """What a thread works in: rows of genes, of children, of scales and bounds; random numbers; where it is."""
    rows = np.zeros((members, width), real), np.zeros((CHILDREN, width), real), *np.zeros((3, width), real)
    room = -(-width // 8) * 8 + ROOM
    words, small, large = (np.zeros((CHILDREN, room), kind) for kind in (np.uint32, np.uint8, np.uint32))
    return rows, ((words, small, large), np.zeros(room, real)), np.zeros(2, np.int64)


def _bytes_of_scratch(width: int, members: int, reals: set[Any]) -> int:
    numbers = 9 * CHILDREN * (width + ROOM + 8)
    return sum(np.dtype(real).itemsize * width * (members + CHILDREN + 4) + numbers for real in reals)


def _workers_and_width(pop: Population, reals: set[Any], members: int, genes: int) -> tuple[int, int]:
    """How many threads work, on how many genes in a block: in their caches where that can be, and within law 10."""
    allowed = max(32 << 20, pop.memory.bytes.size // 100) * 3 // 4
    column = members * max(np.dtype(real).itemsize for real in reals)
    workers = threads()
    wide = min(max(16, SCRATCH // column), -(-genes // (4 * workers)), 4096)
    width = 1 << max(0, wide.bit_length() - 1)
    while width > 16 and workers * _bytes_of_scratch(width, members, reals) > allowed:
        width //= 2
    while workers > 1 and workers * _bytes_of_scratch(width, members, reals) > allowed:
        workers -= 1
    while width > 1 and _bytes_of_scratch(width, members, reals) > allowed:
        width //= 2
    return workers, width
