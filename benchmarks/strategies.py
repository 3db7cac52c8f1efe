"""Noise added in place, updates and the verbs of small models, beside the peers of `es_figures.py`: seconds.

Versions are set by hand, because asv does not see what a peer does: raise them when one changes.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import flatstore as fs

from . import small_figures
from .es_figures import NORMAL, RADEMACHER, InJax, a_store, sfc64


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


class Small:
    """A hundred calls for networks of 114 parameters, of which a population has 64."""

    params: Any = (["flatstore, perturb", "flatstore, sample", "flatstore, update", "flatstore, ga.step"],)
    param_names = ("verb",)
    version = "1"

    def setup(self, verb: str) -> None:
        calls = small_figures.verbs(64, 114) | {"perturb": small_figures.there_and_back(114)}
        self.call = calls[verb.removeprefix("flatstore, ")]
        self.time_100_calls(verb)

    def time_100_calls(self, verb: str) -> None:
        for _ in range(100):
            self.call()
