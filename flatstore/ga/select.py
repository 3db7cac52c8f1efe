"""Selection: which members become parents. Any callable `(fitness, n, seed) -> n indices` will do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatstore.arrays import Array


def best_first(fitness: Array) -> Array:
    """The members from best to worst: fitness is maximised, NaN is worst, equals keep their order."""
    unknown = np.isnan(fitness)
    return np.lexsort((np.where(unknown, 0, -fitness), unknown))


@dataclass(frozen=True)
class Tournament:
    """Each parent is the best of `k` members drawn with replacement. The larger `k`, the harder the pressure."""

    k: int = 4

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"expected a tournament of k >= 1 members, got {self.k}; fix: k=2 is the mildest")

    def __call__(self, fitness: Array, n: int, seed: int) -> Array:
        """`n` indices, shape (n,)."""
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
        if not 0 < self.share <= 1:
            raise ValueError(f"expected a share in (0, 1], got {self.share}; fix: 0.5 is the better half")

    def __call__(self, fitness: Array, n: int, seed: int) -> Array:
        """`n` indices, shape (n,)."""
        parents = best_first(fitness)[: max(1, round(self.share * len(fitness)))]
        return np.random.Generator(np.random.Philox(seed)).choice(parents, n)
