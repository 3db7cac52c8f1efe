"""Mutation: noise on every gene or on a few, new values for a few, or a function of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from flatstore.checks import real
from flatstore.ga.operators import GeneFunction, Operator, finite
from flatstore.kernels import compiled
from flatstore.kernels.cpu import EVERY_GENE, NO_GENE, SEGMENT, SOME_GENES, TABLE, WHOLE, mutation_loop
from flatstore.layout import Array, Layout
from flatstore.noise import MUTATION, SPARSE, Noise, Normal, spans
from flatstore.threads import rounded_to_nearest


@dataclass(frozen=True, eq=False)
class Mutate(GeneFunction):
    """Your own mutation: `function(gene, scale, draw)` gives a child's new gene, and is compiled into the loop.

    `gene` is the result of crossover (float32, or float64 for a float64 leaf) and `scale` the strength for its leaf, in
    the same dtype: one number for all, or a mapping of globs to numbers, of which the first that matches counts. A leaf
    of scale 0 is left alone. `draw` is a random integer below 2 ** bits or, with a table of 2 ** bits numbers, an entry
    of it, as for `PerGene`. `Sparse(Mutate(...), rate)` changes a fraction of the genes.

    >>> import numpy as np
    >>> cauchy = np.tan(np.pi * ((np.arange(1 << 16) + 0.5) / (1 << 16) - 0.5))
    >>> heavy = Mutate(lambda gene, scale, draw: gene + scale * draw, table=cauchy, scale={"*/bias": 0, "*": 0.01})

    The function may also be called on zeros that are not genes, and with the scale 0; the results are dropped.
    Variables outside the function keep the values that they had when it was compiled.

    Raises the errors of `PerGene`, and those of `fs.Normal` for its scales.
    """

    scale: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 1.0

    arguments: ClassVar[str] = "gene, scale, draw"

    def __post_init__(self) -> None:
        """Check all that is given, and freeze the scales."""
        super().__post_init__()
        object.__setattr__(self, "scale", Normal(self.scale).scale)


@dataclass(frozen=True)
class Sparse:
    """Noise, or a `Mutate`, on a fraction of the genes: each with probability `rate`, independently of the others.

    The distance from one changed gene to the next is drawn (it is geometric), so that nothing is drawn for the genes in
    between. Probabilities are multiples of 2 ** -32.

    >>> import flatstore as fs
    >>> few = Sparse(fs.Normal(0.02), rate=0.01)

    Raises `ValueError` for a rate outside (0, 1], `TypeError` unless `noise` is a noise or a `Mutate`.
    """

    noise: Noise | Mutate
    rate: float

    def __post_init__(self) -> None:
        if not isinstance(self.noise, (Noise, Mutate)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"expected noise like fs.Normal(0.02), got {self.noise!r}; fix: pass Sparse(fs.Normal(0.02), 0.01)"
            )
        _check_rate(self.rate)
        object.__setattr__(self, "rate", real(self.rate))  # what it was given as may have no hash


@dataclass(frozen=True)
class Reset:
    """A fraction of the genes is replaced by numbers drawn evenly from 65,536 between `low` and `high`.

    Raises `ValueError` for a rate outside (0, 1], and for bounds that are reversed or not finite.
    """

    low: float
    high: float
    rate: float = 0.01

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not -math.inf < real(self.low) <= real(self.high) < math.inf:
            raise ValueError(
                f"expected finite bounds low <= high, got {self.low!r} and {self.high!r}; "
                "fix: pass finite bounds in order, such as Reset(-1, 1)"
            )
        for name in ("low", "high", "rate"):
            object.__setattr__(self, name, real(getattr(self, name)))


Mutation = Noise | Sparse | Reset | Mutate


@compiled
def _added(gene: Any, scale: Any, draw: Any) -> Any:
    return gene + scale * draw


@compiled
def _drawn_anew(gene: Any, scale: Any, draw: Any) -> Any:
    return draw


@lru_cache(maxsize=16)
@rounded_to_nearest
def mutating(mutation: Mutation | None, layout: Layout, dtype: Any) -> tuple[Operator, tuple[Array, Array]]:
    """The operator for genes that are computed with in a dtype, and their scales: one for each range of the index.

    Raises `ValueError` for scales or values that do not fit the layout or the dtype.
    """
    rate = mutation.rate if isinstance(mutation, (Sparse, Reset)) else None
    each = mutation.noise if isinstance(mutation, Sparse) else mutation
    loop, kind, width, values, scaled = mutation_loop(_added, WHOLE), MUTATION, 16, np.empty(0, dtype), None
    parts = 1.0
    if isinstance(each, Mutate):
        loop, values = each.within(mutation_loop, dtype)
        width, scaled = each.bits, Normal(each.scale)  # which knows what is a scale, and whose it is
        finite(spans(layout, scaled)[1], dtype, "scales")
    elif isinstance(each, Reset):
        loop = mutation_loop(_drawn_anew, TABLE)
        values = finite(reset_values(each), dtype, f"values of {each}")
    elif each is not None:
        loop = mutation_loop(_added, WHOLE, each.width)
        kind, width, values, scaled, parts = each.kind, each.width, (each.whole + 0.5).astype(dtype), each, each.parts
        finite(spans(layout, each)[1] * each.largest, dtype, f"draws of {each}")
    which = NO_GENE if each is None else EVERY_GENE if rate is None else SOME_GENES
    data = (which, kind if rate is None else SPARSE, width, values, distances(1.0 if rate is None else rate))
    ranges, scales = spans(layout, scaled)
    return Operator(loop, data), (ranges, (scales / parts).astype(dtype))


def reset_values(reset: Reset) -> Array:
    """The numbers that `Reset` draws from, float64."""
    even = (np.arange(1 << 16) + 0.5) / (1 << 16)
    return reset.low * (1 - even) + reset.high * even


@lru_cache(maxsize=8)
@rounded_to_nearest
def distances(rate: float) -> tuple[Array, Array, int]:
    """What draws the distance to the next changed gene: thresholds, a guide to them, and blocks to draw at first.

    A threshold is the chance, times 2 ** 32, that at most g genes are passed over, for g below a segment's length.
    Entry b of the guide is how many thresholds are at most b * 2 ** 24: where a word with that top byte begins to look.
    Source: Chen and Asau, *On Generating Random Variates from an Empirical Distribution*, AIIE Transactions 1974.
    """
    survive = (1 - rate) ** np.arange(1, SEGMENT + 1)
    thresholds = np.round(2.0**32 * (1 - survive)).astype(np.uint64)
    guide = np.searchsorted(thresholds, np.arange(256, dtype=np.uint64) << np.uint64(24), side="right")
    # Two genes from a block: enough blocks for the mean number of changed genes and one standard deviation more.
    mean = 1 + SEGMENT * rate
    return thresholds, guide, math.ceil(min(mean + math.sqrt(mean), 1 + SEGMENT) / 2)


def _check_rate(rate: float) -> None:
    if not 0 < real(rate) <= 1:
        raise ValueError(f"expected a rate in (0, 1], got {rate!r}; fix: pass 0.01 to change one gene in a hundred")
