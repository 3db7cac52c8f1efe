"""Stores of torch in host memory: the compiled loops of the host go over torch's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatstore.es.grid import snap
from flatstore.es.groups import check_movable
from flatstore.es.perturbing import perturb
from flatstore.es.sampling import sample
from flatstore.es.updating import update
from flatstore.store import OnTorch, host_of


class HostMoves:
    """The moves of a `TorchStore` in host memory."""

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        check_movable(host_of(store), noise)

    def snap(self, store: Any, noise: Any) -> None:
        """Do what `es.snap` does."""
        snap(host_of(store), noise)

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> Any:
        """Do what `es.perturb` does."""
        return perturb(host_of(store), noise, seed, sign=sign, exact=exact, undo=undo)

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> Any:
        """Do what `es.update` does."""
        return update(host_of(store), noise, seeds, weights, **how)

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Do what `es.sample` does."""
        sample(host_of(out), host_of(store), noise, seeds, sign=sign, antithetic=antithetic)


OnTorch.moves_on_host = HostMoves()
