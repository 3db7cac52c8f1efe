"""Selection: which members become parents. Any callable `(fitness, n, seed) -> n indices` will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flatstore.checks import real, whole
from flatstore.evaluation import best_first
from flatstore.layout import Array
from flatstore.threads import rounded_to_nearest

_searchsorted: Any = np.searchsorted


@dataclass(frozen=True)
class Tournament:
    """Each parent is the best of `k` members drawn with replacement: the larger `k`, the stronger the selection."""

    k: int = 4

    def __post_init__(self) -> None:
        if not whole(self.k) >= 1:
            raise ValueError(
                f"expected a tournament of k >= 1 members, got {self.k!r}; fix: pass k=2 for the mildest selection"
            )
        object.__setattr__(self, "k", whole(self.k))

    def __call__(self, fitness: Array, n: int, seed: int) -> Array:
        """The indices of `n` parents, shape (n,)."""
        rank = np.empty(len(fitness), np.int64)
        rank[best_first(fitness)] = np.arange(len(fitness))
        rng = np.random.Generator(np.random.Philox(seed))
        winners = rng.integers(len(fitness), size=n)
        for _ in range(self.k - 1):
            rivals = rng.integers(len(fitness), size=n)
            winners = np.where(rank[rivals] < rank[winners], rivals, winners)
        return winners


@dataclass(frozen=True)
class Truncation:
    """Each parent is drawn evenly from the best `share` of the members (at least one)."""

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < real(self.share) <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.share!r}; fix: pass 0.5 for the better half")
        object.__setattr__(self, "share", real(self.share))

    @rounded_to_nearest
    def __call__(self, fitness: Array, n: int, seed: int) -> Array:
        """The indices of `n` parents, shape (n,)."""
        parents = best_first(fitness)[: max(1, round(self.share * len(fitness)))]
        return np.random.Generator(np.random.Philox(seed)).choice(parents, n)


@dataclass(frozen=True)
class Universal:
    """Stochastic universal sampling: members share a wheel, which is spun once and read at n equal distances.

    A member is chosen its expected number of times, rounded down or up. Its share of the wheel goes by rank (linear:
    the best has `pressure` times the mean share, 1 .. 2, and the worst 2 - `pressure`), or by="fitness" in proportion
    to it. NaN has no share. The n indices come in random order.

    Source: Baker, *Reducing Bias and Inefficiency in the Selection Algorithm*, ICGA 1987.

    Raises `ValueError` for a pressure outside [1, 2]; with by="fitness" also, when it is called, for fitness that is
    negative, infinite or all zero.
    """

    by: Literal["rank", "fitness"] = "rank"
    pressure: float = 2.0

    def __post_init__(self) -> None:
        if self.by not in ("rank", "fitness"):
            raise ValueError(
                f"expected by='rank' or 'fitness', got {self.by!r}; fix: pass by='rank', which accepts any fitness"
            )
        if not 1 <= real(self.pressure) <= 2:
            raise ValueError(
                f"expected a pressure in [1, 2], got {self.pressure!r}; fix: pass 2 for the strongest selection"
            )
        object.__setattr__(self, "pressure", real(self.pressure))

    @rounded_to_nearest
    def __call__(self, fitness: Array, n: int, seed: int) -> Array:
        """The indices of `n` parents, shape (n,)."""
        known = ~np.isnan(fitness)
        if self.by == "fitness":
            share = np.where(known, fitness, 0.0)
            if (share < 0).any() or not 0 < share.sum() < np.inf:
                raise ValueError(
                    "expected fitness >= 0, finite and not all zero, to select in proportion to it, got "
                    f"{np.nanmin(fitness)} .. {np.nanmax(fitness)}; fix: pass by='rank', or add a constant to it"
                )
        else:
            share = np.zeros(len(fitness))
            order = best_first(fitness)[: known.sum()]
            share[order] = np.linspace(self.pressure, 2 - self.pressure, len(order)) if len(order) > 1 else 1.0
        rng = np.random.Generator(np.random.Philox(seed))
        wheel = np.cumsum(share)
        pointers = (np.arange(n) + rng.random()) * (wheel[-1] / n)
        chosen = _searchsorted(wheel, pointers, side="right")
        last = np.flatnonzero(share)[-1]  # a pointer may be rounded up to the end of the wheel
        return rng.permutation(np.minimum(chosen, last))
