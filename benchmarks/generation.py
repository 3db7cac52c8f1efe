"""Generations, evaluation left out: genetic algorithms (ga) and evolution strategies (es).

    python -m benchmarks.generation                     # ten minutes, 18 GB
    python -m benchmarks.generation --quick
    python -m benchmarks.generation --only memory       # one part

How peers are measured stands in `race.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import bench

from . import race, tracked
from .peers import PEERS, named
from .peers.genetic import fitness, population, step
from .peers.noise import Flatstore
from .peers.peer import SCALE
from .report import MIB, Call, Row, at_least, at_most, beside, each, interleaved, ratio, report, slower

MADE = PEERS["generation"]
TARGETS: dict[str, Any] = {
    "ga": {"numpy": 25, "evosax": 25, "evosax (scan)": 25, "evotorch": 40},
    "es": {"evosax": 10, "evotorch": 20},
}
"""How many times as fast as each peer."""


class Generations(tracked.Times):
    """Five generations of small networks, and of larger ones."""

    params: Any = (list(MADE), [(320, 2_410), (64, 50_000)])
    param_names = ("peer", "members and genes")

    @staticmethod
    def make(peer: str, size: tuple[int, int]) -> Call:
        return partial(MADE[peer](*size).run, 5)


class Peak(tracked.Peak):
    """What 128 x 100,000 float32 (51,200,000 bytes) and generations of them take at the peak."""

    question = "generation"
    params: Any = list(MADE)
    param_names = ("peer",)

    @staticmethod
    def make(peer: str) -> Any:
        return MADE[peer]

    @staticmethod
    def work(made: Any) -> None:
        race.two_generations(made, 128, 100_000)


def stepping(pop: fs.Population, **operators: Any) -> Call:
    """A call that makes a generation."""
    scores = fitness(pop.size)
    return lambda: step(pop, scores, 1, **operators)


def _added(gene: Any, scale: Any, draw: Any) -> Any:
    return gene + scale * draw


FEW = fs.ga.Sparse(fs.Normal(SCALE), 0.01)
OPERATORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"bounds": fs.ga.Bounds({"*": (-1, 1)}, "clip")},
    "reflected": {"bounds": fs.ga.Bounds({"*": (-1, 1)}, "reflect")},
    "a mutation of one's own": {"mutate": fs.ga.Mutate(_added, table=fs.Normal(1).values, scale=SCALE)},
    "2-point crossover": {"mutate": FEW, "crossover": fs.ga.Points(2)},
    "leaves exchanged": {"mutate": FEW, "crossover": fs.ga.Exchange()},
}
"""What is otherwise than in the generations that are compared."""


def ways(members: int, genes: int) -> dict[str, Call]:
    """Calls that make a generation by each, of random numbers; and the roof."""
    pop = population(10, members, genes)
    rows = pop.buffer.view(np.float32)
    np.random.default_rng(2).standard_normal(out=rows, dtype=np.float32)
    return {"roof": bench.scaled(rows)} | {name: stepping(pop, **given) for name, given in OPERATORS.items()}


class Operators(tracked.Times):
    """A generation of 64 x 50,000 by other operators, beside the roof."""

    params: Any = ["roof", *OPERATORS]
    param_names = ("operator",)

    @staticmethod
    def make(operator: str) -> Call:
        return ways(64, 50_000)[operator]


def genetic(quick: bool) -> Iterator[Row]:
    """A generation of a genetic algorithm, beside the peers."""
    size = (64, 50_000, 3) if quick else (512, 500_000, 3)
    yield from race.rows(named("generation", "ga"), *size, targets=TARGETS["ga"])


def strategies(quick: bool) -> Iterator[Row]:
    """A generation of OpenAI-ES, beside the peers."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    peaks = yield from race.rows(named("generation", "es"), members, genes, 3, targets=TARGETS["es"])
    extra = {name: peak - 4 * members * genes for name, peak in peaks.items()}
    for name in list(extra)[1:]:
        share = 100 * extra["flatstore"] / extra[name]
        yield at_most(f"extra memory, of {name}'s", 1, share, "%")


def memory(quick: bool) -> Iterator[Row]:
    """The peak of a generation, few large members and many small."""
    for members, genes in ((64, 200_000), (4, 3_200_000)) if quick else ((512, 500_000), (16, 16_000_000)):
        size = 4 * members * genes
        peak = race.peak(MADE["flatstore, ga"], members, genes)
        yield at_most(f"peak - 1.02 populations, {members} x {genes:,}", 32, (peak - 1.02 * size) / MIB, "MiB", 1)
        yield beside("the peak", f"{peak / size:.3f} populations")


def orders(quick: bool) -> Iterator[Row]:
    """Leaf order and member order."""
    sizes = [(10, 64, 50_000), (4000, 64, 64_000)] if quick else [(10, 256, 500_000), (4000, 1024, 64_000)]
    for count, members, genes in sizes:
        pops = {order: population(count, members, genes, order) for order in ("leaf", "member")}
        taken = interleaved({order: stepping(pop) for order, pop in pops.items()}, 3 if quick else 7)
        figure = f"the slower order / the faster, {members} x {genes:,} in {count:,} leaves"
        yield at_most(figure, 1.5, slower(taken, "leaf", "member"), "x")
        yield beside("each", each(taken))


def operators(quick: bool) -> Iterator[Row]:
    """Other operators: beside a plain generation, and those that need no number per gene beside the roof."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    taken = interleaved(ways(members, genes), 5 if quick else 9)
    for name in ("2-point crossover", "leaves exchanged"):
        yield at_least(f"{name}, 1 % mutated / the roof", 40, 100 * ratio(taken, "roof", name), "%", 0)
    for name in ("clipped", "reflected", "a mutation of one's own"):
        yield beside(f"seconds, {name} / plain", f"{ratio(taken, name, 'plain'):.2f} x")
    yield beside(f"each, {members} x {genes:,}", each(taken))


def beside_perturbation(quick: bool) -> Iterator[Row]:
    """A generation against adding the same noise to as many parameters in place."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    peer, noise = MADE["flatstore, ga"](members, genes), Flatstore(members * genes)
    taken = interleaved({"generation": lambda: peer.run(1), "perturbation": noise.perturb}, 5 if quick else 9)
    yield at_least("the rate of perturbation in place", 40, 100 * ratio(taken, "perturbation", "generation"), "%", 0)
    yield beside("each", each(taken))


MEASURES = memory, genetic, strategies, orders, operators, beside_perturbation

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
