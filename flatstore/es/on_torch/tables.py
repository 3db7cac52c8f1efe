"""The leaves of a store on a card as kernels go over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Leaf
from flatstore.noise import Factor, Noise
from flatstore.store import OnTorch, whole_leaf

TILES = {2: 1024, 4: 2048, 8: 1024}
"""Parameters that a program moves, by the bytes of one: whole blocks of random words of every kind.

In the logs of 16-bit leaves a place in a tile has ten bits.
"""

Stretch = tuple[Leaf, int, int, int]
"""A leaf, a place in it, and the first index from there on and the end."""

WARPS = {2: 2, 4: 4, 8: 4}
"""Warps of a program, by the bytes of a parameter."""

KEPT = 16
"""Tables that are kept for a store at most."""


class Table(NamedTuple):
    """What a kernel goes over in one launch: leaves of one dtype, or parts of them.

    ```
    index     tile          | tile          | tile          | tile
    leaf             -------|---------------|---------------|-----
    tables           edge     whole           whole           edge
    ```
    """

    dtype: str
    whole: bool
    """Whether all rows are of whole tiles."""
    leaves: Sequence[Leaf]
    stretches: Sequence[Stretch]
    """For each row the leaf, where in it the row begins, and the first index and the end."""
    rows: Any
    """As `flatstore/kernels/triton/moves.py` describes, int64."""
    programs: Any
    """The row of each program, int32."""
    is_fast: bool
    """Whether all rows are of whole tiles, at addresses that are multiples of 16 bytes."""

    @property
    def name(self) -> str:
        """What tells it from the other tables of a store, and of others of the same layout."""
        return f"{self.dtype}, {'whole tiles' if self.whole else 'edges'}"

    @property
    def tile(self) -> int:
        """Parameters that a program moves."""
        return TILES[self.leaves[0].dtype.itemsize]

    @property
    def launch(self) -> dict[str, Any]:
        """What kernels of one table are compiled with; what is multiplied and added must not be fused."""
        warps = WARPS[self.leaves[0].dtype.itemsize]
        return {"tile": self.tile, "whole": self.is_fast, "num_warps": warps, "enable_fp_fusion": False}

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
    """The tables of the leaves that noise is added to; planned once for a store and a noise."""
    if noise not in store.cache:
        if len(store.cache) >= KEPT:  # a strength that fades is another noise each time
            store.cache.clear()
        factors = {leaf.path: noise.factor(noise.scale_of(leaf.path)) for leaf in noisy(store, noise)}
        store.cache[noise] = _tables(store, noisy(store, noise), factors)
    return store.cache[noise]


def trained_tables(store: OnTorch) -> Sequence[Table]:
    """The tables of the leaves that train; planned once for a store."""
    if "trained" not in store.cache:
        store.cache["trained"] = _tables(store, trained(store), {})
    return store.cache["trained"]


def addresses_in(store: OnTorch, table: Table) -> Array:
    """The address in a store of the first parameter of each row."""
    starts = [store.homes[leaf.path].data_ptr() + at * leaf.dtype.itemsize for leaf, at, _, _ in table.stretches]
    return np.array(starts, np.int64)


def _tables(store: OnTorch, leaves: Sequence[Leaf], factors: Mapping[str, Factor]) -> list[Table]:
    """For each dtype a table of whole tiles, and one of edges."""
    made: dict[tuple[str, bool], list[Stretch]] = {}
    for leaf in leaves:
        firsts, size = whole_leaf(leaf) if store.parts is None else store.parts.firsts(leaf)
        for i, first in enumerate(firsts.tolist()):
            for whole, stretch in _cut((leaf, i * size, first, first + size)):
                made.setdefault((leaf.dtype.name, whole), []).append(stretch)
    return [_table(store, *name, stretches, factors) for name, stretches in made.items()]


def _cut(stretch: Stretch) -> Iterator[tuple[bool, Stretch]]:
    """The whole tiles of a stretch, and its edges."""
    leaf, at, begin, end = stretch
    tile = TILES[leaf.dtype.itemsize]
    first, last = -(-begin // tile) * tile, end // tile * tile
    if first >= last:
        first = last = end
    for low, high, whole in ((begin, first, False), (first, last, True), (last, end, False)):
        if low < high:
            yield whole, (leaf, at + low - begin, low, high)


def are_aligned(addresses: Array) -> bool:
    """Whether threads can read and write 16 bytes together."""
    return not (addresses % 16).any()


def _table(
    store: OnTorch, dtype: str, whole: bool, stretches: Sequence[Stretch], factors: Mapping[str, Factor]
) -> Table:
    leaves = list({leaf.path: leaf for leaf, *_ in stretches}.values())
    table = Table(dtype, whole, leaves, stretches, None, None, False)
    addresses = addresses_in(store, table)
    counts = np.array([-(-end // table.tile) - begin // table.tile for _, _, begin, end in stretches])
    rows = [
        [begin, end, first, *factors.get(leaf.path, (0, 0, 0)), address, leaf.nbytes]
        for (leaf, _, begin, end), first, address in zip(
            stretches, (np.cumsum(counts) - counts).tolist(), addresses.tolist(), strict=True
        )
    ]
    programs = on_device(store, np.repeat(np.arange(len(rows), dtype=np.int32), counts))
    steps = np.array([0 if store.size is None else leaf.nbytes for leaf in leaves])
    is_fast = whole and are_aligned(addresses) and are_aligned(steps)
    return table._replace(rows=on_device(store, np.array(rows, np.int64)), programs=programs, is_fast=is_fast)
