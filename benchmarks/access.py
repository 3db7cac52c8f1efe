"""What it takes to get at parameters: the flat vector, the tree, a leaf, a member of a population; and to plan them.

    python -m benchmarks.access            # a minute
    python -m benchmarks.access --quick

Peers read a leaf of what a flat vector holds.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import flatstore as fs

from . import tracked
from .peers import PEERS
from .peers.peer import shapes, tree_of
from .report import Call, Row, at_most, beside, interleaved, report, seconds

READS = 1000


def read_flat(store: fs.Store) -> None:
    """Ask for the flat vector again and again."""
    for _ in range(READS):
        store.flat  # noqa: B018


def read_tree(store: fs.Store) -> None:
    """Ask for the tree again and again."""
    for _ in range(READS):
        store.tree  # noqa: B018


def read_leaf(store: fs.Store) -> None:
    """Ask for a leaf again and again."""
    path = "layer_00003/w"
    for _ in range(READS):
        store[path]


def read_members(pop: fs.Population) -> None:
    """Ask for members, one after the other."""
    for i in range(READS):
        pop[i]


VERBS: dict[str, Any] = {"store.flat": read_flat, "store.tree": read_tree, "store[path]": read_leaf}
"""What asks a store a thousand times."""


def a_store(leaves: int, size: int) -> fs.Store:
    """A store of zeros."""
    return fs.Store.zeros(fs.Layout.from_tree(shapes(leaves, size)))


def a_population() -> fs.Population:
    """Ten thousand small members."""
    return fs.Population.zeros(fs.Layout.from_tree(shapes(4, 64)), 10_000)


class Reads(tracked.Times):
    """A thousand reads of a store: they cost the same whatever the leaves and the parameters."""

    params: Any = (list(VERBS), [4, 4000], [10_000, 1_000_000])
    param_names = ("verb", "leaves", "parameters")

    @staticmethod
    def make(verb: str, leaves: int, size: int) -> Call:
        return partial(VERBS[verb], a_store(leaves, size))


class Leaf(tracked.Times):
    """A hundred times one leaf of what a flat vector holds, by each peer."""

    params: Any = (list(PEERS["access"]), [4, 100])
    param_names = ("peer", "leaves")
    loops = 100

    @staticmethod
    def make(peer: str, leaves: int) -> Call:
        return PEERS["access"][peer](tree_of(leaves, 256)).access


class Members(tracked.Times):
    """A thousand members of a population, which are made when asked for, and forgotten; the bytes held for each."""

    unit = "bytes"

    @staticmethod
    def make() -> Call:
        return partial(read_members, a_population())

    def track_held_per_member(self) -> float:
        return held_per_member(a_population())


class Planning(tracked.Times):
    """A layout of 4,000 leaves."""

    @staticmethod
    def make() -> Call:
        return partial(fs.Layout.from_tree, tree_of(4000, 4))


def held_per_member(pop: fs.Population) -> float:
    """The bytes that are still held, for each member, once all were read."""
    path = next(iter(pop[0]))

    def touch(count: int) -> None:
        for i in range(count):
            member = pop[i]
            member.tree  # noqa: B018
            member[path]

    touch(100)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    touch(pop.size)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return held / pop.size


def reads(quick: bool) -> Iterator[Row]:
    """`flat`, `tree` and `[path]` cost the same whatever the leaves and the parameters."""
    big = 10**7 if quick else 10**8
    sizes = [(4, 10**3), (4, big), (4000, 10**4), (4000, big)]
    stores = {key: a_store(*key) for key in sizes}
    for name, read in VERBS.items():
        calls = {key: partial(read, store) for key, store in stores.items()}
        taken = interleaved(calls, 150 if quick else 1000)
        times = {key: float(np.median(x)) / READS * 1e6 for key, x in taken.items()}
        ratios = [float(np.median(x / taken[sizes[0]])) for x in taken.values()]
        yield at_most(f"{name}, repeated", 0.3, max(times.values()), "us", 3)
        yield at_most(f"{name}, slowest / fastest of the four sizes", 1.2, max(ratios) / min(ratios), "x")
        cells = (f"{leaves:,} / 1e{len(str(size)) - 1}: {times[leaves, size]:.3f}" for leaves, size in sizes)
        yield beside("us by leaves / parameters", ", ".join(cells))


def members(quick: bool) -> Iterator[Row]:
    """A member is made when asked for, and forgotten."""
    pop = a_population()
    times = [seconds(lambda: read_members(pop)) for _ in range(50 if quick else 300)]
    yield at_most("pop[i]", 2, float(np.median(times)) / READS * 1e6, "us")
    yield at_most("held per member after 10,000 were read", 1, held_per_member(pop), "bytes")


def planning(quick: bool) -> Iterator[Row]:
    """A layout of many leaves; and their tree, built once per store."""
    tree = tree_of(10_000, 4)
    times = [seconds(lambda: fs.Layout.from_tree(tree)) for _ in range(3 if quick else 9)]
    yield at_most("a layout of 10,000 leaves", 0.5, float(np.median(times)), "s")
    layout = fs.Layout.from_tree(shapes(4000, 10**6))
    places = [(leaf.shape, leaf.dtype, leaf.offset) for leaf in layout.leaves]
    built: list[float] = []
    bare: list[float] = []
    for _ in range(10 if quick else 40):
        store = fs.Store.zeros(layout)
        buffer = store.buffer
        built.append(seconds(lambda store=store: store.tree))
        bare.append(seconds(lambda buffer=buffer: [np.ndarray(a, b, buffer, c) for a, b, c in places]))
    yield at_most("first build of the NumPy tree, per leaf", 2, float(np.median(built)) / 4000 * 1e6, "us")
    yield beside("a bare np.ndarray view, each", f"{np.median(bare) / 4000 * 1e6:.2f} us")


MEASURES = reads, members, planning

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
