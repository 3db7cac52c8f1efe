"""Cost as work grows, with fitted exponents: parameters, members, leaves, threads; ours and the peers'.

    python -m benchmarks.scaling            # ten minutes, 5 GB
    python -m benchmarks.scaling --quick

An exponent is the slope of a line through the logarithms of work and seconds: 1 is twice the time for twice the work, 0
the same time. It is fitted where all peers have left their fixed costs behind, which each line says. Peers of `members`
make generations of a genetic algorithm, evaluation left out.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np

import flatstore as fs

from .generation import stepping
from .peers import installed, named
from .peers.genetic import population
from .peers.peer import shapes, tree_of
from .report import NOT_THERE, Call, Row, beside, each, interleaved, repeated, report, yes_no


def perturbing(peer: Any, size: int) -> Call:
    """A perturbation of so many parameters."""
    return peer(size).perturb


def breeding(peer: Any, members: int) -> Call:
    """A generation of so many networks of 1,000 parameters."""
    made = peer(members, 1000)
    return lambda: made.run(1)


def unflattening(peer: Any, leaves: int) -> Call:
    """The tree of so many leaves of 64 numbers, out of a flat vector."""
    return peer(tree_of(leaves, 64)).unflatten


class Growth(NamedTuple):
    """How something grows."""

    what: str
    make: Callable[[Any, int], Call]
    peers: dict[str, Any]
    sizes: tuple[int, ...]
    quick: int
    """How many of the sizes a quick run has."""
    fitted: int
    """From which of the sizes on the line is fitted."""
    most: dict[str, int]
    """The last size of some peers, which take minutes to compile, or more memory, beyond."""


def some(question: str, *names: str, kind: str = "") -> dict[str, Any]:
    """Some of the peers of a question."""
    peers = named(question, kind)
    return {name: peers[name] for name in names}


GROWTH = {
    "parameters": Growth(
        "noise added in place",
        perturbing,
        some("perturbation", "flatstore", "numpy", "jax", "roof"),
        tuple(10**n for n in range(3, 10)),
        quick=4,
        fitted=2,
        most={"numpy": 10**8, "jax": 10**8},
    ),
    "members": Growth(
        "a generation, ga, 1,000 genes a member",
        breeding,
        some("generation", "flatstore", "numpy", "evosax (scan)", "evotorch", kind="ga"),
        (10, 100, 1000, 10_000, 100_000),
        quick=3,
        fitted=1,
        most={"evosax (scan)": 10_000, "evotorch": 10_000},
    ),
    "leaves": Growth(
        "a tree out of a flat vector",
        unflattening,
        some("conversion", "flatstore", "destructure", "numpy", "torch", "ravel_pytree"),
        (1, 10, 100, 1000, 10_000),
        quick=3,
        fitted=1,
        most={"ravel_pytree": 1000},
    ),
}
"""By what grows."""


def seconds_of(call: Call, rounds: int) -> float:
    """How long a call takes: the median. A short one is made again and again."""
    call()
    once = max(float(interleaved({"": call}, 1)[""][0]), 1e-7)
    loops = max(1, min(100_000, int(0.01 / once)))
    return float(np.median(interleaved({"": repeated(call, loops)}, rounds)[""])) / loops


def grown(name: str, peer: str, quick: bool) -> tuple[float, list[float]]:
    """The exponent of a peer, and its seconds at each size."""
    growth = GROWTH[name]
    most = growth.most.get(peer, growth.sizes[-1])
    sizes = [size for size in growth.sizes[: growth.quick if quick else None] if size <= most]
    taken = [seconds_of(growth.make(growth.peers[peer], size), 3 if quick else 5) for size in sizes]
    return slope(sizes[growth.fitted :], taken[growth.fitted :]), taken


def slope(sizes: Any, seconds: Any) -> float:
    """The exponent."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


class Exponents:
    """The exponent of the time that a peer takes, at small sizes."""

    params: Any = [f"{name}: {peer}" for name, growth in GROWTH.items() for peer in growth.peers]
    param_names = ("what grows and peer",)
    timeout = 300
    unit = "exponent"

    def setup(self, case: str) -> None:
        self.name, _, self.peer = case.partition(": ")
        GROWTH[self.name].peers[self.peer].require()

    def track_exponent(self, case: str) -> float:
        return grown(self.name, self.peer, quick=True)[0]


def growing(name: str, quick: bool) -> Iterator[Row]:
    """A line for each peer."""
    growth = GROWTH[name]
    for peer in growth.peers:
        if peer not in installed(growth.peers):
            yield beside(f"exponent in {name}: {peer}", NOT_THERE)
            continue
        exponent, taken = grown(name, peer, quick)
        cells = ", ".join(f"{size:,}: {1e3 * x:.3g}" for size, x in zip(growth.sizes, taken, strict=False))
        figure = f"exponent in {name}, from {growth.sizes[growth.fitted]:,} on: {peer}"
        yield beside(figure, f"{exponent:.2f}; ms by size {cells}")


def parameters(quick: bool) -> Iterator[Row]:
    """Noise added in place."""
    yield from growing("parameters", quick)


def members(quick: bool) -> Iterator[Row]:
    """A generation of a genetic algorithm, 1,000 genes a member."""
    yield from growing("members", quick)


def leaves(quick: bool) -> Iterator[Row]:
    """A tree out of a flat vector."""
    yield from growing("leaves", quick)


def genes(quick: bool) -> Iterator[Row]:
    """Seconds against members x genes, all populations in the same memory."""
    sizes = [(100, 10**5), (300, 10**5), (1000, 10**5)]
    if not quick:
        sizes += [(300, 10**6), (1000, 10**6), (1000, 3 * 10**6)]
    layouts = {size: fs.Layout.from_tree(shapes(10, size[1])) for size in sizes}
    everything = population(10, *sizes[-1])
    calls = {
        f"{size[0] * size[1]:.0e}": stepping(
            fs.Population.wrap(everything.buffer[: layout.nbytes * size[0]], layout, size[0])
        )
        for size, layout in layouts.items()
    }
    taken = interleaved(calls, 3)
    counts = [members * genes for members, genes in sizes]
    exponent = float(np.median([slope(counts, times) for times in zip(*taken.values(), strict=True)]))
    figure = f"exponent of seconds in members x genes, {counts[0]:.0e} to {counts[-1]:.0e}"
    yield Row(figure, "1.00 +- 0.05", f"{exponent:.3f}", yes_no(abs(exponent - 1) <= 0.05))
    yield beside("by members x genes", each(taken))


def limited(cores: int) -> None:
    """In a worker: use so many cores, before anything has looked how many there are."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def by_threads(question: str, peer: str, size: int, rounds: int) -> float:
    """In a worker: the seconds of a perturbation, or of a generation of members of 1,000 parameters."""
    make = breeding if question == "generation" else perturbing
    return seconds_of(make(named(question, "ga" if question == "generation" else "")[peer], size), rounds)


def threads(quick: bool) -> Iterator[Row]:
    """The same work on one core and on more, in processes that may use no other; 10,000,000 parameters, or fewer."""
    size, rounds = (10**6, 3) if quick else (10**7, 9)
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= len(os.sched_getaffinity(0))]
    cases = {"perturbation": ("flatstore", "numpy", "jax", "roof"), "generation": ("flatstore",)}
    for question, peers in cases.items():
        for peer in peers[: 1 if quick else None]:
            taken: list[float] = []
            for n in counts:
                spawn = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, spawn, limited, (n,)) as worker:
                    work = size // 1000 if question == "generation" else size
                    taken.append(worker.submit(by_threads, question, peer, work, rounds).result())
            faster = ", ".join(f"{n}: {taken[0] / x:.2f} x" for n, x in zip(counts, taken, strict=True))
            yield beside(f"a {question}, speed by cores: {peer}", faster)


MEASURES = parameters, members, leaves, genes, threads

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
