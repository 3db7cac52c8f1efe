"""One island: a population in a process of its own, which makes an epoch, or makes it again from its folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count as counted
from typing import Any

import numpy as np

from flatstore import ga
from flatstore.evaluation import best_first
from flatstore.files import load, metadata_of, save
from flatstore.noise import seeds
from flatstore.recording import as_numbers, as_texts, read_json
from flatstore.scale.replica import arriving, made
from flatstore.store import Population


@dataclass(frozen=True)
class Job:
    """What all processes of a run are told once."""

    make: Any
    seed: tuple[int, ...]
    count: int
    every: int
    migrants: int
    route: str
    run: str
    operators: dict[str, Any]

    def source(self, island: int, epoch: int) -> int:
        """The island whose best come to an island as an epoch begins."""
        ring = np.arange(self.count) if self.route == "ring" else np.argsort(seeds((*self.seed, epoch), self.count))
        return int(ring[int(np.flatnonzero(ring == island)[0]) - 1])

    def operators_with(self, mutate: Any) -> dict[str, Any]:
        """The operators with another mutation."""
        return {**self.operators, "mutate": mutate}

    def folder(self, island: int, epoch: int) -> str:
        """Where an epoch of an island is a run."""
        return os.path.join(self.run, f"island-{island}", f"epoch-{epoch}")

    def best(self, island: int, epoch: int) -> str:
        """Where the best of an island are after an epoch."""
        return os.path.join(self.run, f"island-{island}", f"best-{epoch}.safetensors")


class Island:
    """What runs in a process: one population, wherever it is."""

    def __init__(self, job: Job, island: int) -> None:
        self._job, self._island = job, island
        self._pop: Any = None
        self._last: tuple[int, Any] = -1, None

    @arriving
    def evolve(self, epoch: int, keep: int) -> bytes:
        """Make an epoch, or what is left of it, and return the fitness of its last generation; save its best.

        Epochs before `keep` are removed. What is raised has a note that names the island.
        """
        try:
            return self._evolved(epoch, keep)
        except Exception as error:
            notes = [note for note in getattr(error, "__notes__", ()) if self._job.run not in note]  # of `ga.evolve`
            error.__notes__ = [*notes, f"it was raised on island {self._island}, in epoch {epoch}"]
            raise

    def _evolved(self, epoch: int, keep: int) -> bytes:
        if self._pop is None:
            if not os.path.isdir(self._job.run):
                raise FileNotFoundError(
                    f"expected the folder of the run on every node, got none at {self._job.run!r} on "
                    f"{socket.gethostname()}; fix: name a folder that all nodes see"
                )
            self._pop, self._evaluate = made(self._job.make, Population, self._island)
            if len(self._pop) <= self._job.migrants:
                raise ValueError(
                    f"expected more members than migrants, {self._job.migrants}, got {len(self._pop)}; "
                    "fix: pass fewer migrants="
                )
        job, pop = self._job, self._pop
        if epoch and not os.path.exists(os.path.join(job.folder(self._island, epoch), "settings.json")):
            record = self._last[1] if self._last[0] == epoch - 1 else self._made(pop, epoch - 1)
            self._receive(pop, epoch, record)
        record = self._made(pop, epoch)
        self._last = epoch, record
        chosen = best_first(record.fitness)[: job.migrants]
        out = Population.like(pop, len(chosen))
        for leaf in pop.layout.homes:
            out[leaf.path] = pop[leaf.path][chosen] if leaf.trainable else pop[leaf.path]
        save(job.best(self._island, epoch), out, metadata={"fitness": json.dumps(as_texts(record.fitness[chosen]))})
        for old in counted(keep - 1, -1):
            if old < 0 or not os.path.exists(job.best(self._island, old)):
                break
            if os.path.isdir(job.folder(self._island, old)):
                shutil.rmtree(job.folder(self._island, old))
            os.unlink(job.best(self._island, old))
        return record.fitness.tobytes()

    def _made(self, pop: Population, epoch: int) -> Any:
        """The record of the last generation of an epoch: evolved, or what its folder has."""
        job, first = self._job, epoch * self._job.every
        mutate = job.operators["mutate"]
        later = partial(_later, mutate, first) if callable(mutate) else mutate
        records = ga.evolve(
            pop,
            partial(_later, self._evaluate, first),
            seed=(*job.seed, self._island, epoch),
            generations=job.every,
            run=job.folder(self._island, epoch),
            **job.operators_with(later),
        )
        return deque(records, maxlen=1)[0]

    def _receive(self, pop: Population, epoch: int, record: Any) -> None:
        """Put those who come in the places of the worst, and make the first generation of an epoch."""
        job, fitness = self._job, record.fitness.copy()
        path = job.best(job.source(self._island, epoch), epoch - 1)
        arrived: Any = load(path, like=pop.layout)
        try:
            theirs = as_numbers(read_json(metadata_of(path)["fitness"]))
            if not len(theirs) == arrived.size == job.migrants:
                raise ValueError(f"the fitness of {len(theirs)} members, and {arrived.size} of them")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"expected {job.migrants} members and their fitness in {path!r}, got others ({error!r}); "
                "fix: take a copy of the run"
            ) from error
        worst = best_first(fitness)[len(fitness) - arrived.size :]
        for leaf in pop.layout.homes:
            if leaf.trainable:
                pop[leaf.path][worst] = arrived[leaf.path]
        fitness[worst] = theirs
        mutate = job.operators["mutate"]
        now = mutate(epoch * job.every - 1) if callable(mutate) else mutate
        seed = *job.seed, self._island, epoch - 1, job.every - 1
        ga.step(pop, fitness, seed=seed, **job.operators_with(now))


def _later(function: Callable[..., Any], first: int, *arguments: Any) -> Any:
    """A function whose last argument is the number of a generation, counted from another one."""
    return function(*arguments[:-1], arguments[-1] + first)
