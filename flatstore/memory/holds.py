"""Holds of a segment: locks by which processes know of each other who reads it and who writes it.

The locks are of open files (`F_OFD_SETLK`), not of processes. Who takes one opens the file for it: so the kernel
counts, and whatever a process dies of, its files are closed and its locks are gone.

```
byte of the file   0          1                            63
                   creator    many who read, or a writer   1 while it is written
```
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import weakref
from collections.abc import Callable
from functools import partial
from io import FileIO
from typing import Any

import numpy as np

from flatstore.layout import Array
from flatstore.threads import when_dropped

try:
    import fcntl
except ImportError:  # Windows: nothing is shared
    fcntl: Any = None

ALIVE, USED, IS_WRITTEN = 0, 1, 63
"""The bytes that are locked, by the creator and by those who read or write; and the mark of a writer at work."""


class Segment:
    """A segment that this process has attached to, or has made and is to `remove`; and its open file.

    As it is dropped it is removed, and the file is closed.
    """

    name: str
    number: int

    def __init__(self, name: str, opened: list[int], remove: Callable[[], object] | None = None) -> None:
        self.name, self.number = name, opened[0]
        self._creator = None if remove is None else os.getpid()
        self._last = when_dropped(partial(close_once, opened)), remove and when_dropped(remove)

    @property
    def is_own(self) -> bool:
        """Whether this process has made it, and may write it: a forked child has not."""
        return self._creator == os.getpid()

    def opened(self) -> FileIO:
        """The file, opened once more, whether its name is still there or not."""
        return FileIO(f"/proc/self/fd/{self.number}", "rb+" if self.is_own else "rb")


def close_once(opened: list[int]) -> None:
    """Close files that are open, and take their numbers out of the list: these will be others' by then."""
    while opened:
        os.close(opened.pop())


def lock(file: FileIO, kind: int, byte: int) -> None:
    """Set or remove the lock of an open file, at once, as one step. Raises `BlockingIOError` if others have it."""
    try:
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0))
    except PermissionError as error:  # EACCES is another way to say EAGAIN
        raise BlockingIOError(errno.EAGAIN, "locked") from error


def is_locked(file: FileIO, byte: int) -> bool:
    """Whether somebody has any lock."""
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    return struct.unpack_from("h", fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK


with_locks: dict[int, weakref.ref[FileIO]] = {}
"""Open files that may have locks, by their numbers: a forked child must not have them, too."""


class Ended:
    """A hold that is over. Nothing is called as it goes, for what a signal handler raised then would be lost."""

    def release(self) -> None:
        """Do nothing."""


class Hold(Ended):
    """The lock of a segment that is read, or written, for as long as this lives, or its process does.

    On top of a hold of the same work that reads, a `base`, one that writes makes of it a lock to write, for as long.

    Raises `BlockingIOError` if another process is in the way, and `BufferError` for a reader if the last writer was
    killed as it wrote.
    """

    writes: bool
    segment: Segment

    writes = False
    _base: Hold | None = None
    _file: FileIO | None = None
    _is_locked = False
    _is_marked = False  # whether this, or what is on top of it, has marked the segment

    def __init__(self, segment: Segment, *, writes: bool, base: Hold | None = None) -> None:
        self.segment, self.writes, self._base = segment, writes, base
        self._process = os.getpid()
        self._file = file = base._file if base and base._file else segment.opened()
        if base is None:
            with_locks[file.fileno()] = weakref.ref(file)
        lock(file, fcntl.F_WRLCK if writes else fcntl.F_RDLCK, USED)
        self._is_locked = True
        if writes:
            (base or self)._is_marked = True
            os.pwrite(file.fileno(), b"\1", IS_WRITTEN)
        elif os.pread(file.fileno(), 1, IS_WRITTEN) != b"\0":
            self.release()
            raise BufferError(
                f"expected the segment {segment.name!r} whole, got one whose writer was killed as it wrote; "
                "fix: share it again"
            )

    def release(self) -> None:
        """End the hold. It may be called twice, and again when it was interrupted."""
        if self._file and not self._file.closed:
            self._unlock(self._file)
        self.__class__ = Ended  # pyright: ignore[reportAttributeAccessIssue]

    def _unlock(self, file: FileIO) -> None:
        if self._process == os.getpid():  # a forked child must not unlock what its parent has
            root = self._base or self
            if root._is_marked and (self.writes or root is self):
                os.pwrite(file.fileno(), b"\0", IS_WRITTEN)
                root._is_marked = False
            if self._is_locked:
                lock(file, fcntl.F_RDLCK if self._base else fcntl.F_UNLCK, USED)
                self._is_locked = False
        if self._base is None:
            file.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            self.release()


class HeldView(np.ndarray[Any, np.dtype[Any]]):
    """A view that another library imports: as long as it, or a view of it, is held, so are the locks `holds`."""

    holds: Any = None

    def __array_finalize__(self, source: Any) -> None:
        """Take over the holds of the array that this is a view of."""
        self.holds = getattr(source, "holds", None)


def held(view: Array, holds: Any) -> Array:
    """A view that has these holds."""
    made = view.view(HeldView)
    made.holds = holds
    return made


def _after_fork() -> None:
    """Close, in a child process, what its parent has locked: otherwise it would stay so for as long as the child."""
    for ref in [*with_locks.values()]:
        file = ref()
        if file is not None:
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
