"""The figures of small models, and of whole generations, measured side by side in one run and printed as a table.

    python benchmarks/small_figures.py                      # ten minutes, 5 GB
    python benchmarks/small_figures.py --quick              # smaller sizes, under 30 s; whole generations without peers
    python benchmarks/small_figures.py --only perturb       # one part

How it is measured stands in `report.py`, how whole generations are in `race.py`. Networks have one hidden layer, so
four leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from . import ga_peers
    from .es_figures import NORMAL, InJax
    from .ga_peers import SCALE, Peer, fitness, step
    from .peers import Dlpack
    from .race import race
    from .report import Call, Row, at_least, at_most, beside, interleaved, ratio, repeated, report
    from .whole_peers import GENETIC, STRATEGIES, hidden, network, parameters
else:
    import ga_peers
    from es_figures import NORMAL, InJax
    from ga_peers import SCALE, Peer, fitness, step
    from peers import Dlpack
    from race import race
    from report import Call, Row, at_least, at_most, beside, interleaved, ratio, repeated, report
    from whole_peers import GENETIC, STRATEGIES, hidden, network, parameters

NETWORKS = {114: (4, 16, 2), 2_410: (64, 32, 10), 10_064: (35, 100, 64)}
"""Parameters, and the layers that have so many."""


def layout(size: int) -> fs.Layout:
    """That of a network of `size` parameters."""
    return fs.Layout.from_tree(network(*NETWORKS.get(size) or (64, hidden(size), 10)))


def sfc64(size: int) -> Call:
    """A call that adds normal noise by NumPy's fastest generator, on this thread."""
    x, noise = np.zeros(size, np.float32), np.empty(size, np.float32)
    generator = np.random.Generator(np.random.SFC64(0))

    def add() -> None:
        generator.standard_normal(out=noise, dtype=np.float32)
        np.multiply(noise, np.float32(SCALE), out=noise)
        np.add(x, noise, out=x)

    return add


def there_and_back(size: int) -> Call:
    """A call of `fs.es.perturb`, whose next takes it back."""
    store, signs = fs.Store.zeros(layout(size)), itertools.cycle((1, -1))
    return lambda: fs.es.perturb(store, NORMAL, 7, sign=next(signs))


def microseconds(taken: dict[str, Any], loops: int) -> str:
    """The time of each, as text."""
    return ", ".join(f"{name} {np.median(times) / loops * 1e6:.0f}" for name, times in taken.items()) + " us"


def perturb(quick: bool) -> Iterator[Row]:
    """Noise added in place, beside a jitted, donated call of JAX and NumPy's SFC64."""
    loops = 50 if quick else 100
    for size in NETWORKS:
        makers: dict[str, Callable[[int], Call]] = {"perturb": there_and_back, "JAX": InJax, "SFC64": sfc64}
        calls = {name: repeated(make(size), loops) for name, make in makers.items()}
        taken = interleaved(calls, 3 if quick else 30, twice=True)
        if size == 114:
            yield at_most(f"perturb, {size} parameters", 40, float(np.median(taken["perturb"])) / loops * 1e6, "us", 0)
        else:
            yield at_most(f"perturb / NumPy's SFC64, {size:,} parameters", 1, ratio(taken, "perturb", "SFC64"), "x")
        yield at_most(f"perturb / JAX, jitted and donated, {size:,}", 1, ratio(taken, "perturb", "JAX"), "x")
        yield beside("each", microseconds(taken, loops))


def verbs(members: int, size: int) -> dict[str, Call]:
    """A call of each verb of a generation."""
    pop, centre = fs.Population.zeros(layout(size), members), fs.Store.zeros(layout(size))
    pop.buffer[:] = 0
    seeds, weights, scores = fs.seeds(1, members), np.linspace(-1e-3, 1e-3, members), fitness(members)
    signs = itertools.cycle((1, -1))
    return {
        "sample": lambda: fs.es.sample(pop, centre, NORMAL, seeds),
        "update": lambda: fs.es.update(centre, NORMAL, seeds, weights, sign=next(signs)),
        "ga.step": lambda: step(pop, scores, 1),
    }


def evosax(members: int, size: int, generations: int) -> Call:
    """A call that makes some generations of `SimpleGA`, by ask and tell."""
    peer = ga_peers.Evosax(members, size)
    return lambda: peer.run(generations)


def fixed_costs(quick: bool) -> Iterator[Row]:
    """The verbs of a generation of 64 small networks, beside a generation of evosax, and `seeds`."""
    members, size, loops = 64, 114, 20 if quick else 50
    calls = {name: repeated(call, loops) for name, call in verbs(members, size).items()}
    names, number = list(calls), itertools.count()
    calls["seeds"] = repeated(lambda: fs.seeds((1, next(number)), members), loops)
    if ga_peers.Evosax.installed():
        calls["evosax's generation"] = evosax(members, size, loops)
    taken = interleaved(calls, 3 if quick else 30, twice=True)
    for name in names:
        yield at_most(f"{name}, {members} x {size}", 200, float(np.median(taken[name])) / loops * 1e6, "us", 0)
    yield beside("each", microseconds(taken, loops))


def rates(quick: bool) -> Iterator[Row]:
    """The verbs of a generation of 256 networks: small ones as fast a parameter as larger ones."""
    members, small, large = 256, 2_410, 50_000
    few, many, made = verbs(members, small), verbs(members, large), members * parameters(large)
    loops = max(1, parameters(large) // small // (10 if quick else 2))
    for name in few:
        calls = {"small": repeated(few[name], loops), "large": many[name]}
        if name == "ga.step" and ga_peers.Evosax.installed():
            calls["evosax"] = evosax(members, small, 1 if quick else 5)
        taken = interleaved(calls, 3 if quick else 9, twice=True)
        share = ratio(taken, "large", "small") * loops * small / parameters(large)
        yield at_least(f"{name}: rate of {members} x {small:,} / of x {large:,}", 0.7, share, "x")
        each = members * small * loops / np.median(taken["small"]) / 1e9, made / np.median(taken["large"]) / 1e9
        took = f"{each[0]:.2f}, {each[1]:.2f} G/s; {np.median(taken['small']) / loops * 1e3:.2f} ms"
        if "evosax" in taken:
            took += f", evosax {np.median(taken['evosax']) / (1 if quick else 5) * 1e3:.1f} ms"
        yield beside("the two, and a call of the small", took)


def lending(quick: bool) -> Iterator[Row]:
    """Four leaves lent to JAX and returned, beside bare imports."""
    loops, store = 20 if quick else 100, fs.Store.zeros(layout(2_410))
    bare = Dlpack(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network(64, 32, 10)))

    def lend() -> None:
        with store.lend():
            pass

    calls = {"lend": repeated(lend, loops), "from_dlpack and delete": repeated(bare.lend, loops)}
    taken = interleaved(calls, 3 if quick else 30, twice=True)
    yield at_most("lend of 4 leaves, and return", 200, float(np.median(taken["lend"])) / loops * 1e6, "us", 0)
    yield beside("each", microseconds(taken, loops))


def compare(peers: dict[str, type[Peer]], kind: str, quick: bool) -> Iterator[Row]:
    """Milliseconds of a whole generation, and the peak, of each peer at each size."""
    sizes = [(64, 50_000, 1)] if quick else [(256, 2_410, 20), (256, 50_000, 3), (64, 1_000_000, 1)]
    raced = {"flatstore": peers["flatstore"]} if quick else peers
    for members, genes, generations in sizes:
        found = {name: peer for name, peer in raced.items() if peer.installed()}
        taken, peaks = race(found, members, genes, 3 if quick else 5, generations)
        size, population = f"{kind}, {members} x {genes:,}", 4 * members * parameters(genes)
        for name in raced:
            measured = "not installed"
            if name in taken:
                measured = f"{np.median(taken[name]) * 1e3:.3g} ms, peak {peaks[name] / population:.2f} populations"
                if name not in ("flatstore", "flatstore, transposed"):
                    measured += f"; {ratio(taken, name, 'flatstore'):.2f} x flatstore's time"
            yield beside(f"{size}: {name}", measured)
        if genes == 1_000_000:
            yield at_most(f"{size}: flatstore's peak", 1.5, peaks["flatstore"] / population, "populations")


def whole_strategies(quick: bool) -> Iterator[Row]:
    """Whole generations of an evolution strategy, evaluation included."""
    yield from compare(STRATEGIES, "es", quick)


def whole_genetic(quick: bool) -> Iterator[Row]:
    """Whole generations of a genetic algorithm, evaluation included."""
    yield from compare(GENETIC, "ga", quick)


MEASURES: tuple[Callable[[bool], Iterator[Row]], ...] = (
    perturb,
    fixed_costs,
    rates,
    lending,
    whole_strategies,
    whole_genetic,
)

if __name__ == "__main__":
    report("Measure the figures of small models and of whole generations, and print them.", *MEASURES)
