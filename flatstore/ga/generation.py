"""A generation cut into passes and tasks: all genes of one dtype, a few blocks of them at a time, over the threads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from flatstore.ga.crossover import Crossover
from flatstore.ga.mutation import Mutation, plan
from flatstore.kernels import each, threads
from flatstore.kernels.cpu import BROOD, STORAGE, first_run, generation_loop, ranges, writer
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


class Pass(NamedTuple):
    """The genes of one dtype, and all that the compiled loop needs for them."""

    loop: Any
    arguments: tuple[Any, ...]
    parents: Array
    runs: Array
    raw: Array
    real: Any
    """What is computed with: float32 or float64."""


def pass_of(
    pop: Population, dtype: str, mutate: Mutation | None, crossover: Crossover, family: tuple[Array, ...], keys: Array
) -> Pass:
    """The pass over one dtype; `family` is (parents, slots of the children, mothers and fathers among the parents).

    Raises `ValueError` for operators that do not suit the layout.
    """
    stored, real, _, _ = STORAGE[dtype]
    cross, given = crossover.crossing(pop.layout, keys, real)
    how, table, jumps, (bounds, scales) = plan(mutate, pop.layout, real)
    raw, runs = pop.raw(stored), pop.runs(dtype)
    arguments = (raw, runs, (bounds, scales.astype(real)), family, keys, given, (how, table, jumps))
    return Pass(generation_loop(cross, dtype), arguments, family[0], runs, raw, real)


def run(pop: Population, passes: dict[str, Pass], left: Iterable[Left] | None) -> None:
    """Run the passes over all genes, or over those that are left. Raises `UnfinishedError` for a half of it."""
    todo = genes_of(passes) if left is None else _checked(passes, list(left))
    if not todo:
        return
    members = max(len(p.parents) for p in passes.values())
    reals = {p.real for p in passes.values()}
    workers, width = _workers_and_width(pop, reals, members, max(stop - start for _, start, stop in todo))
    chunk = width * max(1, TASK // (width * pop.size))
    tasks = [(name, at, min(at + chunk, stop)) for name, start, stop in todo for at in range(start, stop, chunk)]
    scratch: dict[Any, Any] = {}
    undone: dict[int, Left] = dict(enumerate(tasks))

    def task(i: int, worker: int) -> None:
        name, start, stop = tasks[i]
        p = passes[name]
        if (worker, p.real) not in scratch:
            scratch[worker, p.real] = _scratch(width, members, p.real)
        rows, numbers, at = scratch[worker, p.real]
        at[:] = start, 0
        try:
            p.loop(start, stop, *p.arguments, rows, numbers, at)
            del undone[i]
        except BaseException:
            begin = int(at[0])
            # The loop read the parents of this block before it wrote: write them back.
            if at[1]:
                write, end = writer(name), min(begin + width, stop)
                write(begin, end, first_run(p.runs, begin), rows[0], p.parents, p.raw, p.runs)
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


def genes_of(passes: dict[str, Pass]) -> list[Left]:
    """The ranges of the index that hold genes, dtype by dtype."""
    return [(name, begin, end) for name, p in passes.items() for begin, end in ranges(p.runs)]


def _checked(passes: dict[str, Pass], todo: list[Left]) -> list[Left]:
    whole = {name: (int(p.runs[0, 0]), int(p.runs[-1, 1])) for name, p in passes.items()}
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
    """What a thread works in: rows of genes, of children and of scales; random numbers; where it is."""
    rows = np.zeros((members, width), real), np.zeros((BROOD, width), real), np.zeros(width, real)
    room = -(-width // 8) * 8 + ROOM
    words, small, large = (np.zeros((BROOD, room), kind) for kind in (np.uint32, np.uint8, np.uint32))
    return rows, ((words, small, large), np.zeros(room, real)), np.zeros(2, np.int64)


def _bytes_of_scratch(width: int, members: int, reals: set[Any]) -> int:
    numbers = 9 * BROOD * (width + ROOM + 8)
    return sum(np.dtype(real).itemsize * width * (members + BROOD + 2) + numbers for real in reals)


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
