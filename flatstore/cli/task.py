"""What a task of `flatstore evolve` has to provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from flatstore.layout import Array, Layout
from flatstore.noise import Normal
from flatstore.store import Population, Store


@dataclass(frozen=True)
class Settings:
    """The options of a run that the user may choose."""

    population: int
    generations: int
    hidden: int
    seed: int
    workers: int | str = 0
    """How many processes evaluate the members, one by one; 0 for none: all members at once, here. `ray`, or
    `ray:address`, for the workers of a cluster."""

    @property
    def on_ray(self) -> bool:
        """Whether members are evaluated on a cluster of Ray."""
        return isinstance(self.workers, str)


class Task(Protocol):
    """A network, its fitness, and how the network that was found is judged."""

    TITLE: ClassVar[str]
    """The name of the task."""
    NEEDS: ClassVar[str]
    """The optional library that brings the data or the environment."""
    AXIS: ClassVar[str]
    """The quantity that `measure` gives, with its unit, for the axis of the curve."""
    UNIT: ClassVar[str]
    """The unit, with a space before it."""
    FITNESS: ClassVar[str | None]
    """The name of the mean fitness in the curve; None if it is not in that unit."""

    layout: Layout
    """Where the parameters of the network live."""
    initial: Normal
    """The noise that a new network is drawn from."""

    def __init__(self, settings: Settings) -> None: ...

    def evaluate(self, stacked: Any, generation: int) -> Array:
        """The fitness of the members of a lent population, shape (members,)."""
        ...

    @property
    def evaluate_one(self) -> Callable[[Store, int], float] | None:
        """The function by which workers evaluate a member, `(member, generation) -> fitness`; None if there is none."""
        ...

    def choose(self, pop: Population) -> int:
        """The member that does best, judged without the data or episodes kept for the report."""
        ...

    def measure(self, champion: Store, number: int) -> dict[str, float]:
        """How well the champion of generation `number` does: numbers in the unit, by name."""
        ...

    def report(self, champion: Store) -> tuple[str, str]:
        """The result of the run as (name, text)."""
        ...

    @property
    def temporaries(self) -> int:
        """The most bytes of temporary memory that a compiled program took to evaluate the population."""
        ...
