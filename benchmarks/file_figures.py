"""The figures of files, measured side by side in one run and printed as a table.

    python benchmarks/file_figures.py                      # about four minutes, 4 GB of memory, 9 GB of disk
    python benchmarks/file_figures.py --quick              # smaller sizes
    python benchmarks/file_figures.py --only loads         # one part
    TMPDIR=/data python benchmarks/file_figures.py         # on another disk

How it is measured stands in `report.py`. The peers are what the system does by itself (`write` and `fsync` of all bytes
at once; `readinto` of a new array), and `save_file` and `load_file` of safetensors' NumPy interface. All read from the
cache of the system: what a disk takes to read is the disk's. The file that `readinto` reads is flatstore's, and, beside
it, one that was written at once. `load` reads in threads, `readinto` in one. `save_file` does not flush: a second line
adds an `fsync` to it.
"""

from __future__ import annotations

import gc
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import flatstore as fs
from flatstore.files import checksums

if __package__:  # asv imports this folder as a package
    from .report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, seconds
else:
    from report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, seconds


def a_store(mib: int, leaves: int = 16) -> fs.Store:
    """Random bits in some leaves of float32."""
    size = mib * MIB // 4 // leaves
    store = fs.Store.zeros(fs.Layout.from_tree({f"layer_{i}": shape_of(size) for i in range(leaves)}))
    random = np.random.default_rng(0)
    for view in store.values():
        view.view(np.uint32)[:] = random.integers(0, 1 << 32, size, np.uint32)
    return store


def shape_of(*shape: int) -> Any:
    """A shape of float32."""
    import jax

    return jax.ShapeDtypeStruct(shape, np.float32)


def flushed(path: Path) -> None:
    """Wait until a file is on the disk."""
    number = os.open(path, os.O_RDWR)
    os.fsync(number)
    os.close(number)


def written(path: Path, content: Any) -> None:
    """Write a file at once, and flush it."""
    number = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    rest = content.data
    while rest:
        rest = rest[os.write(number, rest) :]
    os.fsync(number)
    os.close(number)


def read(path: Path, nbytes: int) -> Any:
    """The last bytes of a file, in a new array."""
    array = np.empty(nbytes, np.uint8)
    with open(path, "rb", buffering=0) as file:
        file.seek(-nbytes, os.SEEK_END)
        rest = array.data
        while rest:
            rest = rest[file.readinto(rest) :]
    return array


def saves(quick: bool) -> Iterator[Row]:
    """What it takes to write a store, and a population whose members lie apart."""
    mib = 128 if quick else 1024
    store = a_store(mib)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        calls = {
            "bare": lambda: written(folder / "bare", store.buffer),
            "ours": lambda: fs.save(folder / "ours", store),
            "theirs": lambda: safetensors.numpy.save_file(dict(store), folder / "theirs"),
            "its flush": lambda: flushed(folder / "theirs"),  # at once, so that it does not slow what comes next
        }
        taken = interleaved(calls, 3 if quick else 7, twice=True)
        taken["theirs, flushed"] = taken["theirs"] + taken.pop("its flush")
        tracemalloc.start()
        fs.save(folder / "ours", store)
        extra = tracemalloc.get_traced_memory()[1] / MIB
        tracemalloc.stop()
        pop = fs.Population.zeros(fs.Layout.from_tree({"w": shape_of(1000, 3), "b": shape_of(7)}), 2000, order="member")
        tracemalloc.start()
        fs.save(folder / "members", pop)
        strided = tracemalloc.get_traced_memory()[1] / MIB
        tracemalloc.stop()
    yield at_least(f"save of {mib} MiB, speed / write + fsync", 0.8, 1 / ratio(taken, "ours", "bare"), "x")
    yield at_least("speed / safetensors' save_file + fsync", 1, 1 / ratio(taken, "ours", "theirs, flushed"), "x")
    yield at_least("speed / safetensors' save_file, which does not flush", 1, 1 / ratio(taken, "ours", "theirs"), "x")
    yield at_most("extra memory", 8, extra, "MiB")
    yield at_most("extra memory, members apart", 8, strided, "MiB")
    for call, times in taken.items():
        yield beside(call, f"{mib / 1024 / np.median(times):.2f} GiB/s")


def loads(quick: bool) -> Iterator[Row]:
    """What it takes to read a store, checksums included."""
    mib = 128 if quick else 1024
    store = a_store(mib)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fs.save(folder / "ours", store)
        safetensors.numpy.save_file(dict(store), folder / "theirs")
        written(folder / "bare", store.buffer)
        nbytes = store.buffer.nbytes
        del store
        calls = {
            "readinto": lambda: read(folder / "ours", nbytes),
            "readinto of a file written at once": lambda: read(folder / "bare", nbytes),
            "load": lambda: fs.load(folder / "ours"),
            "load, verify=False": lambda: fs.load(folder / "ours", verify=False),
            "load_file": lambda: safetensors.numpy.load_file(folder / "theirs"),
        }
        gc.collect()
        taken = interleaved(calls, 5 if quick else 11, twice=True)
        before = resident("VmRSS")
        loaded = fs.load(folder / "ours")
        peak = (resident("VmRSS") - before) / loaded.buffer.nbytes
        del loaded
        sums = np.ones(64 * MIB, np.uint8)
        rate = 64 / 1024 / min(seconds(lambda: checksums.checksum([sums])) for _ in range(5))
    yield at_most(f"load of {mib} MiB / readinto", 1.1, ratio(taken, "load", "readinto"), "x")
    yield at_most("load / readinto of a file written at once", 1.1, ratio(taken, "load", list(calls)[1]), "x")
    yield at_most("memory / that of the store", 1.01, peak, "x")
    for call, times in taken.items():
        yield beside(call, f"{mib / 1024 / np.median(times):.2f} GiB/s")
    yield beside("XXH3 alone", f"{rate:.0f} GiB/s")


def opens(quick: bool) -> Iterator[Row]:
    """What it takes to open a file, and to open and load one of many leaves."""
    gib = 1 if quick else 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fs.save(folder / "big", a_store(gib * 1024))
        gc.collect()
        before = resident("VmRSS")
        opened = [fs.open(folder / "big") for _ in range(3)]
        grown = (resident("VmRSS") - before) / MIB
        del opened
        taken = interleaved({"open": lambda: fs.open(folder / "big")}, 20)
        yield at_most(f"open of {gib} GiB", 5, 1e3 * float(np.median(taken["open"])), "ms")
        yield at_most("memory", 8, grown, "MiB")
        tree = {f"layer_{i}": {"kernel": shape_of(4, 4), "bias": shape_of(4)} for i in range(2000)}
        dims = {"*/kernel": ("in", "out")}
        many = fs.Store.zeros(fs.Layout.from_tree(tree, dims=dims))
        fs.save(folder / "many", many)
        safetensors.numpy.save_file(dict(many), folder / "theirs")
        calls = {
            "load of 4,000 leaves with names of axes": lambda: fs.load(folder / "many"),
            "open of them": lambda: fs.open(folder / "many"),
            "save of them": lambda: fs.save(folder / "many", many),
            "load_file of them": lambda: safetensors.numpy.load_file(folder / "theirs"),
        }
        for call, times in interleaved(calls, 5).items():
            yield beside(call, f"{1e3 * np.median(times):.0f} ms")


if __name__ == "__main__":
    report(__doc__ or "", saves, loads, opens)
