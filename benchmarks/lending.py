"""Parameters lent to JAX and taken back: time, and bytes copied.

    python -m benchmarks.lending            # half a minute
    python -m benchmarks.lending --quick

What is lent is looked at, and taken back at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flatstore import bench

from . import tracked
from .peers import PEERS, installed, named
from .peers.peer import network, tree_of
from .report import Call, Row, at_most, beside, each, interleaved, ratio, repeated, report, resident

LEND = PEERS["lending"]


class Lends(tracked.Times):
    """A hundred lends of a tree whose leaves have 256 numbers each, and the bytes that one copies."""

    params: Any = (list(LEND), [4, 100])
    param_names = ("peer", "leaves")
    loops = 100
    unit = "bytes"

    @staticmethod
    def make(peer: str, leaves: int) -> Call:
        return LEND[peer](tree_of(leaves, 256)).lend

    def track_bytes_copied(self, peer: str, leaves: int) -> int:
        return LEND[peer](tree_of(leaves, 256)).copied()


class BesideImports(bench.asv.Ratio):
    """A lend beside the bare imports and deletions of as many leaves."""

    params: Any = [4, 100]
    param_names = ("leaves",)
    rounds = 25

    @staticmethod
    def make(leaves: int) -> Any:
        return lend_and_imports(tree_of(leaves, 256))


def lend_and_imports(tree: Any) -> tuple[Any, Any]:
    """A call of each."""
    peer, bare = LEND["flatstore"](tree), LEND["dlpack"](tree)
    peer.unflatten()  # the views that a lend makes read-only
    return peer.lend, bare.lend


def many(quick: bool) -> Iterator[Row]:
    """100 leaves, against the imports and deletions alone."""
    tree = tree_of(100, 1 << 16)
    lend, bare = lend_and_imports(tree)
    taken = interleaved({"lend": lend, "bare": bare}, 100 if quick else 400)
    figure = "lend('jax') of 100 leaves / 100 bare from_dlpack + delete"
    yield at_most(figure, 1.3, ratio(taken, "lend", "bare"), "x")
    yield beside("the two", each(taken))
    peer, grown = LEND["flatstore"](tree), []
    before = resident("VmRSS")
    peer.lend(lambda lent: grown.append(resident("VmRSS") - before))
    yield at_most(f"bytes copied, of {peer.store.layout.nbytes:,}", 0, peer.copied(), "bytes", 0)
    yield beside("growth of the resident memory meanwhile", f"{grown[0]:,} bytes")
    copied = (f"{name} {other(tree).copied():,}" for name, other in installed(named("lending")).items())
    yield beside("bytes copied", ", ".join(copied))


def few(quick: bool) -> Iterator[Row]:
    """Four leaves of a small network."""
    loops = 20 if quick else 100
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network(64, 32, 10))
    lend, bare = (repeated(call, loops) for call in lend_and_imports(tree))
    taken = interleaved({"lend": lend, "from_dlpack and delete": bare}, 3 if quick else 30, twice=True)
    yield at_most("lend of 4 leaves, and return", 200, float(np.median(taken["lend"])) / loops * 1e6, "us", 0)
    yield beside("each", each(taken, "us", 1e6 / loops))


MEASURES = many, few

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
