"""Measuring peers side by side: each in a process of its own, which times its own work; the processes take turns.

A peer that is not installed is a line that says so. The peak is what the process holds at the most while it makes a
generation, less what it held before there was a population (after a generation of a tiny one, so that libraries are
imported and kernels compiled); the population itself counts 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

if __package__:  # asv imports this folder as a package
    from .figures import Row, resident, seconds, yes_no
    from .ga_peers import Peer
else:
    from figures import Row, resident, seconds, yes_no
    from ga_peers import Peer


def at_least(figure: str, target: float, measured: float, unit: str, digits: int = 2) -> Row:
    """A figure that is to be at least `target`."""
    return Row(figure, f">= {target:g} {unit}", f"{measured:.{digits}f} {unit}", yes_no(measured >= target))


def ratio(taken: dict[Any, Any], of: Any, to: Any) -> float:
    """The median over the rounds of one call's seconds as a multiple of another's."""
    return float(np.median(taken[of] / taken[to]))


def slower(taken: dict[Any, Any], one: Any, two: Any) -> float:
    """The slower of two calls as a multiple of the faster."""
    return max(ratio(taken, one, two), ratio(taken, two, one))


def tidy() -> int:
    """The bytes that are resident once what is free has gone back to the system; the peak starts again from there."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else a compiler's freed memory would pass for memory in use
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # 'VmHWM' is forgotten
    return resident("VmRSS")


class Resident:
    """A peer and what its process held before the population was there."""

    def __init__(self, make: type[Peer], members: int, genes: int, generations: int) -> None:
        make(4, 10_000).run(1)
        self.before = tidy()
        self.peer, self.generations = make(members, genes), max(generations, make.fewest)
        self.peer.run(self.generations)  # compiles for this size

    def turn(self) -> float:
        """The seconds of each of so many generations."""
        gc.collect()
        return seconds(lambda: self.peer.run(self.generations)) / self.generations

    def peak(self) -> int:
        """Bytes that a generation adds at the most to what was held before the population was there."""
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
    """In a worker: the bytes added at the most."""
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


def scaled(array: Any) -> Callable[[], None]:
    """A call that is the roof: `np.multiply` in place, a part of the array for each core."""
    parts = np.array_split(array, os.cpu_count() or 1)
    threads = ThreadPoolExecutor(len(parts))
    one = np.float32(1)
    return lambda: list(threads.map(lambda part: np.multiply(part, one, out=part), parts)).clear()


def report(description: str, measures: tuple[Callable[[bool], Iterator[Row]], ...]) -> None:
    """The command line of such a report: measure and print."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds, under 30 s")
    parser.add_argument("--only", choices=[x.__name__ for x in measures], action="append", help="this part alone")
    arguments = parser.parse_args()
    rows = [Row("figure", "target", "measured", "reaches it")]
    for measure in measures:
        if arguments.only is None or measure.__name__ in arguments.only:
            print(f"measuring {measure.__name__} ...", file=sys.stderr)
            rows += measure(arguments.quick)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, Row(*("-" * width for width in widths)))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    names = ("jax", "numpy", "numba", "evosax", "evotorch", "torch")
    found: list[str] = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    print(f"\nPython {platform.python_version()}, {', '.join(found)}; {os.cpu_count()} cores", end="")
    print("; --quick" * arguments.quick)
