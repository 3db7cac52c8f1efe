"""Generations of peers side by side: each in a process of its own, which times its own work; the processes take turns.

The peak is the most that a population and two generations of it add to a process that has made as many before, so that
libraries are imported and kernels are compiled; the population itself counts 1.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from flatstore import bench

from .peers import installed
from .report import MIB, NOT_THERE, Row, at_least, beside, ratio

_here: list[tuple[Any, int]] = []  # the peer of a worker process, and how many generations it makes in its turn


def settle(make: Any, members: int, genes: int, generations: int) -> None:
    """In a worker: make the peer."""
    _here.append((make(members, genes), max(generations, make.fewest)))
    turn()  # compiles


def turn() -> float:
    """In a worker: the seconds of each generation."""
    peer, generations = _here[0]
    gc.collect()
    return bench.seconds(lambda: peer.run(generations)) / generations


def race(peers: dict[str, Any], members: int, genes: int, rounds: int, generations: int) -> dict[str, Any]:
    """Seconds of a generation per round, of each peer."""
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in peers}
        for name, worker in workers.items():
            worker.submit(settle, peers[name], members, genes, generations).result()
        taken = np.array([[worker.submit(turn).result() for worker in workers.values()] for _ in range(rounds)])
    return dict(zip(peers, taken.T, strict=True))


def two_generations(make: Any, members: int, genes: int) -> None:
    """A population, and two generations of it: some move in the second what they have sampled in the first."""
    made = make(members, genes)
    for _ in range(2):
        made.run(1)


def peak(make: Any, members: int, genes: int) -> int:
    """The most bytes that they take."""
    return bench.peak_memory(two_generations, make, members, genes)


def rows(
    peers: dict[str, Any],
    members: int,
    genes: int,
    rounds: int,
    generations: int = 1,
    targets: dict[str, float] | None = None,
    made: int | None = None,
    smallest: int = 32 * MIB,
) -> Generator[Row, None, dict[str, int]]:
    """A line for each peer, and how many times as long each takes as the first; returns the peaks.

    `made` is how many genes the peers really have; of populations of fewer bytes than `smallest` the peak is left out,
    which is that of what libraries hold.
    """
    found, size = installed(peers), members * (made or genes)
    taken, title = race(found, members, genes, rounds, generations), f"{members:,} x {genes:,}"
    peaks = {name: peak(peer, members, genes) for name, peer in found.items() if 4 * size > smallest}
    for name in peers:
        measured = NOT_THERE
        if name in taken:
            median = float(np.median(taken[name]))
            measured = f"{1e3 * median:.3g} ms, {size / median / 1e9:.3f} G genes/s"
        if name in peaks:
            measured += f", peak {peaks[name] / (4 * size):.2f} populations"
        yield beside(f"{name}, {title}", measured)
    ours, *others = found
    for name in others:
        figure, longer = f"{name}, seconds / those of {ours}, {title}", ratio(taken, name, ours)
        target = (targets or {}).get(name)
        yield beside(figure, f"{longer:.2f} x") if target is None else at_least(figure, target, longer, "x", 1)
    return peaks
