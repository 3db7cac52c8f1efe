"""What a kind of store brings along for the verbs that move it, in the place of the compiled loops of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Moves(Protocol):
    """What a kind of store does instead of the compiled loops of the host."""

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        ...

    def snap(self, store: Any, noise: Any) -> None:
        """Do what `es.snap` does."""
        ...

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> None:
        """Do what `es.perturb` does."""
        ...

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> None:
        """Do what `es.update` does."""
        ...

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Do what `es.sample` does."""
        ...
