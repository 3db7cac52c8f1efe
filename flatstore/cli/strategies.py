"""The two ways in which `flatstore evolve` finds a network, over the verbs of `es` and `ga`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flatstore import es, ga
from flatstore.arrays import Array
from flatstore.cli.network import Program
from flatstore.cli.task import Settings, Task
from flatstore.noise import Normal, Rademacher, seeds
from flatstore.population import Population
from flatstore.store import Store

_jax: Any = jax


class Strategy(Protocol):
    """A population, its generations, and the network that it has found."""

    pop: Population
    state: int
    """Bytes that it holds for the whole run beside the population."""

    def run(self) -> Iterator[Array]:
        """The generations: the fitness of the members of each."""
        ...

    def champion(self) -> Store:
        """The network found so far."""
        ...

    @property
    def temporaries(self) -> int:
        """The most bytes that its own compiled programs took."""
        ...


class EvolutionStrategy:
    """OpenAI-ES: antithetic pairs around a centre, centred ranks, Adam."""

    def __init__(self, task: Task, settings: Settings, *, sigma: float, rate: float) -> None:
        """Draw the first centre."""
        self.task, self.settings, self.noise, self.rate = task, settings, Rademacher(sigma), rate
        self.pop = Population.zeros(task.layout, settings.population)
        self.centre, self.gradient = Store.zeros(task.layout), Store.zeros(task.layout)
        es.update(self.centre, task.initial, seeds(settings.seed, 1), [1.0])
        self.adam = es.Adam(self.centre)
        self.state = 4 * task.layout.nbytes
        self._sum = Program(weighted_sum)

    def run(self) -> Iterator[Array]:
        """Sample around the centre, evaluate, and move the centre up."""
        for number in range(self.settings.generations):
            keys = seeds((self.settings.seed, number), self.pop.size // 2)
            es.sample(self.pop, self.centre, self.noise, keys, antithetic=True)
            with self.pop.lend() as stacked:
                scores = self.task.evaluate(stacked, number)
                # The noise still stands in the members, and centred ranks sum to zero: the centre drops out.
                ranks = es.centred_ranks(scores).astype(np.float32)
                self.gradient.assign(self._sum(stacked, ranks))
            fade = 0.5 * (1 + math.cos(math.pi * number / self.settings.generations))
            self.adam.step(self.gradient, self.rate * fade)
            yield scores

    def champion(self) -> Store:
        """The centre."""
        return self.centre

    @property
    def temporaries(self) -> int:
        """The most bytes that its own compiled programs took."""
        return self._sum.temporaries


def weighted_sum(stacked: Any, weights: Any) -> Any:
    """The members, each times its weight, summed leaf by leaf: a tree of one member's shapes."""
    return _jax.tree.map(partial(jnp.tensordot, weights, axes=1), stacked)


class GeneticAlgorithm:
    """Truncation selection, uniform crossover, a mutation that fades, one elite."""

    state = temporaries = 0

    def __init__(self, task: Task, settings: Settings, *, share: float, sigma: float, last_sigma: float) -> None:
        """Draw the first population."""
        self.task, self.settings, self.share = task, settings, share
        self.sigma, self.last_sigma = sigma, last_sigma
        self.pop = Population.zeros(task.layout, settings.population)
        es.sample(self.pop, Store.zeros(task.layout), task.initial, seeds(settings.seed, settings.population))

    def mutation(self, number: int) -> Normal:
        """The noise that makes generation `number + 1`."""
        return Normal(self.sigma * (self.last_sigma / self.sigma) ** (number / self.settings.generations))

    def run(self) -> Iterator[Array]:
        """Evaluate the population, and replace it by its children before the next."""
        for record in ga.evolve(
            self.pop,
            self.task.evaluate,
            seed=self.settings.seed,
            mutate=self.mutation,
            select=ga.Truncation(self.share),
            generations=self.settings.generations,
        ):
            yield record.fitness

    def champion(self) -> Store:
        """The member that the task chooses."""
        return self.pop[self.task.choose(self.pop)].copy()
