"""Who owns the bytes, and who reads them now.

A `Memory` is a range of host addresses with an owner: the heap, or whatever the user wrapped. Readers are counted by
address, not by object, so that two stores over one buffer, or over parts of it that overlap, know of each other's
lends:

```
address   a                                 b
          |---- a Memory -------------------|
                 |---- another, inside of it ------|
                 '-- a lease here keeps both from being written
```

Many readers or one writer (law 7): a lease is a reader, a thread in `Memory.writing` a writer, and nobody waits for
anybody: the second to come gets an error.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import threading
import time
import weakref
from collections.abc import Generator, Iterable
from typing import Any, Protocol

import numpy as np

from flatstore.layout import Array, as_numpy, is_torch_tensor
from flatstore.memory.dlpack import import_view
from flatstore.memory.guarded import LentError
from flatstore.trees import first_of

HUGE_PAGE = 2 << 20


class Span(Protocol):
    """A range of addresses: [start, stop)."""

    start: int
    stop: int


lock = threading.RLock()
leases: set[Lease] = set()
ended: list[Lease] = []  # leases whose body is over while somebody still reads
writers: list[tuple[Span, int]] = []
memories: weakref.WeakSet[Memory] = weakref.WeakSet()


def overlap(a: Span, b: Span) -> bool:
    """Whether two ranges of addresses share a byte."""
    return a.start < b.stop and b.start < a.stop


class Lease:
    """One reader of a memory: weak references to the views that were exported tell whether they are still read.

    A view stays alive as long as the library that imported it holds the export.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory  # kept alive: its addresses must not become another's while they are read
        self.start, self.stop = memory.start, memory.stop
        self._exports: list[tuple[str, weakref.ref[Array]]] = []

    def begin(self) -> None:
        """Begin to read: make the memory's views read-only and refuse writers. Raises `LentError` if there is one."""
        with lock:
            settle()
            busy = [span for span, _ in writers if overlap(span, self)]
            if busy:
                raise LentError("expected a buffer at rest, got one that is being written; fix: lend it afterwards")
            leases.add(self)
            for other in list(memories):
                if overlap(other, self):
                    other.freeze()

    def watch(self, exports: Iterable[tuple[str, Array]]) -> None:
        """Count the views of these (path, view) pairs as read for as long as they are alive."""
        self._exports += [(path, weakref.ref(view)) for path, view in exports]

    def unreleased(self) -> list[str]:
        """The paths of the views that are still held."""
        return [path for path, view in self._exports if view() is not None]

    def end(self, patience: float) -> list[str]:
        """Stop reading: wait up to `patience` seconds for the exports, then return the paths still held.

        If none is held, the lease is over. Otherwise it lasts until they are released, which `settle` notices.
        """
        started = time.monotonic()
        pause, collected = 20e-6, False
        try:
            while (held := self.unreleased()) and (waited := time.monotonic() - started) < patience:
                if waited > 0.25 and not collected:
                    gc.collect()  # a view in a reference cycle is freed only by the collector
                    collected = True
                time.sleep(min(pause, patience))
                pause = min(2 * pause, 1e-3)
            if held and not collected:
                gc.collect()
            return self.unreleased()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop reading without waiting: the lease is over as soon as nobody holds its exports."""
        with lock:
            if self in leases and self not in ended:
                ended.append(self)
            settle()


def settle() -> None:
    """Forget the ended leases whose exports are released, and make views writable again that no lease covers."""
    if not ended:
        return
    with lock:
        gone = [lease for lease in ended if not lease.unreleased()]
        for lease in gone:
            if lease in ended:
                ended.remove(lease)
            leases.discard(lease)
        for memory in list(memories) if gone else ():
            if not is_lent(memory):
                memory.thaw()


def is_lent(span: Span) -> bool:
    """Whether anybody reads from this range now."""
    with lock:
        return any(overlap(lease, span) for lease in leases)


class Memory:
    """A range of bytes with an owner. `bytes` is a writable 1-D uint8 array over it; users never see it."""

    __slots__ = ("__weakref__", "_frozen", "_prune_at", "_views", "bytes", "start", "stop")

    def __init__(self, array: Array) -> None:
        self.bytes = array
        self.start: int = array.__array_interface__["data"][0]
        self.stop: int = self.start + array.nbytes
        self._views: list[weakref.ref[Array]] = []
        self._frozen: list[weakref.ref[Array]] = []
        self._prune_at = 64

    def watch(self, views: Iterable[Array]) -> None:
        """Make these writable views read-only whenever the memory is lent (under the lock)."""
        memories.add(self)
        new = [weakref.ref(view) for view in views]
        self._views += new
        if leases and is_lent(self):
            self._freeze(new)
        if len(self._views) > self._prune_at:
            self._views = [ref for ref in self._views if ref() is not None]
            self._prune_at = 2 * len(self._views) + 64

    def freeze(self) -> None:
        """Make the watched views read-only (under the lock)."""
        self._freeze(self._views)

    def _freeze(self, refs: list[weakref.ref[Array]]) -> None:
        for ref in refs:
            view = ref()
            if view is not None and view.flags.writeable:
                view.flags.writeable = False
                self._frozen.append(ref)

    def thaw(self) -> None:
        """Make the frozen views writable again (under the lock)."""
        frozen, self._frozen = self._frozen, []
        for ref in frozen:
            view = ref()
            if view is not None:
                with contextlib.suppress(ValueError):  # the owner of wrapped memory has made it read-only meanwhile
                    view.flags.writeable = True

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
            raise MemoryError(f"expected {nbytes:,} bytes of memory, got none; fix: plan a smaller model") from error

    @classmethod
    def wrap(cls, buffer: Any, nbytes: int, align: int) -> Memory:
        """A memory over the first `nbytes` bytes of `buffer`, which the user owns and this keeps alive: a view.

        `buffer` is a NumPy array, a torch tensor, anything with DLPack or the buffer protocol. Raises `ValueError`
        if it is too small, misaligned, not contiguous or read-only; `TypeError` if it is not memory.
        """
        array = _as_bytes(buffer)
        if not array.flags.writeable:
            if is_lent(cls(array)):
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

    @contextlib.contextmanager
    def writing(self) -> Generator[None]:
        """A context in which this thread writes and nobody can begin to read. Raises `LentError` if anybody uses it."""
        with lock:
            settle()
            thread = threading.get_ident()
            if any(overlap(span, self) for span, writer in writers if writer != thread):
                raise LentError(
                    "expected a buffer at rest, got one that another thread writes; fix: let one thread write at a time"
                )
            readers = [lease for lease in leases if overlap(lease, self)]
            if readers:
                held = sorted({path for lease in readers for path in lease.unreleased()})
                raise LentError(
                    f"expected a buffer that nobody reads, got one that is lent: {len(readers)} lend(s), of "
                    f"{first_of(held) or 'no leaf yet'}; "
                    "fix: leave the `with` block of the lend first, and drop NumPy or torch views taken in it"
                )
            writer = (self, thread)
            writers.append(writer)
        try:
            yield
        finally:
            with lock:
                writers.remove(writer)


def _aligned(array: Array, nbytes: int, align: int) -> Array:
    skip = -array.__array_interface__["data"][0] % align
    return array[skip : skip + nbytes]


def _huge(nbytes: int, align: int) -> Array:
    mapping = mmap.mmap(-1, nbytes + align, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without transparent huge pages gives ordinary ones
        mapping.madvise(mmap.MADV_HUGEPAGE)
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
    return array.reshape(-1).view(np.uint8)
