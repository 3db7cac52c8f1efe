"""Mutation: noise on every gene, noise on a few, or new values for a few."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flatstore.kernels.cpu import DENSE, NONE, RESET, SEGMENT, SPARSE
from flatstore.layout import Array, Layout
from flatstore.noise import SPARSE as SPARSE_DRAWS
from flatstore.noise import Noise, spans


@dataclass(frozen=True)
class Sparse:
    """Noise on a fraction of the genes: each is touched with probability `rate`, independently of the others.

    From one touched gene to the next it jumps (a geometric draw), so that nothing is drawn for those between.
    Probabilities are multiples of 2 ** -32.

    >>> import flatstore as fs
    >>> few = Sparse(fs.Normal(0.02), rate=0.01)

    Raises `ValueError` for a rate outside (0, 1], `TypeError` for what is no noise.
    """

    noise: Noise
    rate: float

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Noise):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"expected noise like fs.Normal(0.02), got {self.noise!r}; fix: Sparse(fs.Normal(0.02), 0.01)"
            )
        _check_rate(self.rate)


@dataclass(frozen=True)
class Reset:
    """A fraction of the genes is drawn anew, evenly between `low` and `high` (65,536 values).

    Raises `ValueError` for a rate outside (0, 1], and for bounds that are reversed or not finite.
    """

    low: float
    high: float
    rate: float = 0.01

    def __post_init__(self) -> None:
        _check_rate(self.rate)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"expected bounds low <= high, got {self.low} and {self.high}; fix: like Reset(-1, 1)")


Mutation = Noise | Sparse | Reset


class Plan(NamedTuple):
    """What a mutation hands to the compiled loop, for genes of one dtype."""

    how: tuple[int, int, int]
    """What is done, the kind of draw, and its bits."""
    table: Array
    """The values of a draw."""
    jumps: tuple[Array, Array, int]
    """Thresholds of a jump's length, where to begin to look among them, and how many blocks a segment mostly needs."""
    spans: tuple[Array, Array]
    """First indices and ends, shape (spans, 2), and the number that a draw is multiplied by in each."""


def plan(mutation: Mutation | None, layout: Layout, dtype: Any) -> Plan:
    """The plan of a mutation for the leaves of a layout. Raises `ValueError` as `Noise.check` does."""
    noise = mutation.noise if isinstance(mutation, Sparse) else mutation
    jumps = _jumps(mutation.rate) if isinstance(mutation, (Sparse, Reset)) else _jumps(1.0)
    if noise is None:
        return Plan((NONE, 0, 16), np.empty(0, dtype), jumps, spans(layout, None))
    if isinstance(noise, Reset):
        even = (np.arange(1 << 16) + 0.5) / (1 << 16)
        values = finite(noise.low * (1 - even) + noise.high * even, dtype, f"values of {noise}")
        return Plan((RESET, SPARSE_DRAWS, 16), values, jumps, spans(layout, None))
    mode, kind = (SPARSE, SPARSE_DRAWS) if isinstance(mutation, Sparse) else (DENSE, noise.kind)
    bounds, scales = spans(layout, noise)
    finite(scales * float(np.abs(noise.values).max()), dtype, f"draws of {noise}")
    return Plan((mode, kind, noise.width), noise.values.astype(dtype), jumps, (bounds, scales))


def finite(values: Array, dtype: Any, what: str) -> Array:
    """Values in a dtype that is computed with. Raises `ValueError` if they do not fit it."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"expected {what} that are finite in {np.dtype(dtype)}, got others; fix: smaller numbers")
    return cast


@lru_cache(maxsize=8)
def _jumps(rate: float) -> tuple[Array, Array, int]:
    """The chance, times 2 ** 32, that a jump passes at most g genes, for g below a segment's length; and a guide.

    Entry b of the guide is how many thresholds are at most b * 2 ** 24: where a word with that top byte begins to look.
    Source: Chen and Asau, *On Generating Random Variates from an Empirical Distribution*, AIIE Transactions 1974.
    """
    survive = (1 - rate) ** np.arange(1, SEGMENT + 1)
    thresholds = np.round(2.0**32 * (1 - survive)).astype(np.uint64)
    guide = np.searchsorted(thresholds, np.arange(256, dtype=np.uint64) << np.uint64(24), side="right")
    # Two jumps from a block; as many blocks as do for the mean number of jumps and a deviation more.
    mean = 1 + SEGMENT * rate
    return thresholds, guide, math.ceil(min(mean + math.sqrt(mean), 1 + SEGMENT) / 2)


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"expected a rate in (0, 1], got {rate}; fix: 0.01 touches a gene in a hundred")
