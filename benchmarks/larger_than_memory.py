"""A generation in a file: `python -m benchmarks.larger_than_memory [--megabytes N] [--limit N] [--folder DIR]`.

In the page cache, beside the same generation in memory, in turn; and with `--limit`, in a process that may use so many
megabytes (of which Python and its libraries take about 350), beside what the disk takes to read and to write as many
bytes in sequence. The limit is that of a control group of Linux, version 1, which root may make.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import ga

MEMBERS = 1024
GROUP = Path("/sys/fs/cgroup/memory/flatstore-larger-than-memory")


def layout_of(megabytes: float) -> fs.Layout:
    """A layout of which the population takes so much."""
    rows = max(8, int(megabytes * (1 << 20) / MEMBERS / 4 / 512))
    tree = {"a": np.zeros((rows // 2, 512), "f4"), "b": np.zeros(1000, "f4"), "c": np.zeros((512, rows // 2), "f4")}
    return fs.Layout.from_tree(tree)


def a_step(pop: fs.Population, number: int) -> float:
    """The seconds that a generation takes."""
    fitness = np.random.default_rng(number).normal(size=pop.size)
    start = time.perf_counter()
    ga.step(pop, fitness, seed=(1, number), mutate=fs.Normal(0.1))
    return time.perf_counter() - start


def traffic() -> tuple[int, int]:
    """The bytes that this process has had read from disks and written to them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    found = dict(line.split(": ") for line in lines)
    return int(found["read_bytes"]), int(found["write_bytes"])


def sequential(folder: str, nbytes: int) -> tuple[float, float]:
    """The seconds in which the disk reads so many bytes in sequence, and those in which it writes them."""
    path, piece = f"{folder}/sequential", np.ones(4 << 20, np.uint8)
    number = os.open(path, os.O_RDWR | os.O_CREAT)
    start = time.perf_counter()
    for at in range(0, nbytes, piece.size):
        os.pwrite(number, piece.data, at)
    os.fdatasync(number)
    write = time.perf_counter() - start
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    for at in range(0, nbytes, piece.size):
        os.preadv(number, [piece.data], at)
    read = time.perf_counter() - start
    os.close(number)
    os.unlink(path)
    return read, write


def beside_memory(folder: str, layout: fs.Layout, times: int) -> None:
    """Print what a generation takes in the page cache, and in memory."""
    there = fs.Population.create(f"{folder}/cached.safetensors", layout, MEMBERS)
    here = fs.Population.zeros(layout, MEMBERS)
    for number in range(2):
        a_step(there, number)
        a_step(here, number)
    taken = [(a_step(there, number), a_step(here, number)) for number in range(2, 2 + times)]
    file, memory = (statistics.median(column) for column in zip(*taken, strict=True))
    same = all(there[path].tobytes() == here[path].tobytes() for path in ("a", "b", "c"))
    print(f"in memory                {1e3 * memory:8.1f} ms")
    print(f"in the page cache        {1e3 * file:8.1f} ms, {memory / file:.2f} of that; the same bits: {same}")


def limited(folder: str, layout: fs.Layout, megabytes: int) -> None:
    """Print what a generation takes in a process with a limit on its memory."""
    GROUP.mkdir(exist_ok=True)
    (GROUP / "memory.limit_in_bytes").write_text(str(megabytes << 20))
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    pop: Any = fs.Population.create(f"{folder}/limited.safetensors", layout, MEMBERS)
    nbytes = pop.buffer.nbytes
    a_step(pop, 0)
    shares: list[float] = []
    for number in range(1, 6):
        alone = sum(sequential(folder, nbytes))  # in turn, for a disk that others use is now faster and now slower
        before, taken = traffic(), a_step(pop, number)
        reads, writes = (after - x for after, x in zip(traffic(), before, strict=True))
        shares.append(alone / taken)
        print(
            f"with {megabytes:,} MB of memory {1e3 * taken:10.1f} ms, {shares[-1]:.2f} of the disk's speed; "
            f"each byte read {reads / nbytes:.2f} and written {writes / nbytes:.2f} times"
        )
    print(f"median                   {statistics.median(shares):13.2f} of the disk's speed, 0.6 at least is the aim")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=1024, help="the population's size (default 1024)")
    parser.add_argument("--limit", type=int, help="megabytes of memory for the process")
    parser.add_argument("--folder", type=Path, help="where the files lie (default a temporary folder)")
    arguments = parser.parse_args()
    layout = layout_of(arguments.megabytes)
    print(f"a population of {layout.size * 4 * MEMBERS / 2**20:,.0f} MiB, {MEMBERS:,} members")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.limit is None:
            beside_memory(folder, layout, 7)
        else:
            limited(folder, layout, arguments.limit)


if __name__ == "__main__":
    main()
