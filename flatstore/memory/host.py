"""Memories: ranges of host addresses with an owner, the heap or whatever the user wrapped."""

from __future__ import annotations

import mmap
import re
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from flatstore.checks import raise_unless_of_system
from flatstore.layout import Array, as_numpy, is_torch_tensor
from flatstore.memory.dlpack import import_view
from flatstore.memory.guarded_views import LentError
from flatstore.memory.holds import Segment
from flatstore.memory.live_views import WatchedViews
from flatstore.memory.overlaps import LENDS, WRITES, Region, join, overlap, region_of
from flatstore.memory.segments import attached_segment, check_name, make_segment
from flatstore.threads import uninterrupted
from flatstore.trees import Difference

HUGE_PAGE = 2 << 20


class Memory:
    """A range of bytes with an owner. `bytes` is a writable 1-D uint8 array over it; users never see it.

    The views that were handed out are known, so that they are read-only while what they show is lent.
    """

    __slots__ = (
        "__weakref__",
        "_segment",
        "bytes",
        "file",
        "is_read_only",
        "region",
        "segment",
        "start",
        "stop",
        "views",
    )

    region: Region
    """Where it is noted who reads and who writes: that of all memories that share addresses with this one."""

    is_read_only: bool
    """Whether verbs and the views that are handed out must not write it, although the system would let them."""

    file: Any
    """The file that it writes through to, if there is one."""

    segment: weakref.ref[Segment] | None
    """A weak reference to the segment, if this is the whole of one."""

    def __init__(self, array: Array, *, is_read_only: bool = False, segment: Segment | None = None) -> None:
        self.bytes: Array = array
        self.is_read_only = is_read_only
        self.file = None
        self._segment = segment  # it is dropped with this
        self.segment = None if segment is None else weakref.ref(segment)
        self.start: int = array.__array_interface__["data"][0]
        self.stop: int = self.start + array.nbytes
        self.views: WatchedViews = WatchedViews()
        join(self)

    @property
    def parts(self) -> Sequence[Memory]:
        """The ranges of addresses that it is made of, ascending: itself."""
        return (self,)

    def parts_at(self, start: int, stop: int) -> Sequence[Memory]:
        """Those of its parts that have addresses of start .. stop - 1; it may be asked only for what it shows."""
        return (self,)

    def overlaps(self, other: Memory) -> bool:
        """Whether it shares a byte with another memory."""
        return any(overlap(one, another) for one in self.parts for another in other.parts)

    def may_show(self, array: Array) -> bool:
        """Whether an array may share a byte with it."""
        return np.may_share_memory(array, self.bytes)

    def moved(self) -> list[Difference]:
        """What lies elsewhere since it was made, so that this is no longer its memory: nothing, where it is owned."""
        return []

    @property
    def segment_name(self) -> str | None:
        """The name of the segment, if this is the whole of one."""
        return self._segment and self._segment.name

    @property
    def lends(self) -> dict[Any, None]:
        """Who lends any part of the region, or has lent it."""
        return region_of(self).users[LENDS]

    def watch(self, view: Array) -> None:
        """Make a writable view read-only whenever what it shows is lent, and now if anything is."""
        low, high = byte_bounds(view)
        watched = self.views.add(view, low, high)
        if self.lends:
            self.views.freeze_one(watched)
            self.thaw()

    def thaw(self) -> None:
        """Make the views writable again, if the memory is not lent."""
        self.views.thaw(lambda: region_of(self), self.is_lent)

    def is_lent(self) -> bool:
        """Whether the memory is lent now, wholly or in part, so that its views must not be written."""
        return any(overlap(use, self) and not use.is_over() for use in [*self.lends])

    def is_written(self) -> bool:
        """Whether a verb is at work on any part of the region."""
        return any(not use.is_over() for use in [*region_of(self).users[WRITES]])

    @classmethod
    def heap(cls, nbytes: int, align: int = 64) -> Memory:
        """New zeroed bytes that start at a multiple of `align`, on huge pages where the system offers them.

        Raises `MemoryError` with the size.
        """
        try:
            if nbytes >= 2 * HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
                return cls(_huge(nbytes, max(align, HUGE_PAGE)))
            return cls(_aligned(np.zeros(nbytes + align, np.uint8), nbytes, align))
        except (MemoryError, OSError, OverflowError) as error:
            if isinstance(error, OSError):
                raise_unless_of_system(error)
            raise MemoryError(f"expected {nbytes:,} bytes of memory, got none; fix: plan a smaller model") from error

    @classmethod
    def shared(cls, name: str | None, text: str, nbytes: int) -> Memory:
        """New zeroed bytes in a segment, which is removed when this is not used any more, or the interpreter ends.

        `text` is for those who attach. Raises `ValueError` for a name that cannot be one, `FileExistsError` for one in
        use, `MemoryError` where there is no room, and `OSError` where there are no segments.
        """

        def make() -> Memory:
            array, segment = make_segment(check_name(name), text, nbytes)
            return cls(array, segment=segment)

        return uninterrupted(make)

    @classmethod
    def attached(cls, name: str) -> tuple[Memory, str]:
        """The bytes of a segment of another process, to be read, and its text. Raises as `attached_segment` does."""
        array, segment, text = uninterrupted(lambda: attached_segment(name))
        return cls(array, is_read_only=True, segment=segment), text

    @classmethod
    def wrap(cls, buffer: Any, nbytes: int, align: int) -> Memory:
        """A memory over the first `nbytes` bytes of `buffer`, which the user owns and this keeps alive: a view.

        `buffer` is a NumPy array, a torch tensor, anything with DLPack or the buffer protocol. Raises `ValueError`
        if it is too small, misaligned, not contiguous or read-only; `TypeError` if it is not memory.
        """
        array = _as_bytes(buffer)
        if not array.flags.writeable:
            memory = cls(array)
            if memory.is_lent():
                raise LentError("expected a buffer at rest, got one that is lent; fix: wrap it after the lend")
            raise ValueError(
                f"expected writable memory, got a read-only {type(buffer).__name__}; "
                "fix: wrap a writable copy of it, np.array(x)"
            )
        if array.nbytes < nbytes:
            raise ValueError(f"expected at least {nbytes:,} bytes, got {array.nbytes:,}; fix: pass a larger buffer")
        start = array.__array_interface__["data"][0]
        if nbytes and start % align:
            raise ValueError(
                f"expected memory that starts at a multiple of {align} bytes, got one {start % align} bytes past it; "
                "fix: wrap the buffer of a new store, such as Store.zeros(layout), or plan the layout with align=1"
            )
        return cls(array[:nbytes])


def _aligned(array: Array, nbytes: int, align: int) -> Array:
    skip = -array.__array_interface__["data"][0] % align
    return array[skip : skip + nbytes]


def _huge(nbytes: int, align: int) -> Array:
    mapping = mmap.mmap(-1, nbytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:  # a kernel without transparent huge pages gives ordinary ones
        raise_unless_of_system(error)
    return _aligned(np.frombuffer(mapping, np.uint8), nbytes, align)


def _as_bytes(buffer: Any) -> Array:
    if isinstance(buffer, np.ndarray) or is_torch_tensor(buffer):
        array = as_numpy(buffer, "buffer")
    elif hasattr(buffer, "__dlpack_device__"):
        array = import_view(buffer)
    else:
        try:
            array = np.frombuffer(buffer, np.uint8)
        except (TypeError, BufferError) as error:
            raise TypeError(
                f"expected a NumPy array or an object with DLPack or the buffer protocol, got {type(buffer).__name__}; "
                "fix: pass the array that owns the bytes"
            ) from error
    if not array.flags.c_contiguous or array.dtype.hasobject:
        raise ValueError(
            f"expected contiguous bytes, got dtype {array.dtype}, shape {array.shape}, strides {array.strides}; "
            "fix: wrap the array that this one is a view of"
        )
    given = "" if isinstance(buffer, np.ndarray) or hasattr(buffer, "__dlpack_device__") else memoryview(buffer).format
    nameless = re.sub(":.*?:", "", given)  # a name may have any characters
    if not array.dtype.isnative or re.search("[>!]" if sys.byteorder == "little" else "[<!]", nameless):
        raise ValueError(
            f"expected numbers in the order of bytes of this machine, got dtype {given or array.dtype}; "
            "fix: wrap a converted copy, x.astype(x.dtype.newbyteorder('='))"
        )
    return array.reshape(-1).view(np.uint8)
