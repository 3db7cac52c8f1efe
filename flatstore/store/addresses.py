"""A layout placed in a memory: where each leaf lies there, as the compiled loops need to know it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from flatstore.layout import Array, Layout, Leaf
from flatstore.memory import Memory
from flatstore.store.parts import Parts, Stretch, whole_leaf
from flatstore.store.placement import Placement
from flatstore.threads import refuse_waiting_at_the_end


class Placed:
    """A layout, and the memory in which its leaves have their places: of one model, or of many."""

    __slots__ = ("_cache", "_count", "_first", "_memory", "_placement", "_whole", "layout")

    layout: Layout
    """Where every parameter of one model lives."""

    _memory: Memory
    _placement: Placement
    _first: int
    _count: int | None
    _cache: dict[Any, Any]
    _whole: bool

    @classmethod
    def _over(cls, layout: Layout, mem: Memory, placement: Placement, first: int = 0, count: int | None = None) -> Self:
        self = object.__new__(cls)
        self.layout = layout
        self._memory = mem
        self._placement = placement
        self._first = first
        self._count = count
        self._cache = {}
        self._whole = False
        return self

    @property
    def memory(self) -> Memory:
        """The memory behind the views; for this package's own modules."""
        return self._memory

    @property
    def first(self) -> int:
        """The number of the first member in the memory; for this package's own modules."""
        return self._first

    @property
    def parts(self) -> Parts | None:
        """Where the leaves stand in a whole model, if they are parts of one; for this package's own modules."""
        return self._placement.parts

    @property
    def whole(self) -> Layout:
        """The layout whose index counts, for noise and all that is made of it: `layout`, or that of the whole model."""
        return self.layout if self._placement.parts is None else self._placement.parts.whole

    @property
    def _leading(self) -> tuple[int, ...]:
        return () if self._count is None else (self._count,)

    def _is_shared(self, leaf: Leaf) -> bool:
        """Whether the leaf is held once for a whole population, of which this is only a part."""
        return self._placement.order != "store" and not self._whole and self._placement.places[leaf.path].step is None

    def start_of(self, leaf: Leaf) -> int:
        """The byte, from the start of the memory, at which a leaf (of the first member) starts."""
        offset, step = self._placement.places[leaf.path]
        return offset + self._first * (step or 0)

    def _new_view(self, leaf: Leaf, writeable: bool = True) -> Array:
        """A new view of a leaf (of all members), writable even during a lend if `writeable`."""
        offset, step = self._placement.places[leaf.path]
        start = offset + self._first * (step or 0)
        view = np.ndarray(leaf.shape, leaf.dtype, self._memory.bytes, start)
        if step is not None and self._count is not None:
            shape, strides = (self._count, *leaf.shape), (step, *view.strides)
            view = np.ndarray(shape, leaf.dtype, self._memory.bytes, start, strides)
        if not writeable:
            view.flags.writeable = False
        return view

    def leaf_matrix(self, leaf: Leaf) -> Array:
        """A home with a row per member, shape (members, leaf.size); a store counts as one member.

        A new view, writable even during a lend: for what is called by `write`.
        """
        step = self._placement.places[leaf.path].step
        shape, strides = (self._count or 1, leaf.size), (step or 0, leaf.dtype.itemsize)
        return np.ndarray(shape, leaf.dtype, self._memory.bytes, self.start_of(leaf), strides)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result of `make()`, called once for a key: what kernels need to know of this layout in this memory."""
        found = self._cache.get(key)
        if found is None:
            refuse_waiting_at_the_end()
            if len(self._cache) >= 16:  # a strength that fades is a new key each generation
                self._cache.clear()
            found = self._cache[key] = make()
        return found

    def runs(self, dtype: str) -> Array:
        """The trainable leaves of a dtype as runs: neighbours in the index that are neighbours in memory.

        Shape (runs, 4), int64, for the compiled kernels. A row counts elements: the first index, the index after the
        last, the position of the first in the memory, and the distance from one member to the next.
        """
        return self.cached(dtype, lambda: self._find_runs(dtype))

    def _find_runs(self, dtype: str) -> Array:
        rows: list[list[int]] = []
        for leaf in self.layout.homes:
            if not (leaf.trainable and leaf.size and leaf.dtype.name == dtype):
                continue
            position = self.start_of(leaf) // leaf.dtype.itemsize
            step = (self._placement.places[leaf.path].step or 0) // leaf.dtype.itemsize
            firsts, length = self.firsts(leaf)
            for index in firsts.tolist():
                last = rows[-1] if rows else None
                if last and last[1] == index and last[3] == step and last[2] + last[1] - last[0] == position:
                    last[1] += length
                else:
                    rows.append([index, index + length, position, step])
                position += length
        return np.array(rows, np.int64).reshape(-1, 4)

    def firsts(self, leaf: Leaf) -> tuple[Array, int]:
        """The index of the first parameter of each stretch of a home, int64, and how long all of them are."""
        parts = self._placement.parts
        return whole_leaf(leaf) if parts is None else parts.firsts(leaf)

    def stretches(self, leaf: Leaf, start: int, stop: int) -> Iterator[Stretch]:
        """The parameters of a home whose index is in start .. stop - 1: neighbours together."""
        firsts, length = self.firsts(leaf)
        home = self.whole.by_path[leaf.path]
        for i in np.flatnonzero((firsts < stop) & (start < firsts + length)).tolist() if length else ():
            first = int(firsts[i])
            low, high = max(start, first), min(stop, first + length)
            begin = i * length + low - first
            yield Stretch(begin, begin + high - low, home, low - home.index)

    def raw(self, dtype: Any) -> Array:
        """The memory as a vector of a dtype, which the positions of `runs` refer to: a view of all whole elements."""
        size = np.dtype(dtype).itemsize
        return self._memory.bytes[: self._memory.bytes.size // size * size].view(dtype)
