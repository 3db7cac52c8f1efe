"""Bounds: the range in which the genes of children stay, leaf by leaf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from flatstore.checks import real
from flatstore.kernels.cpu import CLIP, REFLECT, STORAGE, UNBOUNDED
from flatstore.layout import Array, Layout, Leaf
from flatstore.threads import rounded_to_nearest
from flatstore.trees import matcher, refuse_idle_glob

Pairs = Mapping[str, tuple[float, float]] | tuple[tuple[str, tuple[float, float]], ...]


@dataclass(frozen=True)
class Bounds:
    """The range in which the genes of children stay: a pair (low, high) for each glob over the paths of leaves.

    The first glob that matches a leaf counts; a leaf that none matches has no bounds. A gene that crossover and
    mutation have brought outside is set to the bound that it is beyond (outside="clip"), or reflected at the bounds in
    turn, as often as it takes (outside="reflect"). Members that are kept do not change, wherever they are.

    >>> Bounds({"*/kernel": (-1, 1), "*": (-5, 5)})
    Bounds(within=(('*/kernel', (-1.0, 1.0)), ('*', (-5.0, 5.0))), outside='clip')

    A pair with -inf or inf has one bound, at which genes are clipped or reflected. An infinite gene goes to the bound
    that it is beyond in both ways; reflected at a single bound, it becomes the other infinity. NaN stays NaN: it is
    beyond no bound, and should be seen in the fitness. In each leaf's dtype the bounds are the outermost numbers
    between those that are given, so that rounding never leads beyond them.

    Raises `TypeError` unless there is a glob with each pair; `ValueError` for bounds that are reversed, NaN, or
    infinite on the wrong side, and for another `outside`; in a step for a glob that matches nothing that trains, and
    for bounds between which a leaf's dtype has no number.
    """

    within: Pairs
    outside: Literal["clip", "reflect"] = "clip"

    def __post_init__(self) -> None:
        """Check the bounds, and freeze a mapping as (glob, pair) pairs: their order counts."""
        given: Any = self.within.items() if isinstance(self.within, Mapping) else self.within
        pairs: list[Any] = list(given) if hasattr(given, "__iter__") else [given]
        if not all(_has_glob(pair) for pair in pairs):
            raise TypeError(
                f"expected a pair (low, high) for each glob, got {self.within!r}; fix: Bounds({{'*': (-1, 1)}})"
            )
        object.__setattr__(self, "within", tuple((glob, _pair(glob, pair)) for glob, pair in pairs))
        if not self.within:
            raise ValueError(
                "expected bounds for a glob, got none; fix: pass a range for each, as in Bounds({'*': (-1, 1)})"
            )
        if self.outside not in ("clip", "reflect"):
            raise ValueError(
                f"expected outside='clip' or 'reflect', got {self.outside!r}; fix: pass 'clip', the default"
            )

    @property
    def pairs(self) -> tuple[tuple[str, tuple[float, float]], ...]:
        """The pairs (glob, (low, high)), in the order in which they were given."""
        return self.within if isinstance(self.within, tuple) else tuple(self.within.items())


def _has_glob(pair: Any) -> bool:
    return isinstance(pair, (tuple, list)) and len(cast(Any, pair)) == 2 and isinstance(pair[0], str)


def _pair(glob: str, pair: Any) -> tuple[float, float]:
    given: list[Any] = list(pair) if hasattr(pair, "__iter__") else []
    numbers = [real(number) for number in given]
    odd = any(math.isnan(number) and not isinstance(x, float) for number, x in zip(numbers, given, strict=True))
    if len(numbers) != 2 or odd:
        raise ValueError(f"{glob!r}: expected bounds (low, high), got {pair!r}; fix: pass a pair such as (-1, 1)")
    low, high = numbers
    if not low <= high or low == math.inf or high == -math.inf:  # NaN is in no order
        raise ValueError(
            f"{glob!r}: expected bounds low <= high, got {low} and {high}; fix: pass a pair such as (-1, 1)"
        )
    return low, high


class Limits(NamedTuple):
    """Bounds as the compiled loop takes them, for the leaves of one dtype."""

    outside: int
    """The code of what is done with a gene outside: clip, reflect, or nothing."""
    ranges: Array
    """First indices and ends, shape (ranges, 2)."""
    lows: Array
    """The lower bound in each range, in the dtype that is computed with."""
    highs: Array
    """The upper bound in each range."""


@lru_cache(maxsize=32)
@rounded_to_nearest
def limits(bounds: Bounds | None, layout: Layout, dtype: str) -> Limits:
    """The bounds of the leaves of a dtype that train. Raises `ValueError` as `Bounds` says."""
    pairs = () if bounds is None else bounds.pairs
    trained = [leaf for leaf in layout.homes if leaf.trainable]
    for glob, _ in pairs:
        refuse_idle_glob("bounds", glob, [leaf.path for leaf in trained])
    ranges: list[list[int]] = []
    found: list[tuple[float, float]] = []
    for leaf in (leaf for leaf in trained if leaf.dtype.name == dtype and leaf.size):
        pair = next((pair for glob, pair in pairs if matcher(glob)(leaf.path)), None)
        if pair is None:
            continue
        inner = _inward(leaf, pair)
        if found and found[-1] == inner and ranges[-1][1] == leaf.index:
            ranges[-1][1] += leaf.size
        else:
            ranges.append([leaf.index, leaf.index + leaf.size])
            found.append(inner)
    lows, highs = np.array(found, STORAGE[dtype][1]).reshape(-1, 2).T.copy()
    outside = UNBOUNDED if not found or bounds is None else REFLECT if bounds.outside == "reflect" else CLIP
    return Limits(outside, np.array(ranges, np.int64).reshape(-1, 2), lows, highs)


def _inward(leaf: Leaf, pair: tuple[float, float]) -> tuple[float, float]:
    """The outermost numbers of a leaf's dtype between two bounds, which no rounding to that dtype leads beyond."""
    with np.errstate(over="ignore"):
        nearest = np.array(pair).astype(leaf.dtype)
    inner = np.nextafter(nearest, np.array([math.inf, -math.inf]).astype(leaf.dtype)).astype(np.float64).tolist()
    low, high = nearest.astype(np.float64).tolist()
    low, high = inner[0] if low < pair[0] else low, inner[1] if high > pair[1] else high
    if low > high or math.inf in (low, -high):
        raise ValueError(
            f"{leaf.path!r}: expected bounds with a number of {leaf.dtype.name} between them, got {pair[0]!r} and "
            f"{pair[1]!r}; fix: pass bounds further apart, or equal to such a number"
        )
    return low, high
