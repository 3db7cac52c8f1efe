"""Whole generations, evaluation included: each has one verb, `run(generations)`, as in `genetic.py`.

A member is a network of one hidden layer, 64 -> hidden -> 10, of about as many float32 as are asked for. Its fitness is
the mean log-probability that it gives the labels of 32 images, which all peers are given, in each generation the same.
Kernels have shape (inputs, outputs), as in Flax; "transposed" have shape (outputs, inputs), which XLA reads where they
lie. The algorithms and their settings are those of `strategies.py` and `genetic.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

from . import genetic, strategies
from .genetic import Generations
from .peer import SCALE, network

INPUTS, OUTPUTS, BATCH = 64, 10, 32


def hidden(genes: int) -> int:
    """The units of the hidden layer of a network of at most so many parameters: a multiple of 16, as is usual."""
    return (genes - OUTPUTS) // (INPUTS + 1 + OUTPUTS) // 16 * 16


def parameters(genes: int) -> int:
    """How many parameters it has."""
    return hidden(genes) * (INPUTS + 1 + OUTPUTS) + OUTPUTS


def batch() -> tuple[Any, Any]:
    """Images, (32, 64), and their labels."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((BATCH, INPUTS), dtype=np.float32), rng.integers(0, OUTPUTS, BATCH)


def score(params: Any, x: Any, y: Any) -> Any:
    """The fitness of a network."""
    units = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    log_p = jax.nn.log_softmax(units @ params["output"]["kernel"] + params["output"]["bias"])
    return jnp.take_along_axis(log_p, y[:, None], axis=1).mean()


def score_of_columns(params: Any, x: Any, y: Any) -> Any:
    """The same, where kernels are transposed and each image is a column."""
    units = jnp.tanh(params["hidden"]["kernel"] @ x.T + params["hidden"]["bias"][:, None])
    log_p = jax.nn.log_softmax(params["output"]["kernel"] @ units + params["output"]["bias"][:, None], axis=0)
    return jnp.take_along_axis(log_p, y[None], axis=0).mean()


def evaluation(one: Any = score) -> Any:
    """A jitted function of a stacked tree."""
    x, y = batch()
    return jax.jit(lambda stacked: jax.vmap(one, in_axes=(0, None, None))(stacked, x, y))


class Flatstore(Generations):
    """A loop of flatstore's, as a generator."""

    transposed = False

    def __init__(self, members: int, genes: int) -> None:
        super().__init__(members, parameters(genes))
        self.evaluate = evaluate = evaluation(score_of_columns if self.transposed else score)
        layout = fs.Layout.from_tree(network(INPUTS, hidden(genes), OUTPUTS, transposed=self.transposed))
        self.loop = self.started(layout, lambda stacked, generation: evaluate(stacked))
        next(self.loop)  # the first of a genetic algorithm has no parents

    def started(self, layout: fs.Layout, evaluate: Any) -> Iterator[Any]:
        """The loop."""
        raise NotImplementedError

    def run(self, generations: int) -> None:
        for _ in range(generations):
            next(self.loop)


class Strategy(Flatstore):
    """`fs.es.evolve`, along the gradient itself."""

    def started(self, layout: fs.Layout, evaluate: Any) -> Iterator[Any]:
        noise, rate = fs.Normal(SCALE), strategies.RATE / SCALE**2
        return fs.es.evolve(fs.Store.zeros(layout), evaluate, seed=1, noise=noise, members=self.members, rate=rate)


class Genetic(Flatstore):
    """`fs.ga.evolve`: truncation to a half, uniform crossover, one elite."""

    def started(self, layout: fs.Layout, evaluate: Any) -> Iterator[Any]:
        pop = fs.Population.zeros(layout, self.members)
        pop.buffer[:] = 0
        select = fs.ga.Truncation(0.5)
        return fs.ga.evolve(pop, evaluate, seed=1, mutate=fs.Normal(SCALE), select=select, elite=1)


class StrategyInPlace(Strategy):
    """The same with transposed kernels."""

    transposed = True


class GeneticInPlace(Genetic):
    """The same with transposed kernels."""

    transposed = True


class Evaluated(Generations):
    """What is evaluated by JAX in one of evosax's generations: solutions are trees."""

    def __init__(self, members: int, genes: int) -> None:
        self.units, self.evaluate = hidden(genes), evaluation()
        super().__init__(members, parameters(genes))

    def solution(self) -> Any:
        """A network of zeros."""
        shapes = network(INPUTS, self.units, OUTPUTS)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    def rated(self, population: Any) -> Any:
        """The costs."""
        return -self.evaluate(population)


class EvosaxStrategy(Evaluated, strategies.Evosax):
    """`Open_ES`, ask, evaluate, tell."""


class EvosaxStrategyScan(genetic.Scanned, EvosaxStrategy):
    """The same in one scan over the generations."""


class EvosaxGenetic(Evaluated, genetic.Evosax):
    """`SimpleGA`, ask, evaluate, tell."""


class EvosaxGeneticScan(genetic.Scanned, EvosaxGenetic):
    """The same in one scan over the generations."""


class EvaluatedByTorch(Generations):
    """What is evaluated by torch in one of EvoTorch's generations: all rows of a matrix at once."""

    def __init__(self, members: int, genes: int) -> None:
        self.require()
        import torch

        self.units, (x, y) = hidden(genes), batch()
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)[None, :, None].expand(members, -1, -1)
        super().__init__(members, parameters(genes))

    def rated(self, values: Any) -> Any:
        """The fitness."""
        import torch

        n, size = self.units, (self.units, INPUTS * self.units, OUTPUTS, self.units * OUTPUTS)
        first, kernel, second, last = torch.split(values, size, dim=1)
        units = torch.tanh(self.x @ kernel.reshape(-1, INPUTS, n) + first[:, None])
        log_p = torch.log_softmax(units @ last.reshape(-1, n, OUTPUTS) + second[:, None], dim=2)
        return torch.gather(log_p, 2, self.y[: len(values)]).mean(dim=(1, 2))


class EvoTorchStrategy(EvaluatedByTorch, strategies.EvoTorch):
    """`PGPE`."""


class EvoTorchGenetic(EvaluatedByTorch, genetic.EvoTorch):
    """`GeneticAlgorithm`."""


STRATEGIES: dict[str, type[Generations]] = {
    "flatstore": Strategy,
    "flatstore, transposed": StrategyInPlace,
    "evosax (loop)": EvosaxStrategy,
    "evosax (scan)": EvosaxStrategyScan,
    "evotorch": EvoTorchStrategy,
}

GENETIC: dict[str, type[Generations]] = {
    "flatstore": Genetic,
    "flatstore, transposed": GeneticInPlace,
    "evosax (loop)": EvosaxGenetic,
    "evosax (scan)": EvosaxGeneticScan,
    "evotorch": EvoTorchGenetic,
}
