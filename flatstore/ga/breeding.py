"""One generation of a genetic algorithm, in place: parents are chosen here, compiled loops make the children."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from flatstore.checks import whole
from flatstore.evaluation import as_fitness, best_first, refuse_all_nan
from flatstore.files import written_file
from flatstore.ga.bounds import Bounds
from flatstore.ga.crossover import Blend, Crossover, Exchange, Points, Uniform
from flatstore.ga.generation import (
    DtypeLoop,
    Family,
    Operators,
    UnfinishedError,
    dtype_loop,
    is_small,
    run,
    steps_of,
)
from flatstore.ga.generation_log import Asked, Left
from flatstore.ga.mutation import Mutate, Mutation, Reset, Sparse
from flatstore.ga.operators_as_json import as_json
from flatstore.ga.selection import Tournament
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.layout import Array, as_array
from flatstore.memory import write, write_at_once
from flatstore.noise import Noise, Seed, integers_of, seeds
from flatstore.store import AnyPopulation, Population, Step, breeding_of, host_of
from flatstore.threads import noted, rounds_to_nearest


def step(
    pop: AnyPopulation,
    fitness: Any,
    *,
    seed: Seed,
    mutate: Mutation | None,
    select: Any = Tournament(),  # noqa: B008 (a frozen value)
    crossover: Crossover | None = Uniform(),  # noqa: B008 (a frozen value)
    bounds: Bounds | None = None,
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

    Apart from the population it needs scratch memory: at most 1 % of the population or 32 MiB, whichever is more, and
    about 100 bytes per member to record its parents. Interrupts are held back until the generation is finished.

    Args:
        pop: the population; its shared leaves do not change.
        fitness: a real number for each member, shape (size,), maximised; NaN is worst.
        seed: a non-negative integer or several, such as (run, generation).
        mutate: noise to add to each gene of a child, `Sparse` noise, `Reset`, your own function as `Mutate`, or None.
        select: `(fitness, n, seed) -> n indices`, called once for both parents of all children.
        crossover: `Uniform`, `Points`, `Blend`, `Exchange`, your own function as `PerGene`, or None for copies of one
            parent.
        bounds: `Bounds` between which the genes of children stay, or None.
        elite: the number of members that are kept.
        left: `error.left` of an `UnfinishedError`, to finish the generation that it interrupted; None for a new one.

    Returns:
        parents: shape (size, 2), for each slot the two members that it came from (itself twice, if kept).
        kept: shape (size,), bool: which slots need no new evaluation.

    Raises:
        ValueError: fitness of the wrong length or all NaN, elite or indices out of range, leaves of a dtype that cannot
            evolve, operators or bounds that do not suit the layout; a population in a file in which another generation
            is not over. Nothing is written.
        BlockingIOError: while another process is at work on the population's file. Nothing is written.
        LentError: while the population is lent. Nothing is written.
        UnfinishedError: an operator of your own failed, or memory stayed short, after some genes were replaced.
    """
    planned = plan_step(
        pop,
        fitness,
        seed=seed,
        mutate=mutate,
        select=select,
        crossover=crossover,
        bounds=bounds,
        elite=elite,
        left=left,
    )
    planned.run()
    return planned.parents, planned.kept


class PlannedStep(NamedTuple):
    """A generation of a population on the host that is chosen, but not yet born."""

    pop: Population
    loops: dict[str, DtypeLoop]
    left: Iterable[Left] | None
    parents: Array
    """For each slot the two members that it comes from, shape (size, 2)."""
    kept: Array
    """Which slots keep their members, shape (size,), bool."""
    fails: bool
    """Whether it calls functions of one's own, which may fail."""
    asked: Callable[[], Asked]
    """What it is a function of, beside the population, for a log."""

    def run(self, then: Callable[[], object] = bool) -> None:
        """Write the children over the members that they replace, and call `then`: uninterrupted."""
        _run(self, then)


def plan_step(
    pop: AnyPopulation,
    fitness: Any,
    *,
    seed: Seed,
    mutate: Mutation | None,
    select: Any,
    crossover: Crossover | None,
    bounds: Bounds | None,
    elite: int,
    left: Iterable[Left] | None = None,
) -> Step:
    """All of a step but the writing of the population: the arguments are checked, and the parents chosen."""
    how: dict[str, Any] = {"mutate": mutate, "select": select, "crossover": crossover, "bounds": bounds, "elite": elite}
    if (kind := breeding_of(pop)) is not None:
        return kind.plan(pop, fitness, seed=seed, left=left, **how)
    return plan_on_host(host_of(pop), fitness, seed=seed, left=left, **how)


def plan_on_host(
    pop: Population,
    fitness: Any,
    *,
    seed: Seed,
    mutate: Mutation | None,
    select: Any,
    crossover: Crossover | None,
    bounds: Bounds | None,
    elite: int,
    left: Iterable[Left] | None = None,
) -> PlannedStep:
    """What `plan_step` does for a population on the host."""
    scores = as_fitness(fitness, pop.size)
    refuse_all_nan(scores)
    check_operators(mutate, select, crossover, bounds)
    check_elite(pop.size, elite)
    dtypes = _dtypes(pop)
    slots, chosen, keys = parents_of(scores, seed, select, elite)
    family = _family(slots, chosen, pop.size)
    operators = Operators(crossover, mutate, bounds)
    loops = {name: dtype_loop(pop, name, operators, family, keys) for name in dtypes}
    parents = np.repeat(np.arange(pop.size)[:, None], 2, axis=1)
    np.put(parents, 2 * slots, chosen[0])  # an indexed assignment crashes in NumPy where memory is short
    np.put(parents, 2 * slots + 1, chosen[1])
    kept = np.ones(pop.size, bool)
    np.put(kept, slots, False)
    own = None if mutate is None else mutate.noise if isinstance(mutate, Sparse) else mutate
    fails = isinstance(own, Mutate) or not isinstance(crossover, (Uniform, Points, Blend, Exchange, type(None)))

    def asked() -> Asked:
        settings = {"seed": integers_of(seed), "elite": int(elite), "first": pop.first, "size": pop.size}
        settings |= {"mutate": as_json(mutate), "crossover": as_json(crossover), "bounds": as_json(bounds)}
        return Asked(scores, chosen.ravel(), settings)

    return PlannedStep(pop, loops, left, parents, kept, fails, asked)


def parents_of(scores: Array, seed: Seed, select: Any, elite: int) -> tuple[Array, Array, Array]:
    """Who begets whom, by fitness: the slots of the children, the two parents of each, shape (2, n), and its seed."""
    keys = seeds(seed, len(scores) + 1)
    slots = np.sort(best_first(scores)[elite:]).astype(np.int32)
    return slots, _select(select, scores, 2 * len(slots), int(keys[-1])).reshape(2, -1), np.take(keys, slots)


def _run(step: PlannedStep, then: Callable[[], object]) -> None:
    pop = step.pop

    def replace() -> None:
        run(pop, step.loops, step.left, step.asked, then)

    def left(error: BaseException) -> Iterator[str]:
        if isinstance(unfinished := error.__cause__, UnfinishedError):  # an interrupt, while an operator failed
            yield f"{unfinished}: left={unfinished.left}"

    at_once = step.left is None and not step.fails and then is bool and written_file(pop.memory) is None
    if at_once and is_small(pop, step.loops) and rounds_to_nearest():
        write_at_once([pop.memory], steps_of(pop, step.loops))
    else:
        with noted(left):
            write([pop.memory], replace)


def _family(slots: Array, chosen: Array, size: int) -> Family:
    """The parents of every child, in a population of `size`: `chosen` has the two members for each of the `slots`."""
    is_parent = np.zeros(size, bool)
    np.put(is_parent, chosen, True)
    place = np.cumsum(is_parent, dtype=np.int32) - np.int32(1)
    return Family(np.flatnonzero(is_parent).astype(np.int32), slots, *np.take(place, chosen))


def check_operators(mutate: Any, select: Any, crossover: Any, bounds: Any) -> None:
    """Raise `TypeError` unless each is an operator of its kind or, except for `select`, None."""
    if not (mutate is None or isinstance(mutate, (Noise, Sparse, Reset, Mutate))):
        raise TypeError(
            f"expected noise, Sparse, Reset, Mutate or None to mutate with, got {mutate!r}; "
            "fix: fs.Normal(0.02), or ga.Mutate(your_function)"
        )
    if not (crossover is None or (hasattr(crossover, "crossing") and not isinstance(crossover, type))):
        raise TypeError(
            f"expected a crossover or None, got {crossover!r}; fix: ga.Uniform(), or ga.PerGene(your_function)"
        )
    if not callable(select) or isinstance(select, type):
        raise TypeError(f"expected a selection (fitness, n, seed) -> indices, got {select!r}; fix: ga.Tournament(4)")
    if not (bounds is None or isinstance(bounds, Bounds)):
        raise TypeError(f"expected Bounds or None, got {bounds!r}; fix: ga.Bounds({{'*': (-1, 1)}})")


def check_elite(size: int, elite: int) -> None:
    """Raise `ValueError` unless at least one slot is left for a child, `TypeError` unless `elite` is an integer."""
    if not isinstance(whole(elite), int):
        raise TypeError(
            f"expected an integer as elite, got {type(elite).__name__} {elite!r}; fix: pass a number of members"
        )
    if not 0 <= elite < size:
        raise ValueError(
            f"expected elite in 0 .. {size - 1}, got {elite}; fix: keep fewer members, to leave a slot for a child"
        )


def check_suitable(pop: Any, operators: Operators) -> None:
    """Raise `ValueError` for operators that do not suit the population's leaves, or leaves that cannot evolve."""
    if (kind := breeding_of(pop)) is not None:
        return kind.check(pop, operators.mutate, operators.crossover, operators.bounds)
    one, pop = np.zeros(1, np.int32), host_of(pop)
    for name in _dtypes(pop):
        dtype_loop(pop, name, operators, Family(one, one, one, one), seeds(0, 1))


def _select(select: Any, scores: Array, n: int, seed: int) -> Array:
    """The indices that a selection returns, checked."""
    chosen = as_array(select(scores.copy(), n, seed), "select")
    integers = chosen.shape == (n,) and chosen.dtype.kind in "iu"
    if not integers or chosen.min() < 0 or chosen.max() >= len(scores):
        got = f"{chosen.min()} .. {chosen.max()}" if integers else f"{chosen.dtype} of shape {chosen.shape}"
        raise ValueError(
            f"expected {n} indices of members from select, got {got}; "
            f"fix: return that many integers in 0 .. {len(scores) - 1}"
        )
    return chosen.astype(np.int64)


def _dtypes(pop: Population) -> list[str]:
    """The dtypes of the leaves that train. Raises `ValueError` for a dtype that cannot be computed with."""

    def find() -> list[str]:
        leaves = [leaf for leaf in pop.layout.homes if leaf.trainable and leaf.size]
        refuse_other_dtypes(leaves, "evolve")
        return list(dict.fromkeys(leaf.dtype.name for leaf in leaves))

    return pop.cached("dtypes that evolve", find)
