"""The journal of a run: a file to which lines are appended, each on the disk before anybody is told of it.

A kill, or a power cut, can only come in the middle of the last line, and that one is cut off when the run goes on. A
damaged line before others is an error: what stands in it is lost.

Who appends has a lock, which the kernel takes away when the process dies. Whoever reads needs none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from itertools import count, islice
from typing import Any
from weakref import WeakSet, finalize

from flatstore.files import Writer, release
from flatstore.recording.line_text import entry_of, has_number, is_whole, line_of
from flatstore.threads import uninterrupted

try:
    import fcntl
except ImportError:  # Windows: two processes that go on with one run are not noticed
    fcntl: Any = None

_flush: Any = getattr(os, "fdatasync", os.fsync)
_open: WeakSet[Journal] = WeakSet()


class Journal:
    """A journal that is open to go on with.

    Raises `BlockingIOError` while another process, or another loop of this one, goes on with it; `ValueError` for a
    line that is damaged; `OSError` for what the disk refuses.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._starts: list[int] = []
        self._end = 0
        self._close: Callable[[], object] = bool
        try:
            uninterrupted(self._open)
            with open(path, "rb") as file:
                for start, line in _whole_lines(file, path):
                    self._starts.append(start)
                    self._end = start + len(line)
            if os.fstat(self._number).st_size > self._end:
                os.ftruncate(self._number, self._end)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        _open.add(self)
        self._number = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_BINARY", 0), 0o666)
        self._close = finalize(self, _release, self._number, os.getpid())
        _lock(self._number)

    def close(self) -> None:
        """Let others go on with the run; nothing, if that was done before."""
        _open.discard(self)
        self._close()

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._starts)

    def entries(self, first: int) -> Iterator[dict[str, Any]]:
        """The entries from number `first` on, one after the other."""
        if first < len(self):
            with open(self.path, "rb") as file:
                file.seek(self._starts[first])
                for line in islice(file, len(self) - first):
                    yield entry_of(line)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append an entry, and wait until it is on the disk: uninterrupted. An error leaves the journal as it was."""
        line = line_of(entry)
        assert has_number(line, len(self)), (entry["number"], len(self))
        uninterrupted(lambda: self._append(line))

    def _append(self, line: bytes) -> None:
        try:
            Writer(self._number).write(line, self._end)
            _flush(self._number)
        except BaseException:
            self._cut(self._end)
            raise
        self._starts.append(self._end)
        self._end += len(line)

    def take_back(self) -> None:
        """Remove the last entry. If the disk refuses, it stays: it is true all the same of a move that can be made."""
        uninterrupted(lambda: self._cut(self._starts[-1]))
        self._end = self._starts.pop()

    def _cut(self, size: int) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._number, size)

    def leave(self) -> None:
        """Close the file in a forked child, to which the run does not belong; the parent's lock stays."""
        self._close()
        self._number = -1


def _release(number: int, process: int) -> None:
    """Close the file of a process; a forked child leaves it the lock."""
    (release if process == os.getpid() else os.close)(number)


def _lock(number: int) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # the file system has no locks
            pass


def entries_of(path: str) -> Iterator[dict[str, Any]]:
    """The entries of a journal, which another process may be writing; a last line that is not whole is left out.

    Raises `ValueError` for a damaged line before others.
    """
    with open(path, "rb") as file:
        for _, line in _whole_lines(file, path):
            yield entry_of(line)


def _whole_lines(file: BufferedReader, path: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are as they were written, each with its place in the file."""
    start = 0
    for number in count():
        line = file.readline()
        whole = is_whole(line)
        if not whole and not file.peek(1):  # the last, in which whoever wrote it was killed; or the end of the file
            return
        if not (whole and has_number(line, number)):
            raise ValueError(
                f"expected the entry {number} of a run, got a damaged line at byte {start:,} of {path!r}; "
                "fix: take a copy of the run, or cut the file off there: what came after is evaluated again"
            )
        yield start, line
        start += len(line)


def _after_fork() -> None:
    for journal in _open:
        journal.leave()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
