"""The operators of a generation as kernels on a card take them: numbers and tables for each leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flatstore.ga.bounds import Bounds, limits
from flatstore.ga.crossover import Blend, Crossover, Exchange, Points, Uniform, units_of
from flatstore.ga.mutation import Mutate, Mutation, Reset, Sparse, mutating
from flatstore.kernels.cpu import CLIP, STORAGE, UNBOUNDED
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import CROSSOVER, words

MOTHER, EITHER, POINTS, BLEND, UNIT = range(5)
NOTHING, NOISE, SOME_NOISE, SOME_NEW = range(4)
INSIDE, CLIPPED, REFLECTED = range(3)
"""As in `flatstore/kernels/triton/generation.py`, which only a machine with Triton can import."""


class Crossing(NamedTuple):
    """A crossover of some children."""

    way: Callable[[Leaf], int]
    """How the genes of a leaf come from the parents."""
    cuts: Array
    """Where the genes of each child are cut, shape (children, points), int64."""
    places: Array
    """Places between the parents, by the number that is drawn: float64, or one number if there are none."""
    of_mother: Callable[[Leaf], Array]
    """Whether a leaf moves as the mother's, for each child: uint8."""


class LeafChange(NamedTuple):
    """What is done to the genes of a leaf after crossover."""

    way: int
    scale: float
    table: Array
    """What a drawn number stands for, in the dtype that is computed with."""
    thresholds: Array
    """What draws the distance to the next changed gene, int64."""
    kind: int
    width: int
    outside: int
    low: float
    high: float
    name: Any
    """What tells one change from another, but for its strength."""


def crossing_of(crossover: Crossover | None, layout: Layout, keys: Array) -> Crossing:
    """A crossover for children of some seeds. Raises `TypeError` for one of your own."""
    no_cuts, nowhere, none = np.zeros((len(keys), 0), np.int64), np.zeros(1), np.zeros(1, np.uint8)

    def always(way: int, cuts: Array = no_cuts, places: Array = nowhere) -> Crossing:
        def way_of(leaf: Leaf) -> int:
            return way

        def of_no_mother(leaf: Leaf) -> Array:
            return none

        return Crossing(way_of, cuts, places, of_no_mother)

    if crossover is None:
        return always(MOTHER)
    if isinstance(crossover, Uniform):
        return always(EITHER)
    if isinstance(crossover, Points):
        return always(POINTS, crossover.crossing(layout, keys, np.float32).data)
    if isinstance(crossover, Blend):
        table: Any = crossover.per_gene.table
        return always(BLEND, places=np.asarray(table, np.float64))
    if isinstance(crossover, Exchange):
        units = units_of(layout, crossover)

        def way(leaf: Leaf) -> int:
            return UNIT if units[leaf.path] >= 0 else MOTHER

        def of_mother(leaf: Leaf) -> Array:
            unit = units[leaf.path]
            return _bits(keys, unit) if unit >= 0 else none

        return Crossing(way, no_cuts, nowhere, of_mother)
    raise _of_ones_own(crossover)


def change_of(mutation: Mutation | None, bounds: Bounds | None, layout: Layout, leaf: Leaf) -> LeafChange:
    """What is done to the genes of a leaf. Raises `TypeError` for a mutation of your own."""
    if isinstance(mutation.noise if isinstance(mutation, Sparse) else mutation, Mutate):
        raise _of_ones_own(mutation)
    real = STORAGE[leaf.dtype.name][1]
    operator, (ranges, scales) = mutating(mutation, layout, real)
    _, kind, width, table, (thresholds, _, _) = operator.data
    scale = float(scales[np.searchsorted(ranges[:, 1], leaf.index, side="right")])
    way = NOTHING
    if mutation is not None and scale:
        way = SOME_NEW if isinstance(mutation, Reset) else SOME_NOISE if isinstance(mutation, Sparse) else NOISE
    code, within, lows, highs = limits(bounds, layout, leaf.dtype.name)
    outside, low, high = INSIDE, 0.0, 0.0
    at = int(np.searchsorted(within[:, 1], leaf.index, side="right"))
    if code != UNBOUNDED and at < len(within) and within[at, 0] <= leaf.index:
        outside, low, high = CLIPPED if code == CLIP else REFLECTED, float(lows[at]), float(highs[at])
    return LeafChange(way, scale, table, thresholds.astype(np.int64), kind, width, outside, low, high, mutation)


def _bits(keys: Array, unit: int) -> Array:
    """The bit of a unit, for each child."""
    word = words(CROSSOVER, keys, unit // 128, unit // 128 + 1)[:, 0, unit % 128 // 32]
    return (word >> np.uint32(unit % 32) & np.uint32(1)).astype(np.uint8)


def _of_ones_own(operator: Any) -> TypeError:
    return TypeError(
        f"expected an operator of this package on a card, got {operator!r}; "
        "fix: evolve on the host, or on a device of JAX, where functions of your own are compiled"
    )
