"""Evolution strategies: each has one verb, `run(generations)`, as in `genetic.py`.

All draw `members` / 2 antithetic pairs of normal noise around a centre of `genes` float32, and move the centre by
centred ranks of the same fixed fitness. Evaluation is left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

from .genetic import AskAndTell, Generations, Searching, population
from .peer import SCALE, zeros

RATE = 0.01
"""The learning rate."""


class Flatstore(Generations):
    """`fs.es.sample` into a population of 10 leaves, `fs.es.update` of the centre on the grid."""

    fewest = 5  # a turn of a second: after the others' turns, the first generation finds the processor asleep

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        self.population, self.centre = population(10, members, genes), zeros(10, genes)
        self.noise, self.generation = fs.Normal(SCALE), 0

    def run(self, generations: int) -> None:
        for _ in range(generations):
            self.generation += 1
            seeds = fs.seeds((1, self.generation), self.members // 2)
            fs.es.sample(self.population, self.centre, self.noise, seeds, antithetic=True)
            ranks = fs.es.centred_ranks(self.fitness)
            weights = RATE * (ranks[0::2] - ranks[1::2]) / (self.members * SCALE**2)
            fs.es.update(self.centre, self.noise, seeds, weights)

    def rows(self) -> Any:
        return np.stack([member.to_vector() for member in self.population])


class NumPy(Generations):
    """What is written by hand: the noise is kept, and multiplied by the ranks."""

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        self.centre = np.zeros(genes, np.float32)
        self.rng = np.random.default_rng(0)

    def run(self, generations: int) -> None:
        for _ in range(generations):
            noise = np.float32(SCALE) * self.rng.standard_normal((self.members // 2, self.genes), dtype=np.float32)
            self.population = np.concatenate([self.centre + noise, self.centre - noise])
            ranks = fs.es.centred_ranks(self.fitness).astype(np.float32)
            half = self.members // 2
            self.centre += RATE / (self.members * SCALE**2) * ((ranks[:half] - ranks[half:]) @ noise)

    def rows(self) -> Any:
        return self.population


class Evosax(AskAndTell):
    """`Open_ES`: antithetic, its own centred ranks and SGD."""

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        import optax
        from evosax.algorithms import Open_ES

        schedule = optax.constant_schedule(SCALE)
        self.algorithm = Open_ES(members, self.solution(), optimizer=optax.sgd(RATE), std_schedule=schedule)
        self.params = self.algorithm.default_params
        self.costs = jnp.asarray(-self.fitness)
        self.key = jax.random.key(0)
        self.state = jax.block_until_ready(self.algorithm.init(self.key, self.solution(), self.params))

    def rows(self) -> Any:
        return np.asarray(self.algorithm.ask(self.key, self.state, self.params)[0])


class EvoTorch(Searching):
    """`PGPE`, symmetric, centred ranks, plain gradient ascent; its spread is not learned."""

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        from evotorch.algorithms import PGPE

        self.search = PGPE(
            self.problem(),
            popsize=members,
            center_learning_rate=RATE,
            stdev_learning_rate=0.0,
            stdev_init=SCALE,
            optimizer="sgd",
            ranking_method="centered",
        )


PEERS: dict[str, type[Generations]] = {"flatstore": Flatstore, "numpy": NumPy, "evosax": Evosax, "evotorch": EvoTorch}
