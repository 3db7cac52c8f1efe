"""The two ways in which `flatstore evolve` finds a network, over the verbs of `es` and `ga`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flatstore import es, ga
from flatstore.arrays import Array
from flatstore.cli.digits import Digits, fitness, fitness_on_all, initial_noise, jit, layout_of_network, weighted_sum
from flatstore.noise import Normal, Rademacher, seeds
from flatstore.population import Population
from flatstore.store import Store


@dataclass(frozen=True)
class Settings:
    """What the user may choose."""

    population: int
    generations: int
    hidden: int
    seed: int


class Strategy(Protocol):
    """A population, a step, and the network that it has found."""

    pop: Population
    temporaries: int
    state: int

    def __init__(self, digits: Digits, settings: Settings) -> None: ...

    def generation(self, number: int) -> Array:
        """Evaluate the population, make the next; returns the fitness of the members."""
        ...

    def champion(self) -> Store:
        """The network found so far; chosen by training data alone."""
        ...


class EvolutionStrategy:
    """OpenAI-ES: antithetic pairs around a centre, centred ranks, Adam."""

    BATCH, SIGMA, RATE = 128, 0.1, 0.008

    def __init__(self, digits: Digits, settings: Settings) -> None:
        """Draw the first centre, and compile."""
        self.digits, self.settings, self.noise = digits, settings, Rademacher(self.SIGMA)
        layout = layout_of_network(settings.hidden)
        self.pop = Population.zeros(layout, settings.population)
        self.centre, self.gradient = Store.zeros(layout), Store.zeros(layout)
        es.update(self.centre, initial_noise(settings.hidden), seeds(settings.seed, 1), [1.0])
        self.adam = es.Adam(self.centre)
        self.state = 4 * layout.nbytes
        x, y = digits.batch(self.BATCH, settings.seed, 0)
        self._fitness, for_fitness = compiled(fitness, self.pop, x, y)
        self._gradient, for_gradient = compiled(weighted_sum, self.pop, np.zeros(self.pop.size, np.float32))
        self.temporaries = max(for_fitness, for_gradient)

    def generation(self, number: int) -> Array:
        """Sample around the centre, evaluate, and move the centre up."""
        keys = seeds((self.settings.seed, number), self.pop.size // 2)
        es.sample(self.pop, self.centre, self.noise, keys, antithetic=True)
        x, y = self.digits.batch(self.BATCH, self.settings.seed, number)
        with self.pop.lend() as stacked:
            scores: Array = np.asarray(self._fitness(stacked, x, y))
            # The noise still stands in the members, and centred ranks sum to zero: the centre drops out of the sum.
            ranks = es.centred_ranks(scores).astype(np.float32)
            self.gradient.assign(self._gradient(stacked, ranks))
        self.adam.step(self.gradient, self.RATE * 0.5 * (1 + math.cos(math.pi * number / self.settings.generations)))
        return scores

    def champion(self) -> Store:
        """The centre."""
        return self.centre


def compiled(function: Any, pop: Population, *arguments: Any) -> tuple[Any, int]:
    """A function of a lent population, compiled, and the bytes that it takes beside the population."""
    with pop.lend() as stacked:
        program = jit(function).lower(stacked, *arguments).compile()
    analysis = program.memory_analysis()
    return program, int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


class GeneticAlgorithm:
    """Truncation selection, uniform crossover, a mutation that fades, one elite."""

    BATCH, SHARE, SIGMA, LAST_SIGMA = 128, 0.2, 0.02, 0.003

    def __init__(self, digits: Digits, settings: Settings) -> None:
        """Draw the first population, and compile."""
        self.settings, self.digits = settings, digits
        layout = layout_of_network(settings.hidden)
        self.pop = Population.zeros(layout, settings.population)
        es.sample(self.pop, Store.zeros(layout), initial_noise(settings.hidden), seeds(settings.seed, self.pop.size))
        self.state = 0
        self._fitness, for_batch = compiled(fitness, self.pop, *digits.batch(self.BATCH, settings.seed, 0))
        self._on_all, for_all = compiled(fitness_on_all, self.pop, digits.train_x, digits.train_y)
        self.temporaries = max(for_batch, for_all)

    def generation(self, number: int) -> Array:
        """Evaluate, and replace the population by its children."""
        x, y = self.digits.batch(self.BATCH, self.settings.seed, number)
        with self.pop.lend() as stacked:
            scores: Array = np.asarray(self._fitness(stacked, x, y))
        sigma = self.SIGMA * (self.LAST_SIGMA / self.SIGMA) ** (number / self.settings.generations)
        ga.step(
            self.pop,
            scores,
            seed=(self.settings.seed, number),
            select=ga.Truncation(self.SHARE),
            mutate=Normal(sigma),
            elite=1,
        )
        return scores

    def champion(self) -> Store:
        """The member that explains all training images best."""
        with self.pop.lend() as stacked:
            scores: Array = np.asarray(self._on_all(stacked, self.digits.train_x, self.digits.train_y))
        return self.pop[int(scores.argmax())].copy()
