"""Crossover: how the genes of two parents become those of a child.

Most crossovers decide gene by gene: they are a plain function of one gene of each parent and a random number, which is
compiled into the loop. Slices (points, layers) move without a number per gene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np

from flatstore.checks import real, whole
from flatstore.ga.operators import GeneFunction, Operator
from flatstore.kernels import compiled
from flatstore.kernels.cpu import at_points, by_unit, crossover_loop, from_either
from flatstore.layout import Array, Layout
from flatstore.noise import CROSSOVER, words
from flatstore.threads import rounded_to_nearest
from flatstore.trees import Glob, matcher, path_of, refuse_idle_glob

_searchsorted: Any = np.searchsorted


class Crossover(Protocol):
    """How the genes of two parents become those of a child."""

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator for children whose seeds are `keys`, and for genes that are computed with in `dtype`."""
        ...


@dataclass(frozen=True, eq=False)
class PerGene(GeneFunction):
    """Your own crossover: `function(a, b, draw)` gives a child's gene, and is compiled into the loop.

    `a` and `b` are the genes of the two parents (float32, or float64 for a float64 leaf), `draw` is a random integer
    below 2 ** bits. With a table of 2 ** bits numbers, `draw` is an entry of it, in the genes' dtype: so any
    distribution costs one look-up. A literal such as 0.5 is float64 and slows a float32 loop: put constants in the
    table.

    The function may also be called on zeros that are not genes; the results are dropped. Variables outside the function
    keep the values that they had when it was compiled.

    >>> third = PerGene(lambda a, b, draw: a if draw < 85 else b, bits=8)      # a third of the genes from the mother

    Raises `ValueError` unless `bits` is 1, 8 or 16 (0 for no draw, 32 without a table) and the table has 2 ** bits
    numbers; `TypeError` unless the function takes three arguments and can be compiled, as no method, object or
    `functools.partial` can, and for a masked table.
    """

    arguments: ClassVar[str] = "a, b, draw"

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator: the function, compiled into a loop over genes."""
        loop, table = self.within(crossover_loop, dtype)
        return Operator(loop, (self.bits, table))


@compiled
def _between(a: Any, b: Any, draw: Any) -> Any:
    return a + draw * (b - a)


@dataclass(frozen=True)
class Uniform:
    """Each gene comes from either parent with the same probability.

    Source: Syswerda, *Uniform Crossover in Genetic Algorithms*, ICGA 1989.
    """

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator. It draws one bit per gene: 1 takes the mother's."""
        return Operator(from_either, ())


@dataclass(frozen=True)
class Blend:
    """BLX-alpha: each gene is drawn evenly from the interval between the parents', longer by `alpha` at both ends.

    alpha=0 stays between the parents, alpha=-0.5 is their mean (arithmetic crossover). A child's gene is one of 65,536
    evenly spaced numbers of the interval.
    Source: Eshelman and Schaffer, *Real-Coded Genetic Algorithms and Interval-Schemata*, FOGA 1993.

    Raises `ValueError` unless alpha is finite and >= -0.5.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not -0.5 <= real(self.alpha) < float("inf"):
            raise ValueError(
                f"expected a finite alpha >= -0.5, got {self.alpha!r}; fix: pass 0.5, as is usual, or -0.5 for the mean"
            )
        object.__setattr__(self, "alpha", real(self.alpha))

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator. It draws sixteen bits per gene: a place in the interval."""
        return self.per_gene.crossing(layout, keys, dtype)

    @property
    @rounded_to_nearest
    def per_gene(self) -> PerGene:
        """The same as a function of two genes and an entry of a table."""
        place = (np.arange(1 << 16) + 0.5) / (1 << 16)
        return PerGene(_between, 16, (1 + 2 * self.alpha) * place - self.alpha)


@dataclass(frozen=True)
class Points:
    """k-point crossover: the genes in a row, cut at `k` places; the parents take turns, from the mother on.

    A place is drawn for each cut between two genes that train, all with the same probability; two cuts at one place
    undo each other. Source: De Jong, *An Analysis of the Behavior of a Class of Genetic Adaptive Systems*, 1975.

    Raises `ValueError` for k < 1.
    """

    k: int = 2

    def __post_init__(self) -> None:
        if not whole(self.k) >= 1:
            raise ValueError(
                f"expected k >= 1 cuts, got {self.k!r}; fix: pass Points(2), or crossover=None to copy the mother"
            )
        object.__setattr__(self, "k", whole(self.k))

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator. It draws 53 bits per cut and child: a fraction of the genes that train."""
        fraction = np.empty((len(keys), self.k))
        for start in range(0, len(keys), 1 << 13):
            some = slice(start, start + (1 << 13))
            draws = words(CROSSOVER, keys[some], 0, -(-self.k // 2)).reshape(-1, 2 * -(-self.k // 2), 2)[:, : self.k]
            fraction[some] = ((draws[..., 0] >> 5) * 2.0**26 + (draws[..., 1] >> 6)) / 2**53
        homes = [leaf for leaf in layout.homes if leaf.trainable and leaf.size]
        ends = np.cumsum([leaf.size for leaf in homes])
        place = np.minimum(1 + (fraction * (ends[-1] - 1)).astype(np.int64), ends[-1])
        leaf = np.minimum(_searchsorted(ends, place, side="right"), len(homes) - 1)
        shift = np.array([home.index for home in homes]) - np.concatenate([[0], ends[:-1]])
        return Operator(at_points, np.sort(place + shift[leaf], axis=1))


@dataclass(frozen=True)
class Mother:
    """No crossover: a child starts as a copy of its first parent. `crossover=None` means this."""

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator, which cuts nowhere."""
        return Operator(at_points, np.empty((len(keys), 0), np.int64))


@dataclass(frozen=True)
class Exchange:
    """Whole leaves, or whole sub-trees, come from either parent with the same probability: layers are exchanged.

    `units` is a glob, or several, over the paths of nodes and leaves: the outermost node that matches moves as one, and
    a leaf that matches no glob stays the mother's. Without globs every leaf is a unit.

    >>> layers = Exchange("Dense_?")        # a layer's kernel and bias stay together

    Source: like the crossover of nodes of Montana and Davis, *Training Feedforward Neural Networks Using Genetic
    Algorithms*, IJCAI 1989. Raises `ValueError` in a step if a glob matches nothing that trains.
    """

    units: Glob | None = None

    def __post_init__(self) -> None:
        """Freeze several globs: their order counts."""
        if not (self.units is None or isinstance(self.units, str)):
            object.__setattr__(self, "units", tuple(self.units))

    def crossing(self, layout: Layout, keys: Array, dtype: Any) -> Operator:
        """The operator. It draws one bit per unit, in the order of the leaves."""
        return Operator(by_unit, _units(layout, self.units))


def units_of(layout: Layout, exchange: Exchange) -> dict[str, int]:
    """The unit of each home, -1 for none."""
    _, units = _units(layout, exchange.units)
    return {leaf.path: unit for leaf, unit in zip(layout.homes, units.tolist(), strict=True)}


@lru_cache(maxsize=16)
def _units(layout: Layout, globs: Glob | None) -> tuple[Array, Array]:
    """The first index of each leaf (and the end of the last one), and the unit of each leaf, -1 for none."""
    homes = layout.homes
    numbers: dict[Any, int] = {}
    units: list[int] = []
    if globs is not None:
        prefixes = {
            path_of(leaf.key_path[: n + 1]) for leaf in homes if leaf.trainable for n in range(len(leaf.key_path))
        }
        refuse_idle_glob("units", globs, prefixes)
    matches = None if globs is None else matcher(globs)
    for leaf in homes:
        names = [path_of(leaf.key_path[: n + 1]) for n in range(len(leaf.key_path))] or [leaf.path]
        unit = leaf.path if matches is None else next(filter(matches, names), None)
        units.append(-1 if unit is None or not leaf.trainable else numbers.setdefault(unit, len(numbers)))
    begins = [leaf.index for leaf in homes] + [homes[-1].index + homes[-1].size]
    return np.array(begins, np.int64), np.array(units, np.int64)
