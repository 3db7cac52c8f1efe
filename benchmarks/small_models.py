"""Small models, where fixed costs count: the verbs of a generation, and generations.

    python -m benchmarks.small_models                      # two minutes
    python -m benchmarks.small_models --quick
    python -m benchmarks.small_models --only perturb       # one part

Networks have one hidden layer, so four leaves. Whole generations of them, with their evaluation, stand in
`evaluation.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

import flatstore as fs

from . import race, tracked
from .peers import PEERS, named
from .peers.genetic import fitness, step
from .peers.noise import Flatstore
from .peers.peer import network
from .peers.whole import hidden, parameters
from .report import Call, Row, at_least, at_most, beside, each, interleaved, ratio, repeated, report

NETWORKS = {114: (4, 16, 2), 2_410: (64, 32, 10), 10_064: (35, 100, 64)}
"""Parameters, and the layers that have so many."""
NOISE, EVOSAX = Flatstore.noise, PEERS["small_models"]["evosax"]


def layout(size: int) -> fs.Layout:
    """That of a network of `size` parameters."""
    return fs.Layout.from_tree(network(*NETWORKS.get(size) or (64, hidden(size), 10)))


def perturbed(peer: str, size: int) -> Call:
    """A call that adds noise in place to a small network."""
    make = PEERS["perturbation"][peer]
    return (make(size, fs.Store.zeros(layout(size))) if issubclass(make, Flatstore) else make(size)).perturb


def verbs(members: int, size: int) -> dict[str, Call]:
    """A call of each verb of a generation."""
    pop, centre = fs.Population.zeros(layout(size), members), fs.Store.zeros(layout(size))
    pop.buffer[:] = 0
    seeds, weights, scores = fs.seeds(1, members), np.linspace(-1e-3, 1e-3, members), fitness(members)
    signs, number = itertools.cycle((1, -1)), itertools.count()
    return {
        "sample": lambda: fs.es.sample(pop, centre, NOISE, seeds),
        "update": lambda: fs.es.update(centre, NOISE, seeds, weights, sign=next(signs)),
        "ga.step": lambda: step(pop, scores, 1),
        "seeds": lambda: fs.seeds((1, next(number)), members),
    }


class Verbs(tracked.Times):
    """A hundred calls for 64 networks of 114 parameters."""

    params: Any = ["sample", "update", "ga.step", "seeds"]
    param_names = ("verb",)
    loops = 100

    @staticmethod
    def make(verb: str) -> Call:
        return verbs(64, 114)[verb]


class Perturb(tracked.Times):
    """A hundred times noise added in place to a small network."""

    params: Any = (["flatstore", "jax", "numpy"], list(NETWORKS))
    param_names = ("peer", "parameters")
    loops = 100

    @staticmethod
    def make(peer: str, size: int) -> Call:
        return perturbed(peer, size)


def perturb(quick: bool) -> Iterator[Row]:
    """Noise added in place, beside a jitted, donated call of JAX and NumPy's SFC64."""
    loops = 50 if quick else 100
    for size in NETWORKS:
        calls = {name: repeated(perturbed(name, size), loops) for name in ("flatstore", "jax", "numpy")}
        taken = interleaved(calls, 3 if quick else 30, twice=True)
        if size == 114:
            yield at_most(
                f"perturb, {size} parameters", 40, float(np.median(taken["flatstore"])) / loops * 1e6, "us", 0
            )
        else:
            figure = f"perturb / NumPy's SFC64, {size:,} parameters"
            yield at_most(figure, 1, ratio(taken, "flatstore", "numpy"), "x")
        yield at_most(f"perturb / JAX, jitted and donated, {size:,}", 1, ratio(taken, "flatstore", "jax"), "x")
        yield beside("each", each(taken, "us", 1e6 / loops))


def fixed_costs(quick: bool) -> Iterator[Row]:
    """The verbs of a generation of 64 small networks, beside a generation of evosax, and `seeds`."""
    members, size, loops = 64, 114, 20 if quick else 50
    calls = {name: repeated(call, loops) for name, call in verbs(members, size).items()}
    if EVOSAX.installed():
        peer = EVOSAX(members, size)
        calls["evosax's generation"] = lambda: peer.run(loops)
    taken = interleaved(calls, 3 if quick else 30, twice=True)
    for name in ("sample", "update", "ga.step"):
        yield at_most(f"{name}, {members} x {size}", 200, float(np.median(taken[name])) / loops * 1e6, "us", 0)
    yield beside("each", each(taken, "us", 1e6 / loops))


def rates(quick: bool) -> Iterator[Row]:
    """The verbs of a generation of 256 networks: small ones as fast a parameter as larger ones."""
    members, small, large = 256, 2_410, 50_000
    few, many, made = verbs(members, small), verbs(members, large), parameters(large)
    loops = max(1, made // small // (10 if quick else 2))
    for name in ("sample", "update", "ga.step"):
        calls = {"small": repeated(few[name], loops), "large": many[name]}
        taken = interleaved(calls, 3 if quick else 9, twice=True)
        share = ratio(taken, "large", "small") * loops * small / made
        yield at_least(f"{name}: rate of {members} x {small:,} / of x {large:,}", 0.7, share, "x")
        pairs = zip(taken.values(), (small * loops, made), strict=True)
        yield beside("the two", ", ".join(f"{members * n / np.median(x) / 1e9:.2f}" for x, n in pairs) + " G/s")


def generations(quick: bool) -> Iterator[Row]:
    """A population of small networks, beside the peers."""
    rounds, each_turn = (5, 2) if quick else (15, 10)
    yield from race.rows(named("small_models"), 320, 2_410, rounds, each_turn)


MEASURES = perturb, fixed_costs, rates, generations

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
