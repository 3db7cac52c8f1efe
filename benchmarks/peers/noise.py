"""The ways to add noise to a float32 vector, and the weighted noise of many seeds."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs
from flatstore import bench

from .peer import SCALE, Peer, zeros

SEEDS, RATE = 64, 1e-3
"""The seeds of an update, and the largest weight of one."""


def weights(seeds: int = SEEDS) -> Any:
    """The weight of each."""
    return np.linspace(-RATE, RATE, seeds)


class Noise(Peer):
    """The verbs, of a vector `x` of zeros, so many float32."""

    x: Any

    def perturb(self) -> None:
        """Noise of one seed, added in place. What can take it back does so at the next call."""
        raise NotImplementedError(f"{type(self).__name__} does not perturb")

    def update(self) -> None:
        """The weighted noise of all seeds, added in place, as above."""
        raise NotImplementedError(f"{type(self).__name__} does not update")


class Flatstore(Noise):
    """Normal noise by `fs.es.perturb` and `fs.es.update`, in place in a store of ten leaves."""

    noise: Any = fs.Normal(SCALE)

    def __init__(self, size: int, store: fs.Store | None = None) -> None:
        super().__init__()
        self.store = zeros(10, size) if store is None else store
        self.x = self.store.flat
        self.seeds, self.weights, self.signs = fs.seeds(1, SEEDS), weights(), itertools.cycle((1, -1))

    def perturb(self) -> None:
        fs.es.perturb(self.store, self.noise, 1, sign=next(self.signs))

    def update(self) -> None:
        fs.es.update(self.store, self.noise, self.seeds, self.weights, sign=next(self.signs))


class Signs(Flatstore):
    """The same by `fs.Rademacher`: each number goes up or down by as much."""

    noise = fs.Rademacher(SCALE)


class Jax(Noise):
    """`jax.random.normal` with JAX's default keys, jitted and donated; a loop of it over the seeds."""

    def __init__(self, size: int, dtype: Any = "float32") -> None:
        super().__init__()
        self.x = jnp.zeros(size, dtype)
        self.seed, self.seeds = self.seeded()
        self.steps = {
            "perturb": (jax.jit(self.perturbed, donate_argnums=0), self.seed),
            "update": (jax.jit(self.updated, donate_argnums=0), self.seeds),
        }

    def seeded(self) -> tuple[Any, Any]:
        """The seed of a perturbation, and the seeds and weights of an update."""
        keys = jax.random.split(jax.random.key(0), SEEDS)
        return keys[0], (keys, jnp.asarray(weights(), self.x.dtype))

    def perturbed(self, x: Any, seed: Any) -> Any:
        """What a perturbation makes of a vector."""
        return x + x.dtype.type(SCALE) * jax.random.normal(seed, x.shape, x.dtype)

    def updated(self, x: Any, seeds: Any) -> Any:
        """What an update makes of it."""

        def add(i: Any, x: Any) -> Any:
            return x + seeds[1][i] * x.dtype.type(SCALE) * jax.random.normal(seeds[0][i], x.shape, x.dtype)

        return jax.lax.fori_loop(0, SEEDS, add, x)

    def perturb(self) -> None:
        self.step("perturb")

    def update(self) -> None:
        self.step("update")

    def step(self, verb: str) -> None:
        """Make a step, and wait for it."""
        function, seeds = self.steps[verb]
        self.x = jax.block_until_ready(function(self.x, seeds))

    def jitted(self, verb: str) -> tuple[Any, ...]:
        """The jitted function of a verb, and its arguments."""
        function, seeds = self.steps[verb]
        return function, self.x, seeds

    def planned(self, verb: str) -> bench.XlaMemory:
        """The bytes that it takes."""
        return bench.xla_memory(*self.jitted(verb))


class InJit(Jax):
    """`fs.es.virtual` and `fs.es.updated`, jitted and donated."""

    noise: Any = fs.Normal(SCALE)

    def seeded(self) -> tuple[Any, Any]:
        many = fs.es.weighted_seeds(self.noise, fs.seeds(1, SEEDS), weights())
        return fs.es.words([7])[0], jax.tree.map(jnp.asarray, many)

    def perturbed(self, x: Any, seed: Any) -> Any:
        return fs.es.virtual({"w": x}, self.noise, seed)["w"]

    def updated(self, x: Any, seeds: Any) -> Any:
        return fs.es.updated({"w": x}, self.noise, seeds)["w"]


class SignsInJit(InJit):
    """The same by `fs.Rademacher`."""

    noise = fs.Rademacher(SCALE)


class NumPy(Noise):
    """NumPy's fastest generator, SFC64: a part of the vector for each core, in chunks. Small ones on this thread."""

    chunk = 1 << 16

    def __init__(self, size: int) -> None:
        super().__init__()
        self.x = np.zeros(size, np.float32)
        self.parts = np.array_split(self.x, min(len(os.sched_getaffinity(0)), -(-size // self.chunk)))
        self.generators = [np.random.Generator(np.random.SFC64(i)) for i in range(len(self.parts))]
        self.rooms = [np.empty(min(self.chunk, part.size), np.float32) for part in self.parts]
        self.map = map if len(self.parts) == 1 else ThreadPoolExecutor(len(self.parts)).map

    def perturb(self) -> None:
        list(self.map(_add, self.parts, self.generators, self.rooms)).clear()


def _add(part: Any, generator: Any, room: Any) -> None:
    for start in range(0, part.size, room.size):
        some = part[start : start + room.size]
        noise = room[: some.size]
        generator.standard_normal(out=noise, dtype=np.float32)
        noise *= np.float32(SCALE)
        some += noise


class Stored(Noise):
    """Noise that was stored, seeds x size, and its product with the weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.x = np.zeros(size, np.float32)
        self.noise = np.random.default_rng(0).standard_normal((SEEDS, size), dtype=np.float32)
        self.noise *= np.float32(SCALE)
        self.weights = weights().astype(np.float32)

    def update(self) -> None:
        np.add(self.x, self.weights @ self.noise, out=self.x)


class Roof(Noise):
    """What memory gives: a multiplication in place, a part for each core. The noise of every seed is zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.x = np.zeros(size, np.float32)
        self.perturb = bench.scaled(self.x)


PEERS: dict[str, type[Noise]] = {
    "flatstore": Flatstore,
    "flatstore, signs": Signs,
    "flatstore, in jit": InJit,
    "flatstore, signs in jit": SignsInJit,
    "jax": Jax,
    "numpy": NumPy,
    "stored noise": Stored,
    "roof": Roof,
}
