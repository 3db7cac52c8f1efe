"""Genetic algorithms: each has one verb, `run(generations)`.

All hold `members` x `genes` float32, and make each child of two parents by crossover and dense normal mutation; the
fitness is the same fixed vector for all. Each class says what cannot be set alike.
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

from .peer import SCALE, Peer, shapes


def fitness(members: int) -> Any:
    """A number for each member, larger is better."""
    return np.random.default_rng(1).standard_normal(members, dtype=np.float32)


def population(leaves: int, members: int, genes: int, order: Any = "leaf") -> fs.Population:
    """A population of zeros whose members have so many leaves, all of it resident: the elite is never written."""
    pop = fs.Population.zeros(fs.Layout.from_tree(shapes(leaves, genes)), members, order=order)
    pop.buffer[:] = 0
    return pop


class Generations(Peer):
    """A population and how its generations are made."""

    fewest = 1  # generations that show its pace

    def __init__(self, members: int, genes: int) -> None:
        super().__init__()
        self.members, self.genes = members, genes
        self.fitness = fitness(members)

    def run(self, generations: int) -> None:
        """Make this many generations, one after the other; the last is finished on return."""
        raise NotImplementedError

    def rows(self) -> Any:
        """The members, (members, genes)."""
        raise NotImplementedError


class Flatstore(Generations):
    """`fs.ga.step` in the population's own memory, 10 leaves: truncation to a half, uniform crossover, one elite."""

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        self.population = population(10, members, genes)
        self.generation = 0

    def run(self, generations: int) -> None:
        for _ in range(generations):
            self.generation += 1
            step(self.population, self.fitness, self.generation)

    def rows(self) -> Any:
        return np.stack([member.to_vector() for member in self.population])


def step(population: fs.Population, fitness: Any, generation: int, **operators: Any) -> None:
    """A generation with the operators that are compared, but for those that are given."""
    chosen: dict[str, Any] = {
        "mutate": fs.Normal(SCALE),
        "select": fs.ga.Truncation(0.5),
        "crossover": fs.ga.Uniform(),
        "elite": 1,
    }
    fs.ga.step(population, fitness, seed=(1, generation), **(chosen | operators))


class NumPy(Generations):
    """What is written by hand: the better half, two parents each, a mask, `np.where`, noise. No elite."""

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        self.population = np.zeros((members, genes), np.float32)
        self.rng = np.random.default_rng(0)

    def run(self, generations: int) -> None:
        for _ in range(generations):
            self.population = self.children(self.population)

    def rows(self) -> Any:
        return self.population

    def children(self, population: Any) -> Any:
        """The next generation, beside this one."""
        parents = np.argsort(-self.fitness)[: self.members // 2]
        mothers = population[self.rng.choice(parents, self.members)]
        fathers = population[self.rng.choice(parents, self.members)]
        mask = self.rng.random(population.shape, dtype=np.float32) < 0.5
        children = np.where(mask, mothers, fathers)
        return children + np.float32(SCALE) * self.rng.standard_normal(population.shape, dtype=np.float32)


class AskAndTell(Generations):
    """An algorithm of evosax by ask and tell, each jitted by evosax, as in its README; fitness is minimised.

    Solutions are flat vectors, for which its ravelling is free.
    """

    library = "evosax"
    algorithm: Any
    params: Any
    costs: Any
    key: Any
    state: Any

    def solution(self) -> Any:
        """A member."""
        return jnp.zeros(self.genes)

    def rated(self, population: Any) -> Any:
        """The cost of each member."""
        return self.costs

    def generation(self, state: Any, key: Any) -> Any:
        """The state after one more."""
        ask, tell = jax.random.split(key)
        population, state = self.algorithm.ask(ask, state, self.params)
        state, _ = self.algorithm.tell(tell, population, self.rated(population), state, self.params)
        return state

    def run(self, generations: int) -> None:
        self.key, key = jax.random.split(self.key)
        for each in jax.random.split(key, generations):
            self.state = self.generation(self.state, each)
        jax.block_until_ready(self.state)


class Evosax(AskAndTell):
    """`SimpleGA`: better half as parents, `crossover_rate=0.5` (uniform), normal mutation; no elite."""

    keys: str | None = None

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        from evosax.algorithms import SimpleGA

        self.algorithm = SimpleGA(members, self.solution(), std_schedule=lambda _: SCALE)
        self.algorithm.elite_ratio = 0.5
        self.params = self.algorithm.default_params.replace(crossover_rate=0.5)
        self.costs = jnp.asarray(-self.fitness)
        self.key = jax.random.key(0, impl=self.keys)
        zeros = jax.tree.map(lambda x: jnp.zeros((members, *x.shape)), self.solution())
        self.state = jax.block_until_ready(self.algorithm.init(self.key, zeros, self.costs, self.params))

    def rows(self) -> Any:
        return np.asarray(self.state.population)


class Scanned(Generations):
    """One of evosax's in one `jax.lax.scan` over the generations, which its README offers; the state is donated."""

    fewest = 2

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        self.scan = jax.jit(self.scanned, donate_argnums=0)

    def scanned(self, state: Any, keys: Any) -> Any:
        """The state after a generation for each key."""
        return jax.lax.scan(lambda state, key: (self.generation(state, key), None), state, keys)[0]

    def run(self, generations: int) -> None:
        self.key, key = jax.random.split(self.key)
        self.state = jax.block_until_ready(self.scan(self.state, jax.random.split(key, generations)))


class EvosaxScan(Scanned, Evosax):
    """`SimpleGA` in one scan."""


class EvosaxPhilox(EvosaxScan):
    """The same with a Philox key in place of JAX's default: JAX documents it, evosax does not mention it."""

    keys = "philox4x32"


class Searching(Generations):
    """A search of EvoTorch's for the largest fitness; an evaluation reads one gene of each member."""

    library = "evotorch"
    search: Any

    def problem(self) -> Any:
        """What is searched."""
        import torch
        from evotorch import Problem

        logging.getLogger("evotorch").setLevel(logging.WARNING)
        return Problem(
            "max",
            self.rated,
            vectorized=True,
            solution_length=self.genes,
            initial_bounds=(0.0, 0.0),
            dtype=torch.float32,
        )

    def rated(self, values: Any) -> Any:
        """The fitness of each member."""
        return values[:, 0]

    def run(self, generations: int) -> None:
        self.search.run(generations)

    def rows(self) -> Any:
        return self.search.population.values.numpy()


class EvoTorch(Searching):
    """`GeneticAlgorithm` with `OnePointCrossOver` and `GaussianMutation`.

    It ships no uniform crossover; a point needs no number per gene and is faster. Selection is by tournaments of two,
    two children a pair, no elite (`elitist=False` saves the sorting of parents and children together). Each
    generation is evaluated once.
    """

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, genes)
        from evotorch.algorithms import GeneticAlgorithm
        from evotorch.operators import GaussianMutation, OnePointCrossOver

        problem = self.problem()
        operators = [OnePointCrossOver(problem, tournament_size=2), GaussianMutation(problem, stdev=SCALE)]
        self.search = GeneticAlgorithm(problem, popsize=members, operators=operators, elitist=False, re_evaluate=False)


PEERS: dict[str, type[Generations]] = {
    "flatstore": Flatstore,
    "numpy": NumPy,
    "evosax": Evosax,
    "evosax (scan)": EvosaxScan,
    "evosax (scan, Philox)": EvosaxPhilox,
    "evotorch": EvoTorch,
}
