"""The three ways in which `flatstore evolve` finds a network, over the verbs of `es` and `ga`."""

from __future__ import annotations

import math
import socket
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from flatstore import es, ga, scale
from flatstore.cli.network import Program
from flatstore.cli.task import Settings, Task
from flatstore.extras import require
from flatstore.noise import Normal, Rademacher, seeds
from flatstore.store import Population, Store

_jax: Any = jax


class Record(Protocol):
    """The record of a generation."""

    @property
    def number(self) -> int:
        """Counted from 0."""
        ...

    @property
    def mean(self) -> float:
        """The mean fitness of the members."""
        ...


class Strategy(Protocol):
    """A way to find a network for a task, generation by generation."""

    state_bytes: int
    """The bytes that it holds for the whole run beside `evolved`."""

    @property
    def evolved(self) -> Population | Store:
        """The population or the network, in one memory for the whole run."""
        ...

    def run(self, folder: Path) -> Iterator[Record]:
        """Begin the run in a folder, or go on from its last record, which comes again: an iterator of its generations.

        Raises `ValueError` and `OSError` at once if the folder is not as it has to be.
        """
        ...

    def champion(self) -> Store:
        """The network found so far."""
        ...

    @property
    def status(self) -> str:
        """What has become of the workers of a cluster, in words; nothing without one."""
        ...


class EvolutionStrategy:
    """OpenAI-ES: antithetic pairs around a centre, centred ranks, Adam at a rate that fades.

    On a cluster of Ray every worker has the centre, and there is no population.
    """

    _counts: scale.ray.Counts | None = None
    centre: Store
    task: Task
    settings: Settings
    sigma: float
    rate: float

    def __init__(self, task: Task, settings: Settings, *, sigma: float, rate: float) -> None:
        """Draw the first centre."""
        self.task, self.settings, self.sigma, self.rate = task, settings, sigma, rate
        self.centre = new_network(task, settings)
        if isinstance(settings.workers, str):
            connect(settings.workers)
        self.evolved = self.centre if settings.on_ray else new_population(task, settings)
        self.state_bytes: int = (3 if settings.on_ray else 4) * task.layout.nbytes

    def run(self, folder: Path) -> Iterator[Record]:
        """Sample around the centre, evaluate, and move the centre up."""
        settings, members = self.settings, self.evolved
        run: dict[str, Any] = dict(
            seed=settings.seed,
            noise=Rademacher(self.sigma),
            rate=self._rate,
            generations=settings.generations,
            run=folder,
        )
        if isinstance(members, Population):
            evaluated = evaluation(self.task, settings)
            return es.evolve(self.centre, **evaluated, members=members, optimiser=es.Adam(self.centre), **run)
        make = partial(made_in_worker, type(self.task), settings)
        moves = scale.ray.evolve(make, members=settings.population, optimiser=es.Adam, **run)
        self.centre = self.evolved = moves.centre
        self._counts = moves.counts
        return moves

    def _rate(self, number: int) -> float:
        return self.rate * fading(number, self.settings)

    def champion(self) -> Store:
        """The centre."""
        return self.centre

    @property
    def status(self) -> str:
        """How many workers there are, members that wait, and results that were lost or late."""
        now = self._counts
        if now is None:
            return ""
        return f"  {now.workers} workers, {now.waiting} waiting, {now.lost} lost, {now.late} late"


class Mezo:
    """MeZO: one network, perturbed in place to both sides, at a rate that fades."""

    task: Task
    settings: Settings
    sigma: float
    rate: float

    state_bytes: int = 0
    status: str = ""

    def __init__(self, task: Task, settings: Settings, *, sigma: float, rate: float) -> None:
        """Draw the first network."""
        self.task, self.settings, self.sigma, self.rate = task, settings, sigma, rate
        self.evolved: Store = new_network(task, settings)
        self._stacked = Program(stacked)

    def run(self, folder: Path) -> Iterator[Record]:
        """Evaluate the network perturbed to both sides, and move it towards the better one."""
        return es.mezo(
            self.evolved,
            lambda params, number: self.task.evaluate(self._stacked(params), number)[0],
            seed=self.settings.seed,
            noise=Rademacher(self.sigma),
            rate=lambda number: self.rate * fading(number, self.settings),
            steps=self.settings.generations,
            run=folder,
        )

    def champion(self) -> Store:
        """The network."""
        return self.evolved


def connect(workers: str) -> None:
    """Join the cluster that `ray:address` names; start one on this machine, if it is `ray` alone.

    Raises `ConnectionError` if nobody answers there: Ray would go on trying for many minutes. And if no node has a CPU.
    """
    ray, address = require("ray", "ray"), workers.partition(":")[2]
    if address not in ("", "auto"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise ConnectionError(
                f"expected a cluster of Ray at {address!r}, got {error}; fix: --workers ray:HOST:PORT, as `ray start` "
                "says, or --workers ray for one on this machine"
            ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of JAX, as Ray forks to start its processes
        ray.init(address or None, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    if not ray.cluster_resources().get("CPU"):
        raise ConnectionError(f"expected a cluster with CPUs for --workers {workers}, got none; fix: add a node to it")


def made_in_worker(task_type: type[Task], settings: Settings) -> tuple[Store, Any]:
    """The first centre, and what evaluates a member around it, in any process."""
    task = task_type(settings)
    return new_network(task, settings), task.evaluate_one


def new_population(task: Task, settings: Settings) -> Population:
    """Members of zeros, where workers can attach to them if there are any."""
    pop = Population.zeros(task.layout, settings.population)
    return pop.share() if settings.workers else pop


def evaluation(task: Task, settings: Settings) -> dict[str, Any]:
    """By whom members are evaluated, and how many at once."""
    if settings.workers:
        return {"evaluate": task.evaluate_one, "workers": settings.workers}
    return {"evaluate": task.evaluate, "chunk": settings.population}  # a task may have an environment for each member


def new_network(task: Task, settings: Settings) -> Store:
    """A network drawn at random, on the grid of any noise of the default bound."""
    store = Store.zeros(task.layout)
    es.update(store, task.initial, seeds(settings.seed, 1), [1.0])
    return store


def fading(number: int, settings: Settings) -> float:
    """The factor of a rate at a generation: half a cosine wave, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * number / settings.generations))


def stacked(params: Any) -> Any:
    """One network as a population of one."""
    return _jax.tree.map(partial(jnp.expand_dims, axis=0), params)


class GeneticAlgorithm:
    """Truncation selection, uniform crossover, a mutation that fades, one elite."""

    task: Task
    settings: Settings
    share: float
    sigma: float
    last_sigma: float

    state_bytes: int = 0
    status: str = ""

    def __init__(self, task: Task, settings: Settings, *, share: float, sigma: float, last_sigma: float) -> None:
        """Draw the first population."""
        self.task, self.settings, self.share = task, settings, share
        self.sigma, self.last_sigma = sigma, last_sigma
        self.evolved: Population = new_population(task, settings)
        es.sample(self.evolved, Store.zeros(task.layout), task.initial, seeds(settings.seed, settings.population))

    def mutation(self, number: int) -> Normal:
        """The noise that makes generation `number + 1`."""
        return Normal(self.sigma * (self.last_sigma / self.sigma) ** (number / self.settings.generations))

    def run(self, folder: Path) -> Iterator[Record]:
        """Evaluate the population, and replace it by its children before the next."""
        return ga.evolve(
            self.evolved,
            **evaluation(self.task, self.settings),
            seed=self.settings.seed,
            mutate=self.mutation,
            select=ga.Truncation(self.share),
            generations=self.settings.generations,
            run=folder,
        )

    def champion(self) -> Store:
        """The member that the task chooses."""
        return self.evolved[self.task.choose(self.evolved)].copy()
