"""The figures of the genetic algorithm, measured side by side in one run and printed as a table.

    python benchmarks/ga_figures.py                     # several minutes, 18 GB
    python benchmarks/ga_figures.py --quick             # smaller sizes, under 30 s
    python benchmarks/ga_figures.py --only memory       # one part

How it is measured stands in `report.py`, how peers are in `race.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .ga_peers import PEERS, SCALE, Flatstore, fitness, leaves, step, zeros
    from .race import race, scaled
    from .report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, slower, yes_no
else:
    from ga_peers import PEERS, SCALE, Flatstore, fitness, leaves, step, zeros
    from race import race, scaled
    from report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, slower, yes_no

TARGETS = {"numpy": 25, "evosax": 25, "evosax (scan)": 25, "evotorch": 40}
"""How many times as fast as each peer."""


def compare(members: int, genes: int, rounds: int, generations: int, targets: dict[str, int]) -> Iterator[Row]:
    """Genes per second and peak of each peer at one size."""
    found = {name: peer for name, peer in PEERS.items() if peer.installed()}
    taken, peaks = race(found, members, genes, rounds, generations)
    size, population = f"{members:,} x {genes:,}", 4 * members * genes
    for name in PEERS:
        measured = "not installed"
        if name in taken:
            measured = f"{members * genes / np.median(taken[name]) / 1e9:.3f} G genes/s"
            if population > 32 * MIB:
                measured += f", peak {peaks[name] / population:.2f} populations"
        yield beside(f"{name}, {size}", measured)
    for name in list(found)[1:]:
        figure, measured = f"flatstore's rate / that of {name}, {size}", ratio(taken, name, "flatstore")
        yield (
            at_least(figure, targets[name], measured, "x", 1)
            if name in targets
            else beside(figure, f"{measured:.1f} x")
        )


def peers(quick: bool) -> Iterator[Row]:
    """A generation, beside the peers."""
    yield from compare(64, 50_000, 3, 1, TARGETS) if quick else compare(512, 500_000, 3, 1, TARGETS)


def small(quick: bool) -> Iterator[Row]:
    """A population of small networks, where overheads count."""
    yield from compare(320, 2_410, 5 if quick else 15, 2 if quick else 10, {})


def memory(quick: bool) -> Iterator[Row]:
    """The peak of a generation, few large members and many small."""
    for members, genes in ((64, 200_000), (4, 3_200_000)) if quick else ((512, 500_000), (16, 16_000_000)):
        _, peaks = race({"flatstore": Flatstore}, members, genes, 1, 1)
        beyond = peaks["flatstore"] - 1.02 * 4 * members * genes
        yield at_most(f"peak - 1.02 populations, {members} x {genes:,}", 32, beyond / MIB, "MiB", 1)
        yield beside("the peak", f"{peaks['flatstore'] / (4 * members * genes):.3f} populations")


def stepping(pop: fs.Population, **operators: Any) -> Callable[[], None]:
    """A call that makes a generation."""
    scores = fitness(pop.size)
    return lambda: step(pop, scores, 1, **operators)


def orders(quick: bool) -> Iterator[Row]:
    """Leaf order and member order."""
    sizes = [(10, 64, 50_000), (4000, 64, 64_000)] if quick else [(10, 256, 500_000), (4000, 1024, 64_000)]
    for count, members, genes in sizes:
        pops = {order: zeros(count, members, genes, order) for order in ("leaf", "member")}
        taken = interleaved({order: stepping(pop) for order, pop in pops.items()}, 3 if quick else 7)
        figure = f"the slower order / the faster, {members} x {genes:,} in {count:,} leaves"
        yield at_most(figure, 1.5, slower(taken, "leaf", "member"), "x")
        rates = (f"{order} {members * genes / np.median(x) / 1e9:.2f}" for order, x in taken.items())
        yield beside("each", ", ".join(rates) + " G genes/s")


def linear(quick: bool) -> Iterator[Row]:
    """Seconds against members x genes, all populations in the same memory."""
    sizes = [(100, 10**5), (300, 10**5), (1000, 10**5)]
    if not quick:
        sizes += [(300, 10**6), (1000, 10**6), (1000, 3 * 10**6)]
    layouts = {size: fs.Layout.from_tree(leaves(10, size[1])) for size in sizes}
    everything = zeros(10, *sizes[-1])
    calls = {
        size: stepping(fs.Population.wrap(everything.buffer[: layout.nbytes * size[0]], layout, size[0]))
        for size, layout in layouts.items()
    }
    taken = interleaved(calls, 3)
    counts = np.log([members * genes for members, genes in sizes])
    fits = [np.polyfit(counts, np.log(times), 1)[0] for times in zip(*taken.values(), strict=True)]
    exponent = float(np.median(fits))
    figure = f"exponent of seconds in members x genes, {np.prod(sizes[0]):.0e} to {np.prod(sizes[-1]):.0e}"
    yield Row(figure, "1.00 +- 0.05", f"{exponent:.3f}", yes_no(abs(exponent - 1) <= 0.05))
    rates = (
        f"{members * genes:.0e}: {members * genes / np.median(taken[members, genes]) / 1e9:.2f}"
        for members, genes in sizes
    )
    yield beside("G genes/s by members x genes", ", ".join(rates))


def beside_the_roof(quick: bool) -> Iterator[Row]:
    """Operators that need no number per gene, against the bandwidth of the machine."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    pop = zeros(10, members, genes)
    few = fs.ga.Sparse(fs.Normal(SCALE), 0.01)
    calls = {
        "roof": scaled(pop.buffer.view(np.float32)),
        "2-point crossover": stepping(pop, mutate=few, crossover=fs.ga.Points(2)),
        "whole leaves exchanged": stepping(pop, mutate=few, crossover=fs.ga.Exchange()),
    }
    taken = interleaved(calls, 5 if quick else 9)
    for name, times in taken.items():
        if name != "roof":
            yield at_least(f"{name}, 1 % mutated / the roof", 40, 100 * ratio(taken, "roof", name), "%", 0)
        yield beside(f"{name}, {members} x {genes:,}", f"{members * genes / np.median(times) / 1e9:.2f} G genes/s")


def beside_perturbation(quick: bool) -> Iterator[Row]:
    """A generation against adding the same noise to as many parameters in place."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    noise = fs.Normal(SCALE)
    peer = Flatstore(members, genes)
    store = fs.Store.zeros(fs.Layout.from_tree(leaves(10, members * genes)))
    calls = {"generation": lambda: peer.run(1), "perturbation": lambda: fs.es.perturb(store, noise, 1)}
    taken = interleaved(calls, 5 if quick else 9)
    yield at_least("the rate of perturbation in place", 40, 100 * ratio(taken, "perturbation", "generation"), "%", 0)
    rates = (f"{name} {members * genes / np.median(x) / 1e9:.2f}" for name, x in taken.items())
    yield beside("each", ", ".join(rates) + " G genes/s")


def bounds(quick: bool) -> Iterator[Row]:
    """A generation with bounds that some genes are beyond, and with a mutation of one's own, beside a plain one."""
    members, genes = (64, 50_000) if quick else (256, 500_000)
    pops = [zeros(10, members, genes) for _ in range(4)]
    for pop in pops:
        rows = pop.buffer.view(np.float32)
        rows[:] = np.random.default_rng(2).standard_normal(rows.size, dtype=np.float32)
    clip, reflect = (fs.ga.Bounds({"*": (-1, 1)}, outside) for outside in ("clip", "reflect"))
    own = fs.ga.Mutate(_added, table=fs.Normal(1).values, scale=SCALE)
    calls = {
        "no bounds": stepping(pops[0], mutate=fs.Normal(SCALE)),
        "clipped": stepping(pops[1], mutate=fs.Normal(SCALE), bounds=clip),
        "reflected": stepping(pops[2], mutate=fs.Normal(SCALE), bounds=reflect),
        "a mutation of one's own": stepping(pops[3], mutate=own),
    }
    taken = interleaved(calls, 5 if quick else 15)
    for name in list(calls)[1:]:
        figure = f"seconds, {name} / no bounds, {members} x {genes:,}"
        yield beside(figure, f"{ratio(taken, name, 'no bounds'):.2f} x")


def _added(gene: Any, scale: Any, draw: Any) -> Any:
    return gene + scale * draw


MEASURES: tuple[Callable[[bool], Iterator[Row]], ...] = (
    memory,
    peers,
    small,
    orders,
    linear,
    beside_perturbation,
    beside_the_roof,
    bounds,
)


if __name__ == "__main__":
    report("Measure the figures of the genetic algorithm, and print them.", *MEASURES)
