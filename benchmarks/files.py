"""Files: writing, reading and opening parameters, and what a file has beyond them.

    python -m benchmarks.files                      # about four minutes, 4 GB of memory, 9 GB of disk
    python -m benchmarks.files --quick
    python -m benchmarks.files --only loads         # one part
    TMPDIR=/data python -m benchmarks.files         # on another disk

The peers are those of `peers/stored.py`; the roof is what the system does by itself. `save_file` of safetensors does
not flush: a line of its own leaves the flush out. The file that `readinto` reads is flatstore's, and, beside it, one
that was written at once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import bench
from flatstore.files import checksums

from . import tracked
from .peers import PEERS, installed, named
from .peers.stored import MIB, read
from .report import Call, Row, at_least, at_most, beside, each, interleaved, ratio, report, resident, seconds

FILES = PEERS["files"]


def many() -> fs.Store:
    """A store of 4,000 leaves with names of axes."""
    shape = {"kernel": np.zeros((4, 4), np.float32), "bias": np.zeros(4, np.float32)}
    tree = {f"layer_{i}": shape for i in range(2000)}
    return fs.Store.zeros(fs.Layout.from_tree(tree, dims={"*/kernel": ("in", "out")}))


def apart() -> fs.Population:
    """A population whose members lie apart."""
    tree = {"w": np.zeros((1000, 3), np.float32), "b": np.zeros(7, np.float32)}
    return fs.Population.zeros(fs.Layout.from_tree(tree), 2000, order="member")


MADE: dict[str, Any] = {"16 leaves, 64 MiB": 64 * MIB, "4,000 leaves, 160 KB": many}
"""What is written."""


def saved(peer: str, what: Any = 64 * MIB) -> Any:
    """A peer whose file is there, of so many bytes, or of what a function makes."""
    made = FILES[peer](what() if callable(what) else what)
    made.save()
    return made


class Files(tracked.Times):
    """Writing a file, with a flush, reading it, and opening it, which reads none of it."""

    question = "files"
    params: Any = (list(FILES), list(MADE), ["save", "load", "open"])
    param_names = ("peer", "parameters", "verb")

    @staticmethod
    def make(peer: str, made: str, verb: str) -> Call:
        return getattr(saved(peer, MADE[made]), verb)


class Beyond(tracked.OfAPeer):
    """The bytes of a file that are not parameters'."""

    question = "files"
    params: Any = (list(FILES), list(MADE))
    param_names = ("peer", "parameters")
    unit = "bytes"

    def track_bytes_beyond_parameters(self, peer: str, made: str) -> int:
        return saved(peer, MADE[made]).beyond()


class Peak(tracked.Peak):
    """What writing 64 MiB (67,108,864 bytes) takes beyond them, and what reading them takes."""

    question = "files"
    params: Any = (list(FILES), ["save", "load"])
    param_names = ("peer", "verb")

    @staticmethod
    def make(peer: str, verb: str, what: Any = 64 * MIB) -> Any:
        return saved(peer, what), verb

    @staticmethod
    def work(made: Any) -> Any:
        return getattr(*made)()


def speeds(taken: dict[str, Any], mib: int) -> Iterator[Row]:
    """How fast each is."""
    for call, times in taken.items():
        yield beside(call, f"{mib / 1024 / np.median(times):.2f} GiB/s")


def saves(quick: bool) -> Iterator[Row]:
    """What it takes to write a store, and a population whose members lie apart."""
    mib = 128 if quick else 1024
    peers = {name: peer(mib * MIB) for name, peer in installed(named("files")).items()}
    calls = {name: peers[name].save for name in ("roof", "flatstore")}
    if theirs := peers.get("safetensors"):
        # The flush comes at once, so that it does not slow what comes next.
        calls |= {"safetensors, no flush": theirs.write, "its flush": theirs.flush}
    taken = interleaved(calls, 3 if quick else 7, twice=True)
    yield at_least(f"save of {mib} MiB, speed / write + fsync", 0.8, 1 / ratio(taken, "flatstore", "roof"), "x")
    if theirs:
        taken["safetensors"] = taken["safetensors, no flush"] + taken.pop("its flush")
        yield at_least("speed / safetensors' save_file + fsync", 1, ratio(taken, "safetensors", "flatstore"), "x")
        share = ratio(taken, "safetensors, no flush", "flatstore")
        yield at_least("speed / safetensors' save_file, which does not flush", 1, share, "x")
    for name, what in {"extra memory": mib * MIB, "extra memory, members apart": apart}.items():
        extra = bench.peak_memory(Peak.work, "flatstore", "save", what, setup=Peak.make)
        yield at_most(name, 8, extra / MIB, "MiB")
    yield from speeds(taken, mib)


def loads(quick: bool) -> Iterator[Row]:
    """What it takes to read a store, checksums included."""
    mib = 128 if quick else 1024
    peers = {name: saved(name, mib * MIB) for name in installed(named("files"))}
    ours, nbytes = peers["flatstore"].path, peers["flatstore"].store.buffer.nbytes
    calls = {f"{name}: load": peer.load for name, peer in peers.items()} | {
        "roof, of flatstore's file": lambda: read(ours, nbytes),
        "flatstore: load, verify=False": lambda: fs.load(ours, verify=False),
    }
    taken = interleaved(calls, 5 if quick else 11, twice=True)
    loaded = bench.peak_memory(Peak.work, "flatstore", "load", mib * MIB, setup=Peak.make)
    sums = np.ones(64 * MIB, np.uint8)
    rate = 64 / 1024 / min(seconds(lambda: checksums.checksum([sums])) for _ in range(5))
    load = "flatstore: load"
    yield at_most(f"load of {mib} MiB / readinto", 1.1, ratio(taken, load, "roof, of flatstore's file"), "x")
    yield at_most("load / readinto of a file written at once", 1.1, ratio(taken, load, "roof: load"), "x")
    yield at_most("memory / that of the store", 1.01, loaded / nbytes, "x")
    yield from speeds(taken, mib)
    yield beside("XXH3 alone", f"{rate:.0f} GiB/s")


def opens(quick: bool) -> Iterator[Row]:
    """What it takes to open a file."""
    gib = 1 if quick else 4
    big = saved("flatstore", gib * 1024 * MIB)
    del big.store
    gc.collect()
    before = resident("VmRSS")
    opened = [big.open() for _ in range(3)]
    grown = (resident("VmRSS") - before) / MIB
    del opened
    taken = interleaved({"open": big.open}, 20)
    yield at_most(f"open of {gib} GiB", 5, 1e3 * float(np.median(taken["open"])), "ms")
    yield at_most("memory", 8, grown, "MiB")


def leaves(quick: bool) -> Iterator[Row]:
    """Many leaves, and what a file has beyond them."""
    peers = {name: saved(name, many) for name in installed(named("files")) if name != "roof"}
    for name, peer in peers.items():
        yield beside(f"{name}: bytes beyond those of 4,000 leaves", f"{peer.beyond():,}")
    verbs = {f"{name}: {verb}": getattr(peer, verb) for name, peer in peers.items() for verb in ("save", "load")}
    taken = interleaved(verbs | {"flatstore: open": peers["flatstore"].open}, 5)
    yield beside("4,000 leaves with names of axes", each(taken))


MEASURES = saves, loads, opens, leaves

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
