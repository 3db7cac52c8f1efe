"""What a kind of store brings along for the verbs that move it, in the place of the compiled loops of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flatstore.layout import Array


class Moves(Protocol):
    """What a kind of store does instead of the compiled loops of the host."""

    def zeros(self, store: Any, size: int | None = None) -> Any:
        """A store of zeros with the layout and the indices of another, beside it; or a population of so many."""
        ...

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        ...

    def check_values(self, store: Any, noise: Any) -> None:
        """Raise unless the parameters of a centre are finite and, if there is a noise, on its grid."""
        ...

    def snap(self, store: Any, noise: Any) -> None:
        """Do what `es.snap` does."""
        ...

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> Any:
        """Do what `es.perturb` does."""
        ...

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> Any:
        """Do what `es.update` does."""
        ...

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Do what `es.sample` does."""
        ...

    def optimise(
        self, rule: Any, stores: Sequence[Any], settings: Sequence[float], keys: Array, then: Callable[[], object]
    ) -> None:
        """Move a store along a gradient by a rule, such as that of Adam, and call `then`.

        `stores` are the store, the gradient and the states of the rule; the keys are those of the random rounding.
        """
        ...


class Step(Protocol):
    """A generation that is chosen, but not yet born."""

    @property
    def parents(self) -> Array:
        """For each slot the two members that it comes from, shape (size, 2)."""
        ...

    @property
    def kept(self) -> Array:
        """Which slots keep their members, shape (size,), bool."""
        ...

    def run(self, then: Callable[[], object] = bool) -> None:
        """Write the children over the members that they replace, and call `then`: uninterrupted."""
        ...


class Breeding(Protocol):
    """What a kind of population does instead of the compiled loops of the host."""

    def check(self, pop: Any, mutate: Any, crossover: Any, bounds: Any) -> None:
        """Raise unless operators suit the leaves of a population."""
        ...

    def plan(self, pop: Any, fitness: Any, **how: Any) -> Step:
        """Plan what `ga.step` does; it accepts the same arguments."""
        ...


def moves_of(store: Any) -> Moves | None:
    """The moves of a store of another kind than the host's; None for one on the host, and for what is no store."""
    return getattr(store, "moves", None)


def breeding_of(pop: Any) -> Breeding | None:
    """The breeding of a population of another kind than the host's; None for one on the host."""
    return getattr(pop, "breeding", None)
