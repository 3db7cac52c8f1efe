"""Evolution strategies beside the peers: seconds, and bytes at the peak.

The peers are those of `es_peers.py` and `es_figures.py`. Versions are set by hand, because asv does not see what a peer
does: raise them when one changes.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import flatstore as fs

from .es_figures import NORMAL, RADEMACHER, InJax, a_store, sfc64
from .es_peers import PEERS
from .race import Resident

NAMES = ["flatstore", "numpy", "evosax", "evotorch"]


class Strategies:
    """Three generations of OpenAI-ES."""

    params: Any = (NAMES, [(320, 2_410), (64, 50_000)])
    param_names = ("peer", "members and parameters")
    version = "1"
    timeout = 300

    def setup(self, peer: str, size: tuple[int, int]) -> None:
        self.peer = PEERS[peer](*size)
        self.peer.run(3)

    def time_3_generations(self, peer: str, size: tuple[int, int]) -> None:
        self.peer.run(3)


class StrategyPeak:
    """What 128 x 100,000 float32 (51,200,000 bytes) and a generation add at the most to the bytes of the process."""

    params: Any = (NAMES,)
    param_names = ("peer",)
    version = "1"
    unit = "bytes"
    timeout = 300

    def setup(self, peer: str) -> None:
        PEERS[peer].require()

    def track_peak(self, peer: str) -> int:
        return Resident(PEERS[peer], 128, 100_000, 1).peak()


class Perturbations:
    """Ten times noise added in place to 1,000,000 float32."""

    params: Any = (["flatstore", "flatstore, signs", "jax", "numpy SFC64"],)
    param_names = ("peer",)
    version = "1"

    def setup(self, peer: str) -> None:
        make = {"flatstore": normal, "flatstore, signs": signs, "jax": InJax, "numpy SFC64": chunks}[peer]
        self.call = make(1_000_000)
        self.time_10_perturbations(peer)

    def time_10_perturbations(self, peer: str) -> None:
        for _ in range(10):
            self.call()


def there_and_back(size: int, noise: fs.Normal | fs.Rademacher) -> Callable[[], None]:
    """A call that perturbs a store, and takes it back at the next."""
    store, sign = a_store(size), itertools.cycle((1, -1))
    return lambda: fs.es.perturb(store, noise, 1, sign=next(sign))


def normal(size: int) -> Callable[[], None]:
    """Normal noise by `fs.es.perturb`."""
    return there_and_back(size, NORMAL)


def signs(size: int) -> Callable[[], None]:
    """Signs by `fs.es.perturb`."""
    return there_and_back(size, RADEMACHER)


def chunks(size: int) -> Callable[[], None]:
    """NumPy's SFC64."""
    return sfc64(np.zeros(size, np.float32))


class Updates:
    """The weighted noise of 64 seeds, added to 100,000 float32."""

    params: Any = (["normal", "signs"],)
    param_names = ("noise",)
    version = "1"

    def setup(self, noise: str) -> None:
        self.noise, self.store = {"normal": NORMAL, "signs": RADEMACHER}[noise], a_store(100_000)
        self.seeds, self.weights = fs.seeds(1, 64), np.linspace(-1e-3, 1e-3, 64)
        self.time_update_and_back(noise)

    def time_update_and_back(self, noise: str) -> None:
        fs.es.update(self.store, self.noise, self.seeds, self.weights)
        fs.es.update(self.store, self.noise, self.seeds, self.weights, sign=-1)
