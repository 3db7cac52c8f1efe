"""One generation of a genetic algorithm, in place: who begets whom is decided here, compiled loops move the genes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from flatstore.arrays import Array
from flatstore.ga.crossover import Crossover, Mother, Uniform
from flatstore.ga.mutation import Mutation, plan
from flatstore.ga.select import Tournament, best_first
from flatstore.kernels.generation import BROOD, first_run, generation, writer
from flatstore.kernels.storage import STORAGE
from flatstore.kernels.threads import each, threads
from flatstore.noise import Seed, seeds
from flatstore.population import Population

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

    left: tuple[Left, ...]

    def __init__(self, left: tuple[Left, ...]) -> None:
        self.left = left
        shown = ", ".join(f"{start} .. {stop - 1} ({dtype})" for dtype, start, stop in left[:4])
        super().__init__(
            f"expected crossover and mutation to run to the end, got an error in them; the genes {shown}"
            f"{', …' if len(left) > 4 else ''} are the parents' still, all others the children's; "
            "fix: mend the operator, and finish by the same call of ga.step with left=error.left"
        )


def step(
    pop: Population,
    fitness: Any,
    *,
    seed: Seed,
    mutate: Mutation | None,
    select: Any = Tournament(),  # noqa: B008 (a frozen value)
    crossover: Crossover | None = Uniform(),  # noqa: B008 (a frozen value)
    elite: int = 1,
    left: Iterable[Left] | None = None,
) -> tuple[Array, Array]:
    """Replace the population by its next generation, in its own memory.

    The `elite` best members keep their slots to the bit; every other slot takes a child of two selected parents,
    crossed over and mutated. Child i draws as if it had seed number i of `fs.seeds(seed, pop.size)`: the result does
    not depend on threads, order or alignment. Genes of float16 and bfloat16 are computed in float32 and rounded once.

    >>> import flatstore as fs
    >>> pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, 4)
    >>> parents, kept = step(pop, [0.0, 3.0, 1.0, 2.0], seed=(7, 0), mutate=fs.Normal(0.1))
    >>> kept.tolist(), parents[1].tolist(), pop[1].to_vector().tolist()
    ([False, True, False, False], [1, 1], [0.0, 0.0, 0.0])

    Beside the population it takes scratch for each thread: at most 1 % of the population or 32 MiB, whichever is more.
    Ctrl-C is held back until the generation is finished.

    Args:
        pop: the population; its shared leaves do not change.
        fitness: a number per member, maximised; NaN is worst.
        seed: an integer or several, like (run, generation).
        mutate: noise that is added to each gene of a child, `Sparse` noise, `Reset`, or None.
        select: `(fitness, n, seed) -> n indices`, called once for both parents of all children.
        crossover: `Uniform`, `Points`, `Blend`, `Exchange`, your own as `PerGene`, or None for copies of one parent.
        elite: how many members are kept.
        left: what an `UnfinishedError` says is left, to finish that generation; None for a new one.

    Returns:
        parents: shape (size, 2), for each slot the two members that it came from (itself twice, if kept).
        kept: shape (size,), bool: which slots need no new evaluation.

    Raises:
        ValueError: fitness of another length or all NaN, elite or indices out of range, leaves that cannot be computed
            with. Nothing is written.
        LentError: while the population is lent. Nothing is written.
        UnfinishedError: an operator of yours failed half-way.
    """
    scores = check_fitness(fitness, pop.size)
    if not 0 <= elite < pop.size:
        raise ValueError(f"expected elite in 0 .. {pop.size - 1}, got {elite}; fix: leave a slot for a child")
    dtypes = _dtypes(pop)
    keys = seeds(seed, pop.size + 1)
    slots = np.sort(best_first(scores)[elite:])
    chosen = _select(select, scores, 2 * len(slots), int(keys[-1])).reshape(2, -1)
    crossover = crossover or Mother()
    passes = {name: _pass(pop, name, mutate, crossover, slots, chosen, keys[slots]) for name in dtypes}
    if passes:
        _run(pop, passes, _todo(pop, dtypes, left))
    parents = np.repeat(np.arange(pop.size)[:, None], 2, axis=1)
    parents[slots] = chosen.T
    kept = np.ones(pop.size, bool)
    kept[slots] = False
    return parents, kept


class _Pass(NamedTuple):
    """The genes of one dtype, and all that the compiled loop needs for them."""

    dtype: str
    loop: Any
    arguments: tuple[Any, ...]
    parents: Array
    raw: Array


def _pass(pop: Population, dtype: str, mutate: Any, crossover: Any, slots: Array, chosen: Array, keys: Array) -> _Pass:
    stored, computed, _, _ = STORAGE[dtype]
    cross, given = crossover.crossing(pop.layout, keys, computed)
    how, table, jumps, (bounds, scales) = plan(mutate, pop.layout, computed)
    parents, (mothers, fathers) = np.unique(chosen, return_inverse=True)
    size = np.dtype(stored).itemsize
    raw = pop.memory.bytes[: pop.memory.bytes.size // size * size].view(stored)
    spans, family = (bounds, scales.astype(computed)), (parents, slots, mothers, fathers)
    arguments = (raw, pop.runs(dtype), spans, family, keys, given, (how, table, jumps))
    return _Pass(dtype, generation(cross, dtype), arguments, parents, raw)


def _run(pop: Population, passes: dict[str, _Pass], todo: list[Left]) -> None:
    """Run the passes over the genes to do, by tasks of some blocks. Raises `UnfinishedError` for a half of it."""
    members = max(len(p.parents) for p in passes.values())
    width = _width(pop, passes, members, max(stop - start for _, start, stop in todo))
    chunk = width * max(1, TASK // (width * pop.size))
    tasks = [(name, at, min(at + chunk, stop)) for name, start, stop in todo for at in range(start, stop, chunk)]
    scratch = [{name: _scratch(width, members, STORAGE[name][1]) for name in passes} for _ in range(threads())]
    left: dict[int, Left] = dict(enumerate(tasks))

    def task(i: int, worker: int) -> None:
        name, start, stop = tasks[i]
        p, (rows, numbers, at) = passes[name], scratch[worker][name]
        at[0] = start
        try:
            p.loop(start, stop, *p.arguments, rows, numbers, at)
            del left[i]
        except BaseException:
            begin = int(at[0])
            end = min(begin + width, stop)
            # The loop read the parents of this block before it wrote: write them back.
            if at[1]:
                writer(name)(begin, end, first_run(p.arguments[1], begin), rows[0], p.parents, p.raw, p.arguments[1])
            left[i] = (name, begin, stop)
            raise

    with pop.memory.writing():
        try:
            each(task, len(tasks))
        except BaseException as error:
            if not left or sum(stop - start for _, start, stop in left.values()) == sum(b - a for _, a, b in tasks):
                raise
            raise UnfinishedError(tuple(left[i] for i in sorted(left))) from error


def _todo(pop: Population, dtypes: list[str], left: Iterable[Left] | None) -> list[Left]:
    """The genes to do, checked."""
    if left is None:
        return [(name, 0, pop.layout.size) for name in dtypes]
    todo = list(left)
    for name, start, stop in todo:
        if name not in dtypes or not 0 <= start < stop <= pop.layout.size:
            raise ValueError(
                f"left: expected genes of {', '.join(dtypes)} in 0 .. {pop.layout.size}, got {name} in "
                f"{start} .. {stop}; fix: pass error.left of this generation's UnfinishedError"
            )
    return todo


def _scratch(width: int, members: int, dtype: Any) -> Any:
    """What a thread works in: rows of genes, of children and of scales; random numbers; where it is."""
    rows = np.zeros((members, width), dtype), np.zeros((BROOD, width), dtype), np.zeros(width, dtype)
    room = -(-width // 8) * 8 + ROOM
    words, small, large = (np.zeros((BROOD, room), kind) for kind in (np.uint32, np.uint8, np.uint32))
    return rows, ((words, small, large), np.zeros(room, dtype)), np.zeros(2, np.int64)


def _width(pop: Population, passes: dict[str, _Pass], members: int, genes: int) -> int:
    """Genes in a block, a power of two: so many that a thread's scratch stays in its cache, and within law 10."""
    column = sum(np.dtype(STORAGE[name][1]).itemsize for name in passes) * members
    allowed = max(32 << 20, pop.memory.bytes.size // 100) * 3 // 4 // threads()
    wide = min(allowed // column, max(16, SCRATCH // column), -(-genes // (4 * threads())), 4096)
    return 1 << max(0, wide.bit_length() - 1)


def _select(select: Any, scores: Array, n: int, seed: int) -> Array:
    """What a selection chooses, checked."""
    chosen = np.asarray(select(scores, n, seed))
    if chosen.shape != (n,) or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= len(scores):
        raise ValueError(
            f"expected {n} indices of members from select, got {chosen.dtype} of shape {chosen.shape}; "
            f"fix: return that many integers in 0 .. {len(scores) - 1}"
        )
    return chosen.astype(np.int64)


def _dtypes(pop: Population) -> list[str]:
    """The dtypes of the leaves that train. Raises `ValueError` for one that cannot be computed with."""
    leaves = [leaf for leaf in pop.layout.homes if leaf.trainable and leaf.size]
    for leaf in leaves:
        if leaf.dtype.name not in STORAGE:
            raise ValueError(
                f"{leaf.path!r}: expected a leaf of {', '.join(STORAGE)} to evolve, got {leaf.spec}; "
                "fix: leave it out of trainable="
            )
    return list(dict.fromkeys(leaf.dtype.name for leaf in leaves))


def check_fitness(fitness: Any, size: int) -> Array:
    """Fitness as float64, shape (size,). Raises `ValueError` for another shape, or if every number is NaN."""
    scores = np.asarray(fitness, np.float64)
    if scores.shape != (size,):
        raise ValueError(f"expected fitness of shape ({size},), got {scores.shape}; fix: a number per member")
    if np.isnan(scores).all():
        raise ValueError("expected fitness with a number in it, got only NaN; fix: look at the evaluation")
    return scores
