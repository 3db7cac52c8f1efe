"""Who begets whom: decided outside of `jit`, from the fitness of all members."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flatstore.evaluation import as_fitness, refuse_all_nan
from flatstore.ga.breeding import check_elite, check_operators, parents_of
from flatstore.ga.crossover import Crossover, Points, Uniform
from flatstore.ga.selection import Tournament
from flatstore.layout import Array, Layout
from flatstore.noise import Seed
from flatstore.store import Views


class Births(NamedTuple):
    """The children of a generation, as arrays that may be passed into `jit`."""

    keys: Array
    """The two words of the seed of each child, shape (children, 2), uint32."""
    slots: Array
    """The members that the children replace, ascending, int32."""
    mothers: Array
    """The first parent of each child, int32."""
    fathers: Array
    """The second parent of each child, int32."""
    cuts: Array
    """Where `Points` cuts the genes of each child: words of indices, shape (children, k, 2), uint32."""


def births(
    layout: Layout | Views,
    fitness: Any,
    *,
    seed: Seed,
    select: Any = Tournament(),  # noqa: B008 (a frozen value)
    crossover: Crossover | None = Uniform(),  # noqa: B008 (a frozen value)
    elite: int = 1,
) -> Births:
    """The parents of the next generation, as `ga.step` chooses them: what `ga.stepped` takes.

    Called outside of `jit`. For one number of members and of `elite` the arrays have the same shapes, so that nothing
    is compiled again.

    Args:
        layout: that of one member; or the population.
        fitness: a real number for each member, maximised; NaN is worst.
        seed: a non-negative integer or several, such as (run, generation).
        select: `(fitness, n, seed) -> n indices`, called once for both parents of all children.
        crossover: the one that `stepped` is given.
        elite: the number of members that are kept.

    Raises the errors of `ga.step` for fitness, selection, crossover and elite.
    """
    layout = layout.layout if isinstance(layout, Views) else layout
    scores = as_fitness(fitness)
    refuse_all_nan(scores)
    check_operators(None, select, crossover, None)
    check_elite(len(scores), elite)
    slots, (mothers, fathers), keys = parents_of(scores, seed, select, elite)
    cuts = np.zeros((len(slots), 0), np.int64)
    if isinstance(crossover, Points):
        cuts = crossover.crossing(layout, keys, np.float32).data
    return Births(_words(keys), slots, mothers.astype(np.int32), fathers.astype(np.int32), _words(cuts))


def _words(numbers: Array) -> Array:
    """The low and the high word of each number, as a last axis."""
    wide = numbers.astype(np.uint64)
    return np.stack([wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)], -1).astype(np.uint32)
