"""Records of generations, as `evolve` hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flatstore.evaluation import as_fitness, best_first
from flatstore.layout import Array


@dataclass(frozen=True, eq=False, repr=False)
class Generation:
    """A record of the generation that the population holds. Its arrays are read-only, and it can be pickled.

    Raises `ValueError` for a fitness that is no vector of real numbers, or that float64 would round.
    """

    number: int
    """The number of the generation, counted from 0."""
    fitness: Array
    """The fitness of each member, shape (size,), float64: maximised, NaN is worst."""
    parents: Array | None = None
    """For each member the two of the generation before that it came from, shape (size, 2); None if not known."""
    kept: Array | None = None
    """Which members were kept from the generation before, shape (size,), bool; None if not known."""

    def __post_init__(self) -> None:
        for name, read in (("fitness", as_fitness), ("parents", np.array), ("kept", np.array)):
            value = getattr(self, name)
            if value is not None:
                array = read(value)
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    def __reduce__(self) -> Any:
        return Generation, (self.number, self.fitness, self.parents, self.kept)  # an array unpickles writeable

    @property
    def best(self) -> int:
        """The member with the highest fitness, the first of equals: `pop[record.best]` is the champion."""
        return int(best_first(self.fitness)[0])

    @property
    def max(self) -> float:
        """The highest fitness."""
        return float(self.fitness[self.best])

    @property
    def mean(self) -> float:
        """The mean fitness, without members whose fitness is NaN."""
        with np.errstate(invalid="ignore"):  # of opposite infinities
            return float(np.nanmean(self.fitness))

    def __repr__(self) -> str:
        """One line, as for a log."""
        return f"generation {self.number}: best {self.max:.6g} (member {self.best}), mean {self.mean:.6g}"
