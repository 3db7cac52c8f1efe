"""Trees to flat vectors and back: time, what is compiled for it, and the peak of memory.

    python -m benchmarks.conversion            # three minutes: ravel_pytree compiles
    python -m benchmarks.conversion --quick    # 100 leaves

"First" is the first call for a tree of its own shapes, compilation included, in a process that has rebuilt another
tree before (the very first of all, in which Numba starts, has a line of its own). "After" is the median of interleaved
rounds of a few calls each, after as many that are not timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flatstore import bench

from . import access, tracked
from .peers import PEERS, named
from .peers.peer import tree_of
from .report import MIB, Call, Row, at_least, at_most, beside, each, interleaved, ratio, repeated, report, seconds

CALLS, LEAVES = 5, 10


class Converting(tracked.Times):
    """A hundred times the flat vector of a tree whose leaves have 256 numbers each, or the tree of the vector."""

    params: Any = (list(PEERS["conversion"]), ["flatten", "unflatten"], [4, 100])
    param_names = ("peer", "verb", "leaves")
    loops = 100

    @staticmethod
    def make(peer: str, verb: str, leaves: int) -> Call:
        return getattr(PEERS["conversion"][peer](tree_of(leaves, 256)), verb)


class Unravel(bench.asv.Ratio):
    """A thousand reads of `store.tree` beside an unravel of `ravel_pytree`'s."""

    params: Any = [10, 100]
    param_names = ("leaves",)

    @staticmethod
    def make(leaves: int) -> Any:
        return trees_and_unravel(tree_of(leaves, 256))


class Peak(tracked.Peak):
    """The peak of 10,000,000 float32 (40,000,000 bytes) that are made leaf by leaf, as a flat vector."""

    params: Any = ["flatstore", "ravel_pytree", "numpy"]
    param_names = ("peer",)

    @staticmethod
    def make(peer: str) -> Any:
        return peer, 10_000_000

    @staticmethod
    def work(made: Any) -> Any:
        return filled(*made)


def filled(peer: str, size: int) -> Any:
    """A flat vector, made leaf by leaf."""
    return PEERS["conversion"][peer].fill(LEAVES, size)


def trees_and_unravel(tree: Any) -> tuple[Any, Any]:
    """A call of each."""
    ravel, store = (PEERS["conversion"][name](tree) for name in ("ravel_pytree", "flatstore"))
    return lambda: access.read_tree(store.store), ravel.unflatten


def _make(made: dict[str, Any], name: str, tree: Any) -> None:
    made[name] = PEERS["conversion"][name](tree)


def conversion(quick: bool) -> Iterator[Row]:
    """`tree` against what builds it from the flat vector."""
    leaves = 100 if quick else 1000
    tree = tree_of(leaves, 256)
    trees, unravel = trees_and_unravel(tree)
    first = seconds(unravel)
    taken = interleaved({"tree": trees, "unravel": unravel}, 20 if quick else 60)
    target = 20 * leaves  # 20,000 x for 1,000 leaves, and an unravel grows with them
    figure = f"a warm unravel of {leaves:,} leaves (ravel_pytree) / store.tree"
    yield at_least(figure, target, ratio(taken, "unravel", "tree") * access.READS, "x", 0)
    yield beside("the first unravel", f"{first:.2f} s")
    peers = {name: peer(tree) for name, peer in named("conversion").items() if peer.installed() and name != "flatstore"}
    for verb in ("flatten", "unflatten"):
        taken = interleaved({name: getattr(peer, verb) for name, peer in peers.items()}, 10 if quick else 30)
        yield beside(f"{verb}, {leaves:,} leaves", each(taken))


def rebuilding(quick: bool) -> Iterator[Row]:
    """Leaves out of a vector, outside of `jit`: `destructure` beside `ravel_pytree`."""
    ways = {name: PEERS["conversion"][name] for name in ("ravel_pytree", "destructure")}
    for name, way in ways.items():
        once = seconds(way({"first": {"w": np.ones(3, np.float32)}}).unflatten)
        yield beside(f"{name}: the very first of a process, one leaf", f"{once * 1e3:.0f} ms")
    leaves, rounds = (100, 20) if quick else (1000, 40)
    for shape in ((256,), (16, 16)):
        tree = jax.tree.map(jax.numpy.asarray, tree_of(leaves, *shape))
        jax.clear_caches()  # a program of the table before would do for this one, too
        made: dict[str, Any] = {}
        there = {name: seconds(lambda name=name, x=tree, made=made: _make(made, name, x)) for name in ways}
        back = {name: peer.unflatten for name, peer in made.items()}
        first = {name: seconds(call) for name, call in back.items()}
        after = interleaved({name: repeated(call, CALLS) for name, call in back.items()}, rounds, twice=True)
        title = f"{leaves:,} leaves of shape {shape}"
        yield at_least(f"eager rebuild, {title}: the first", 25, first["ravel_pytree"] / first["destructure"], "x", 1)
        yield at_least("the same, after", 3, ratio(after, "ravel_pytree", "destructure"), "x", 1)
        for name in back:
            median = float(np.median(after[name])) / CALLS
            yield beside(f"{name}, first, after", f"{first[name] * 1e3:.0f} ms, {median * 1e3:.2f} ms")
            yield beside(f"{name}: the vector, first", f"{there[name] * 1e3:.0f} ms")


def filling(quick: bool) -> Iterator[Row]:
    """A flat vector that is made leaf by leaf, each way in a process of its own."""
    size = 10**7 if quick else 10**8
    own, leaf = 4 * size, 4 * size // LEAVES
    peaks = {
        name: bench.peak_memory(filled, name, size)
        for name in (("flatstore",) if quick else ("flatstore", "ravel_pytree", "numpy"))
    }
    figure = f"{size:,} parameters filled by leaf: peak - own bytes - largest leaf"
    yield at_most(figure, 16, (peaks["flatstore"] - own - leaf) / MIB, "MiB", 1)
    for name, measured in peaks.items():
        yield beside(f"the peak, {name}, as a multiple of the parameters", f"{measured / own:.2f} x")


MEASURES = conversion, rebuilding, filling

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
