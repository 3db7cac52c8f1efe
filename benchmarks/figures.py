"""The figures to reach, measured side by side in one run and printed as a table.

    python benchmarks/figures.py            # a minute or two
    python benchmarks/figures.py --quick    # smaller sizes, under 20 s

How it is measured stands in `report.py`.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .peers import PEERS, Dlpack, Flatstore, RavelPytree, make_tree
    from .report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, seconds
else:
    from peers import PEERS, Dlpack, Flatstore, RavelPytree, make_tree
    from report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, seconds


def shapes(leaves: int, size: int) -> Any:
    """The shapes of a tree of `size` parameters."""
    return {f"layer_{i:05d}": {"w": jax.ShapeDtypeStruct((size // leaves,), np.float32)} for i in range(leaves)}


def read_flat(store: fs.Store, loops: int) -> None:
    """Ask for the flat vector again and again."""
    for _ in range(loops):
        store.flat  # noqa: B018


def read_tree(store: fs.Store, loops: int) -> None:
    """Ask for the tree again and again."""
    for _ in range(loops):
        store.tree  # noqa: B018


def read_leaf(store: fs.Store, loops: int) -> None:
    """Ask for a leaf again and again."""
    path = "layer_00003/w"
    for _ in range(loops):
        store[path]


def access(quick: bool) -> Iterator[Row]:
    """`flat`, `tree` and `[path]` cost the same whatever the leaves and the parameters."""
    loops, big = 1000, 10**7 if quick else 10**8
    sizes = [(4, 10**3), (4, big), (4000, 10**4), (4000, big)]
    stores = {key: fs.Store.zeros(fs.Layout.from_tree(shapes(*key))) for key in sizes}
    for name, read in {"store.flat": read_flat, "store.tree": read_tree, "store[path]": read_leaf}.items():
        calls = {key: lambda read=read, store=store: read(store, loops) for key, store in stores.items()}
        taken = interleaved(calls, 150 if quick else 1000)
        times = {key: float(np.median(x)) / loops * 1e6 for key, x in taken.items()}
        ratios = [float(np.median(x / taken[sizes[0]])) for x in taken.values()]
        yield at_most(f"{name}, repeated", 0.3, max(times.values()), "us", 3)
        yield at_most(f"{name}, slowest / fastest of the four sizes", 1.2, max(ratios) / min(ratios), "x")
        each = (f"{leaves:,} / 1e{len(str(size)) - 1}: {times[leaves, size]:.3f}" for leaves, size in sizes)
        yield beside("us by leaves / parameters", ", ".join(each))


def conversion(quick: bool) -> Iterator[Row]:
    """`tree` against what builds it from the flat vector."""
    leaves, loops = 100 if quick else 1000, 1000
    tree = make_tree(leaves, 256)
    peers: dict[str, Any] = {}
    for name, peer in PEERS.items():
        with contextlib.suppress(NotImplementedError):
            peers[name] = peer(tree)
    store, ravel = peers["flatstore"].store, peers["ravel_pytree"]
    first = seconds(ravel.unflatten)
    taken = interleaved({"tree": lambda: read_tree(store, loops), "unravel": ravel.unflatten}, 20 if quick else 60)
    target = 20 * leaves  # 20,000 x for 1,000 leaves, and an unravel grows with them
    figure = f"a warm unravel of {leaves:,} leaves (ravel_pytree) / store.tree"
    yield at_least(figure, target, ratio(taken, "unravel", "tree") * loops, "x", 0)
    yield beside("the first unravel", f"{first:.2f} s")
    for verb in ("flatten", "unflatten"):
        calls = {name: getattr(peer, verb) for name, peer in peers.items() if name not in ("flatstore", "dlpack")}
        taken = interleaved(calls, 10 if quick else 30)
        times = ", ".join(f"{name} {np.median(x) * 1e3:.3g}" for name, x in taken.items())
        yield beside(f"{verb}, {leaves:,} leaves", f"{times} ms")


def members(quick: bool) -> Iterator[Row]:
    """A member is made when asked for, and forgotten."""
    pop = fs.Population.zeros(fs.Layout.from_tree(shapes(4, 64)), 10_000)

    def read() -> None:
        for i in range(1000):
            pop[i]

    times = [seconds(read) for _ in range(50 if quick else 300)]
    yield at_most("pop[i]", 2, float(np.median(times)) * 1e3, "us")
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
    touch(10_000)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    yield at_most("held per member after 10,000 were read", 1, held / 10_000, "bytes")


def first_build(quick: bool) -> Iterator[Row]:
    """The tree of 4,000 leaves, built once per store."""
    layout = fs.Layout.from_tree(shapes(4000, 10**6))
    rows = [(leaf.shape, leaf.dtype, leaf.offset) for leaf in layout.leaves]
    built: list[float] = []
    bare: list[float] = []
    for _ in range(10 if quick else 40):
        store = fs.Store.zeros(layout)
        buffer = store.buffer
        built.append(seconds(lambda store=store: store.tree))
        bare.append(seconds(lambda buffer=buffer: [np.ndarray(a, b, buffer, c) for a, b, c in rows]))
    yield at_most("first build of the NumPy tree, per leaf", 2, float(np.median(built)) / 4000 * 1e6, "us")
    yield beside("a bare np.ndarray view, each", f"{np.median(bare) / 4000 * 1e6:.2f} us")


def lending(quick: bool) -> Iterator[Row]:
    """Entering and leaving a lend of 100 leaves, against the imports and deletions alone."""
    tree = make_tree(100, 1 << 16)
    peer, bare = Flatstore(tree), Dlpack(tree)
    peer.unflatten()  # the views that a lend makes read-only
    taken = interleaved({"lend": peer.lend, "bare": bare.lend}, 100 if quick else 400)
    figure = "lend('jax') of 100 leaves / 100 bare from_dlpack + delete"
    yield at_most(figure, 1.3, ratio(taken, "lend", "bare"), "x")
    yield beside("the two", f"{np.median(taken['lend']) * 1e3:.2f} ms, {np.median(taken['bare']) * 1e3:.2f} ms")
    store = peer.store
    home = store.buffer.__array_interface__["data"][0]
    before = resident("VmRSS")
    with store.lend("jax") as params:
        arrays = jax.tree.leaves(params)
        pairs = zip(arrays, store.layout.leaves, strict=True)
        copied = sum(leaf.nbytes for x, leaf in pairs if x.unsafe_buffer_pointer() != home + leaf.offset)
        grown = resident("VmRSS") - before
    yield at_most(f"bytes copied, of {store.layout.nbytes:,}", 0, copied, "bytes", 0)
    yield beside("growth of the resident memory meanwhile", f"{grown:,} bytes")


def evaluation(quick: bool) -> Iterator[Row]:
    """XLA's temporaries for 256 perceptrons, 8 x 256 wide: the leaf order through a lend, and a (P, N) matrix."""
    for batch in (32, 128) if quick else (32, 128, 512):
        ours, matrix = (peer.temporaries(8, 256, 256, batch) for peer in (Flatstore, RavelPytree))
        if batch == 32:
            yield at_most("XLA temporaries, leaf order through a lend, 32 inputs", 0.15, ours, "populations", 3)
        else:
            yield beside(f"{batch} inputs", f"{ours:.3f} populations")
        yield beside("the same from a (P, N) matrix", f"{matrix:.3f} populations")


def leaf_by_leaf(size: int) -> None:
    """A store filled from a generator."""
    store = fs.Store.zeros(fs.Layout.from_tree(shapes(10, size)))
    store.assign((leaf.path, np.full(leaf.shape, i, leaf.dtype)) for i, leaf in enumerate(store.layout.leaves))


def by_ravel(size: int) -> None:
    """A tree, then JAX's flat vector of it."""
    jax.block_until_ready(ravel_pytree(make_tree(10, size // 10))[0])


def by_concatenate(size: int) -> None:
    """A tree, then NumPy's flat vector of it."""
    np.concatenate([layer["w"] for layer in make_tree(10, size // 10).values()])


def peak(fill: Callable[[int], None], size: int) -> int:
    """The most bytes that `fill` adds to the resident memory of this process, once the libraries are warm."""
    fill(10_000)
    gc.collect()
    before = resident("VmRSS")
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the peak so far is forgotten
    fill(size)
    return resident("VmHWM") - before


def filling(quick: bool) -> Iterator[Row]:
    """Each way in a process of its own."""
    size = 10**7 if quick else 10**8
    peaks: list[int] = []
    for fill in (leaf_by_leaf,) if quick else (leaf_by_leaf, by_ravel, by_concatenate):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(peak, (fill, size)))
    own, leaf = 4 * size, 4 * size // 10
    figure = f"{size:,} parameters filled by leaf: peak - own bytes - largest leaf"
    yield at_most(figure, 16, (peaks[0] - own - leaf) / MIB, "MiB", 1)
    names = ("the peak, as a multiple of the parameters", "a tree, then ravel_pytree", "a tree, then np.concatenate")
    for name, measured in zip(names, peaks, strict=False):
        yield beside(name, f"{measured / own:.2f} x")


def planning(quick: bool) -> Iterator[Row]:
    """A layout of many leaves."""
    tree = make_tree(10_000, 4)
    times = [seconds(lambda: fs.Layout.from_tree(tree)) for _ in range(3 if quick else 9)]
    yield at_most("a layout of 10,000 leaves", 0.5, float(np.median(times)), "s")


def roof(quick: bool) -> Iterator[Row]:
    """What memory gives."""
    x, scale = np.ones((64 if quick else 256) * MIB // 4, np.float32), np.float32(1)
    times = [seconds(lambda: np.multiply(x, scale, out=x)) for _ in range(20)]
    yield beside("the roof: np.multiply in place, read + written", f"{2 * x.nbytes / np.median(times) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    measures = access, conversion, members, first_build, lending, evaluation, filling, planning, roof
    report("Measure the figures to reach, and print them as a table.", *measures)
