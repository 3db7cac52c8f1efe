"""What a network can be evolved for, as the strategies of `flatstore evolve` see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from flatstore.layout import Array, Layout
from flatstore.noise import Normal
from flatstore.store import Population, Store


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    population: int
    generations: int
    hidden: int
    seed: int


class Task(Protocol):
    """A network, what its fitness is, and how the one that was found is judged."""

    TITLE: ClassVar[str]
    """What it is called."""
    NEEDS: ClassVar[str]
    """The optional library that brings the data or the environment."""
    AXIS: ClassVar[str]
    """What `measure` measures."""
    UNIT: ClassVar[str]
    """Its unit, with a space before it."""
    FITNESS: ClassVar[str | None]
    """What the mean fitness is called in the curve, if it is in that unit."""

    layout: Layout
    """Of the network."""
    initial: Normal
    """What a new network is drawn from."""

    def __init__(self, settings: Settings) -> None: ...

    def evaluate(self, stacked: Any, generation: int) -> Array:
        """The fitness of the members of a lent population, shape (members,)."""
        ...

    def choose(self, pop: Population) -> int:
        """The member that does best, by nothing that `measure` looks at."""
        ...

    def measure(self, champion: Store, number: int) -> dict[str, float]:
        """How the champion after `number` generations does: named numbers in the unit."""
        ...

    def report(self, champion: Store) -> tuple[str, str]:
        """What came out: (what it is called, what it is)."""
        ...

    @property
    def temporaries(self) -> int:
        """The most bytes that evaluating the population took beside it in compiled programs."""
        ...
