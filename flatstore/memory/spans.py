"""Spans: ranges of addresses that somebody else owns, used as one memory. No byte of it moves.

```
address   low                                                 high
          |- weight -|      others'       |- bias -|   |- kernel -|
bytes     |--- as one array, from the lowest address to the highest ----|
parts     |----------|                    |--------|   |----------|
```

Places count from the lowest address, so that compiled loops go over such a memory as over any other. What lies between
the parts belongs to others, or is not there at all, and is never touched: readers and writers are counted part by part.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from flatstore.layout import Array
from flatstore.memory.holds import Segment
from flatstore.memory.host import Memory
from flatstore.memory.overlaps import lends
from flatstore.trees import Difference

_WIDEST = 16
"""Bytes of the widest number."""


class Spans(Memory):
    """Several ranges of bytes, each with an owner, as one memory."""

    __slots__ = ("_ends", "_moved", "_parts")

    start: int
    stop: int

    def __init__(self, arrays: Iterable[Array], moved: Callable[[], list[Difference]]) -> None:
        """Use the bytes of `arrays`, which are writable, dense and share none, and are kept alive.

        `moved` tells what lies elsewhere by now.
        """
        owners = sorted(((*byte_bounds(array), array) for array in arrays if array.size), key=lambda owner: owner[0])
        ranges: list[tuple[int, int]] = []
        for start, stop, _ in owners:
            begin = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
            ranges.append((begin, stop))
        low, high = (ranges[0][0], ranges[-1][1]) if ranges else (0, 0)
        low -= low % _WIDEST  # numbers of any dtype are whole elements from there
        self.bytes: Array = _bytes_at(low, high - low, [array for *_, array in owners])
        self.is_read_only = False
        self.file: Any = None
        self._segment = None
        self.segment: weakref.ref[Segment] | None = None
        self.start, self.stop = low, high
        self._parts = tuple(Memory(self.bytes[start - low : stop - low]) for start, stop in ranges)
        self._ends = [stop for _, stop in ranges]
        self._moved = moved

    @property
    def parts(self) -> Sequence[Memory]:
        """The ranges of addresses that it is made of, ascending."""
        return self._parts

    def parts_at(self, start: int, stop: int) -> Sequence[Memory]:
        """Those of its parts that have addresses of start .. stop - 1."""
        first = last = bisect_right(self._ends, start)
        while last < len(self._parts) and self._parts[last].start < stop:
            last += 1
        return self._parts[first:last]

    def may_show(self, array: Array) -> bool:
        """Whether an array may share a byte with it."""
        return bool(array.size and self.parts_at(*byte_bounds(array)))

    def moved(self) -> list[Difference]:
        """What lies elsewhere since it was made, so that this is no longer its memory."""
        return self._moved()

    @property
    def lends(self) -> dict[Any, None]:
        """Who lends any memory, or has lent it: among those are all that lend this one."""
        return lends

    def is_lent(self) -> bool:
        """Whether it is lent now, wholly or in part, so that its views must not be written."""
        return any(self.parts_at(use.start, use.stop) and not use.is_over() for use in [*lends])

    def watch(self, view: Array) -> None:
        """Make a writable view read-only whenever what it shows is lent, and now if anything is."""
        for part in self.parts_at(*byte_bounds(view)) if view.size else ():
            part.watch(view)

    def thaw(self) -> None:
        """Make the views writable again that are not lent."""
        for part in self._parts:
            part.thaw()


def bytes_of(tensor: Any) -> Array:
    """The addresses of a torch tensor, which may be a card's, as an array of bytes that keeps it alive.

    Addresses of a card are no addresses of the host's, so readers and writers are counted by both; but the bytes of an
    array over a card must not be touched. Raises `RuntimeError` or `ValueError` for a tensor without one address.
    """
    is_nowhere = tensor.untyped_storage().device.type == "meta"  # of which torch warns if it is asked where
    steps, start = zip(tensor.shape, tensor.stride(), strict=True), 0 if is_nowhere else tensor.data_ptr()
    reach = 1 + sum((n - 1) * stride for n, stride in steps) if start and tensor.numel() else 0
    return _bytes_at(start, reach * tensor.itemsize, tensor)


class _Window:
    """Addresses as NumPy takes them, with whoever owns what is there."""

    def __init__(self, start: int, nbytes: int, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (start, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }


def _bytes_at(start: int, nbytes: int, owner: Any) -> Array:
    if not nbytes:
        return np.empty(0, np.uint8)  # before 2.4 NumPy takes no address of nothing
    return np.asarray(_Window(start, nbytes, owner))
