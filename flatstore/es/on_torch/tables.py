"""The leaves of a store on a card as kernels go over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Leaf
from flatstore.noise import Factor, Noise
from flatstore.store import OnTorch, whole_leaf

TILE = 1024
"""Parameters that a program moves: whole blocks of random words of every kind."""


KEPT = 16
"""Tables that are kept for a store at most."""


class Table(NamedTuple):
    """The leaves of one dtype that a kernel goes over."""

    dtype: str
    leaves: Sequence[Leaf]
    stretches: Sequence[tuple[Leaf, int, int, int]]
    """For each row the leaf, where in it the row begins, and the first index and the end."""
    rows: Any
    """As `flatstore/kernels/triton/moves.py` describes, int64."""
    programs: Any
    """The row of each program, int32."""

    @property
    def is_gridded(self) -> bool:
        """Whether its leaves have a grid: those of 16 bits have none."""
        return self.leaves[0].dtype.itemsize > 2


def on_device(store: OnTorch, array: Array) -> Any:
    """An array as a tensor where a store is: a copy."""
    return require("torch", "torch").from_numpy(np.array(array)).to(store.device)


def trained(store: OnTorch) -> list[Leaf]:
    """The leaves that train and are not empty."""
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size]


def noisy(store: OnTorch, noise: Noise) -> list[Leaf]:
    """The leaves that noise is added to."""
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def tables_of(store: OnTorch, noise: Noise) -> Sequence[Table]:
    """A table for each dtype of the leaves that noise is added to; planned once for a store and a noise."""
    if noise not in store.cache:
        if len(store.cache) >= KEPT:  # a strength that fades is another noise each time
            store.cache.clear()
        factors = {leaf.path: noise.factor(noise.scale_of(leaf.path)) for leaf in noisy(store, noise)}
        store.cache[noise] = _tables(store, noisy(store, noise), factors)
    return store.cache[noise]


def trained_tables(store: OnTorch) -> Sequence[Table]:
    """A table for each dtype of the leaves that train; planned once for a store."""
    if "trained" not in store.cache:
        store.cache["trained"] = _tables(store, trained(store), {})
    return store.cache["trained"]


def addresses_in(store: OnTorch, table: Table) -> Array:
    """The address in a store of the first parameter of each row."""
    starts = [store.homes[leaf.path].data_ptr() + at * leaf.dtype.itemsize for leaf, at, _, _ in table.stretches]
    return np.array(starts, np.int64)


def _tables(store: OnTorch, leaves: Sequence[Leaf], factors: Mapping[str, Factor]) -> list[Table]:
    names = dict.fromkeys(leaf.dtype.name for leaf in leaves)
    return [_table(store, [leaf for leaf in leaves if leaf.dtype.name == name], name, factors) for name in names]


def _table(store: OnTorch, leaves: Sequence[Leaf], dtype: str, factors: Mapping[str, Factor]) -> Table:
    stretches: list[tuple[Leaf, int, int, int]] = []
    for leaf in leaves:
        firsts, size = whole_leaf(leaf) if store.parts is None else store.parts.firsts(leaf)
        stretches += [(leaf, i * size, first, first + size) for i, first in enumerate(firsts.tolist())]
    table = Table(dtype, leaves, stretches, None, None)
    counts = np.array([-(-end // TILE) - begin // TILE for _, _, begin, end in stretches])
    rows = [
        [begin, end, first, *factors.get(leaf.path, (0, 0, 0)), address, leaf.nbytes]
        for (leaf, _, begin, end), first, address in zip(
            stretches, (np.cumsum(counts) - counts).tolist(), addresses_in(store, table).tolist(), strict=True
        )
    ]
    programs = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    return table._replace(rows=on_device(store, np.array(rows, np.int64)), programs=on_device(store, programs))
