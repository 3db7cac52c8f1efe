"""Measuring peers side by side: each in a process of its own, which times its own work; the processes take turns.

A peer that is not installed is a line that says so. The peak is the most that the process holds while it makes a
generation, less what it held before there was a population (after a generation of a tiny one, so that libraries are
imported and kernels compiled); the population itself counts 1.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from flatstore.bench import scaled as scaled
from flatstore.bench import tidy as tidy

if __package__:  # asv imports this folder as a package
    from .ga_peers import Peer
    from .report import resident, seconds
else:
    from ga_peers import Peer
    from report import resident, seconds


class Resident:
    """A peer and what its process held before the population was there."""

    def __init__(self, make: type[Peer], members: int, genes: int, generations: int) -> None:
        make(4, 10_000).run(1)
        self.before = tidy()
        self.peer, self.generations = make(members, genes), max(generations, make.fewest)
        self.peer.run(self.generations)  # compiles for this size

    def turn(self) -> float:
        """The seconds of each generation."""
        gc.collect()
        return seconds(lambda: self.peer.run(self.generations)) / self.generations

    def peak(self) -> int:
        """The most bytes that a generation adds to those held before there was a population."""
        self.peer.run(1)
        tidy()
        self.peer.run(1)
        return resident("VmHWM") - self.before


_here: list[Resident] = []  # the peer of a worker process


def settle(*arguments: Any) -> None:
    """In a worker: make the peer."""
    _here.append(Resident(*arguments))


def turn() -> float:
    """In a worker: the seconds of a generation."""
    return _here[0].turn()


def peak() -> int:
    """In a worker: the most bytes that were added."""
    return _here[0].peak()


def race(
    peers: dict[str, type[Peer]], members: int, genes: int, rounds: int, generations: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Seconds of a generation per round, and peak bytes, of each peer."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in peers}
        for name, worker in workers.items():
            worker.submit(settle, peers[name], members, genes, generations).result()
        taken = np.array([[worker.submit(turn).result() for worker in workers.values()] for _ in range(rounds)])
        peaks = {name: worker.submit(peak).result() for name, worker in workers.items()}
    return dict(zip(peers, taken.T, strict=True)), peaks
