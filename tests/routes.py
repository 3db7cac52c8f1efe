"""Every way to reach the leaves of a store or a member, and the strategies of those who compare them."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st

import flatstore as fs
from tests.example_trees import numeric, same_bits

aligns = st.sampled_from([1, 2, 16, 64, 256])
seeds = st.integers(0, 2**16)
orders: Any = st.sampled_from(["leaf", "member"])
# What a packed vector of one dtype can hold without a loss.
PROMOTABLE = ("float16", "float32", "float64", "int8", "int32", "uint8", "bool")
Views = dict[str, np.ndarray]


def trains(seed: int) -> Any:
    """The default for even seeds, an arbitrary choice of leaves for odd ones."""
    return (lambda path, leaf, parent: zlib.crc32(path.encode()) + seed & 2) if seed % 2 else None


def separate(tree: Any, layout: fs.Layout) -> Views:
    """The oracle: the leaves by path, in memory of their own."""
    return {leaf.path: np.array(array) for leaf, array in zip(layout.leaves, numeric(tree), strict=True)}


def joined(at: str, path: str) -> str:
    return f"{at}/{path}" if at else path


def store_routes(store: fs.Store) -> Iterator[Views]:
    """Every way to reach the leaves of a store; each gives {path: view}."""
    rows = store.layout.by_path
    yield dict(store.items())
    yield dict(zip(rows, numeric(store.tree), strict=True))
    for at, node in store.modules():
        yield {joined(at, path): view for path, view in node.items()}
        yield dict(zip([joined(at, path) for path in node], numeric(node.tree), strict=True))
    yield {
        path: store.buffer[leaf.offset : leaf.offset + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
        for path, leaf in rows.items()
    }
    for dtype, flat in store.flats.items():
        here = {path: leaf for path, leaf in rows.items() if leaf.trainable and leaf.dtype.name == dtype}
        start = min(leaf.offset for leaf in here.values())
        firsts = {path: (leaf.offset - start) // leaf.dtype.itemsize for path, leaf in here.items()}
        yield {path: flat[firsts[path] : firsts[path] + leaf.size].reshape(leaf.shape) for path, leaf in here.items()}


def member_routes(pop: fs.Population, i: int) -> Iterator[Views]:
    """Every way to reach the trainable leaves of member i."""
    rows = {path: leaf for path, leaf in pop.layout.by_path.items() if leaf.trainable}
    part = pop[i // 2 : i + 1]
    yield {path: pop[path][i, ...] for path in rows}
    yield {path: pop[i][path] for path in rows}
    yield {path: part[path][-1, ...] for path in rows}
    stacked = dict(zip(pop.layout.by_path, numeric(pop.tree), strict=True))
    yield {path: stacked[path][i, ...] for path in rows}
    for at, node in pop[i].modules():
        yield {joined(at, path): view for path, view in node.items() if joined(at, path) in rows}
    if pop.order == "member":
        in_memory = sorted(rows.values(), key=lambda leaf: (leaf.offset, leaf.nbytes))
        stops = np.cumsum([leaf.size for leaf in in_memory])
        parts = [pop.matrix[i, stop - leaf.size : stop] for leaf, stop in zip(in_memory, stops, strict=True)]
        yield {leaf.path: part.reshape(leaf.shape) for leaf, part in zip(in_memory, parts, strict=True)}


def agree(routes: Iterator[Views], oracle: Views) -> None:
    for views in routes:
        for path, view in views.items():
            assert same_bits(view, oracle[path]), path
