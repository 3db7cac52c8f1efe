"""A generation spread over the threads: the loop over the genes of each dtype, cut into tasks of a few blocks.

A *dtype loop* is a compiled loop with all its arguments but one, the range of the index that it goes over. A *task* is
one such range; after an error, the ranges that tasks have not finished are listed in `UnfinishedError.left`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from flatstore.checks import whole
from flatstore.files import written_file
from flatstore.ga.bounds import Bounds, limits
from flatstore.ga.crossover import Crossover, Mother
from flatstore.ga.disk_order import genes_in_task
from flatstore.ga.generation_log import Asked, Left, Plan, left_of
from flatstore.ga.kept_progress import kept
from flatstore.ga.mutation import Mutation, mutating
from flatstore.kernels import COMPILES
from flatstore.kernels.cpu import CHILDREN, STORAGE, first_run, generation_loop, over_ranges, ranges, writer
from flatstore.layout import Array
from flatstore.store import Population
from flatstore.threads import REACHED, READ, Task, run_tasks, threads

SCRATCH = 1 << 19
"""Bytes of the parents' genes in one block of a thread: they stay in its cache, unless the population is too large."""

ROOM = 544
"""Random numbers that scratch has room for beyond the width of a block: whole blocks of 128, or those of a segment."""

SMALL = 1 << 15
"""Genes of all members that take no longer than it takes to wake another thread."""

TASK = 1 << 20
"""Genes of all members in one task: about a millisecond."""


class UnfinishedError(RuntimeError):
    """An operator failed, or memory stayed short, in the middle of a generation.

    `left` lists the genes that are still the parents'.
    """

    __module__ = "flatstore.ga"

    left: tuple[Left, ...]

    def __reduce__(self) -> Any:
        return UnfinishedError, (self.left,)

    def __init__(self, left: tuple[Left, ...]) -> None:
        self.left = left
        shown = ", ".join(f"{start} .. {stop - 1} ({dtype})" for dtype, start, stop in left[:4])
        super().__init__(
            f"expected crossover and mutation to run to the end, got an error, see its cause; the genes {shown}"
            f"{', …' if len(left) > 4 else ''} are still the parents', all others are the children's; "
            "fix: correct the operator, or free memory, then repeat the same call of ga.step with left=error.left"
        )


class Operators(NamedTuple):
    """How children are made from their parents, for every dtype."""

    crossover: Crossover | None
    mutate: Mutation | None
    bounds: Bounds | None


class Family(NamedTuple):
    """The parents of every child. A child is numbered by its place in `slots`, a parent by its place in `parents`."""

    parents: Array
    """The members that are parents, in ascending order."""
    slots: Array
    """The members that the children replace."""
    mothers: Array
    """The first parent of each child."""
    fathers: Array
    """The second parent of each child."""


class DtypeLoop(NamedTuple):
    """The compiled loop that replaces the genes of one dtype by the children's, and what it is called with."""

    loop: Any
    arguments: tuple[Any, ...]
    """The arguments between the range of the index and the scratch of a thread."""
    parents: Array
    """The members whose genes are read, and written back if an operator fails."""
    raw: Array
    """The population's memory as a vector of what is stored."""
    runs: Array
    """Where the genes lie in it, as `flatstore/kernels/cpu/generation.py` describes."""
    real: Any
    """The dtype that is computed with: float32 or float64."""


def dtype_loop(pop: Population, dtype: str, operators: Operators, family: Family, keys: Array) -> DtypeLoop:
    """The compiled loop over the genes of a dtype and its arguments; `keys` are the children's seeds.

    Raises `ValueError` if an operator does not suit the layout.
    """
    stored, real, _, _ = STORAGE[dtype]
    crossover = Mother() if operators.crossover is None else operators.crossover
    cross = crossover.crossing(pop.layout, keys, real)
    mutate, scales = mutating(operators.mutate, pop.layout, real)
    raw, runs = pop.raw(stored), pop.runs(dtype)
    bounds = tuple(limits(operators.bounds, pop.layout, dtype))
    arguments = (raw, runs, tuple(family), keys, cross.data, mutate.data, scales, bounds)
    return DtypeLoop(generation_loop(cross.loop, mutate.loop, dtype), arguments, family.parents, raw, runs, real)


def run(
    pop: Population,
    loops: dict[str, DtypeLoop],
    left: Iterable[Left] | None,
    asked: Callable[[], Asked],
    then: Callable[[], object],
) -> None:
    """Run the loops, by dtype, over all genes or over those that are `left`, with tasks spread over the threads.

    To be called by `write`. `then` is called as soon as all genes are replaced. A population in a file has a log
    meanwhile of what was `asked`. Raises `UnfinishedError` if an operator failed, or memory stayed short, after some of
    the genes, but not all, were replaced; `BlockingIOError` if another process is at work on the file, and `OSError` if
    no log can be written.
    """
    todo = genes_of(loops) if left is None else checked(loops, list(left))
    if not todo:
        then()
        return
    members = max(len(genes.parents) for genes in loops.values())
    reals = {genes.real for genes in loops.values()}
    workers, width = _workers_and_width(pop, reals, members, max(stop - start for _, start, stop in todo))
    genes = sum(stop - start for _, start, stop in todo)
    if written_file(pop.memory) is None:
        chunk = dict.fromkeys(loops, width * max(1, min(TASK // (width * pop.size), genes // (4 * workers * width))))
    else:
        chunk = {name: genes_in_task(pop, loops[name].raw.itemsize, width) for name in loops}
    tasks = [
        Task(name, at, min(at + chunk[name], end)) for name, start, end in todo for at in range(start, end, chunk[name])
    ]
    plan = Plan(tasks, width, members, workers, sorted(reals, key=str))
    runs = {name: (genes.runs, genes.raw.itemsize) for name, genes in loops.items()}
    with kept(pop, plan, asked, runs, goes_on=left is not None) as notes:
        free = list(range(workers))

        def scratch() -> dict[Any, Any]:
            worker = free.pop()
            return {real: _scratch(notes.rows(worker, real)) for real in reals} | {"worker": worker}

        def replace(task: Task, scratch: dict[Any, Any], note: Any) -> None:
            genes = loops[task.group]
            rows, numbers = scratch[genes.real]
            notes.begins(scratch["worker"], task)
            try:
                genes.loop(task.start, task.stop, *genes.arguments, rows, numbers, note)
            except BaseException:
                while has_read(note):  # again where memory is short: nothing else has these parents
                    with suppress(MemoryError):
                        write_back(genes, task, int(note[REACHED]), rows[0])
                        note[READ] = 0
                raise

        try:
            run_tasks(tasks, replace, scratch, finish=MemoryError, most=workers, progress=notes.progress)
        except BaseException as error:
            rest = left_of(tasks, notes.progress)
            if rest and rest != tuple(tasks):
                raise UnfinishedError(rest) from error
            if not rest:
                then()
                notes.over()
            elif left is None:
                notes.not_begun()
            raise
        then()
        notes.over()


def has_read(note: Any) -> bool:
    """Whether the parents of the block at work are in scratch."""
    return bool(note[READ] == note[REACHED] + 1)


def write_back(genes: DtypeLoop, task: Task, begin: int, rows: Array) -> None:
    """Write the parents of the block that begins there back from scratch."""
    write, end = writer(task.group), min(begin + rows.shape[1], task.stop)
    write(begin, end, first_run(genes.runs, begin), rows, genes.parents, genes.raw, genes.runs)


def is_small(pop: Population, loops: dict[str, DtypeLoop]) -> bool:
    """Whether all genes are made at once; loops that are not compiled never are."""
    return pop.size * sum(stop - start for _, start, stop in genes_of(loops)) <= SMALL and COMPILES


def steps_of(pop: Population, loops: dict[str, DtypeLoop]) -> list[Callable[[], object]]:
    """The loops over all genes, as functions of C."""
    steps: list[Callable[[], object]] = []
    for genes in loops.values():
        bounds = ranges(genes.runs)
        longest = max(stop - start for start, stop in bounds)
        _, width = _workers_and_width(pop, {genes.real}, len(genes.parents), 4 * threads() * longest)  # not shared
        parents = np.zeros((len(genes.parents), width), genes.real)
        arguments = (*genes.arguments, *_scratch(parents), np.zeros(3, np.int64))
        steps.append(over_ranges(genes.loop, np.array(bounds, np.int64), arguments))
    return steps


def genes_of(loops: dict[str, DtypeLoop]) -> list[Left]:
    """The ranges of the index that hold genes, dtype by dtype."""
    return [(name, begin, end) for name, genes in loops.items() for begin, end in ranges(genes.runs)]


def checked(loops: dict[str, DtypeLoop], todo: list[Left]) -> list[Left]:
    """The ranges themselves. Raises `ValueError` if they overlap, or are not of genes."""
    dtypes = {name: (int(genes.runs[0, 0]), int(genes.runs[-1, 1])) for name, genes in loops.items()}
    ends: dict[str, int] = {}
    for name, start, stop in sorted(todo):
        first, last = dtypes.get(name, (1, 0))
        if not max(first, ends.get(name, 0)) <= whole(start) < whole(stop) <= last:
            genes = ", ".join(f"{name} in {begin} .. {end}" for name, (begin, end) in dtypes.items())
            raise ValueError(
                f"left: expected ranges that do not overlap, of genes of {genes}, got {name} in {start} .. {stop}; "
                "fix: pass error.left of this generation's UnfinishedError"
            )
        ends[name] = stop
    return todo


def _scratch(parents: Array) -> Any:
    """The scratch memory of a thread: rows of parents, children, scales and bounds; random numbers."""
    width, real = parents.shape[1], parents.dtype
    rows = parents, np.zeros((CHILDREN, width), real), *np.zeros((3, width), real)
    room = -(-width // 8) * 8 + ROOM
    words, small, large = (np.zeros((CHILDREN, room), kind) for kind in (np.uint32, np.uint8, np.uint32))
    return rows, ((words, small, large), np.zeros(room, real), np.zeros(room, np.int16))


def _bytes_of_scratch(width: int, members: int, reals: set[Any]) -> int:
    numbers = 9 * CHILDREN * (width + ROOM + 8)
    return sum(np.dtype(real).itemsize * width * (members + CHILDREN + 4) + numbers for real in reals)


def _workers_and_width(pop: Population, reals: set[Any], members: int, genes: int) -> tuple[int, int]:
    """The number of threads, and of genes in a block: small enough for the caches if possible, always within law 10."""
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
