"""A file replaced by another, whole or not at all: neither a kill nor a power cut leaves half of it.

```
.flatstore-saving-5f0c…    written, flushed --.
model.safetensors                             '-- renamed; then the folder is flushed
```

What is being written has a lock, which the kernel takes away when its writer dies. So the next save knows which of the
files of this name, in the same folder, are left over, and removes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from flatstore.checks import raise_unless_of_system
from flatstore.files.half_way import forget, release
from flatstore.threads import Leaving, add_notes, moment, uninterrupted

try:
    import fcntl
except ImportError:  # Windows: what is left over stays
    fcntl: Any = None

_PREFIX = ".flatstore-saving-"
_NAME = re.compile(re.escape(_PREFIX) + "[0-9a-f]{16}")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_process = object()  # another one in a forked child

_SENT_AT_ONCE = 8 << 20
"""Bytes that the disk is given to write while those behind them come: the flush at the end waits for the last alone."""

_SYNC_FILE_RANGE_WRITE = 2
_send: Any = ctypes.CDLL(None).sync_file_range if sys.platform == "linux" else None


class Writer:
    """What writes all that it is given to an open file, in any order."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._unsent = 0  # the bytes written last that the disk was not given yet

    def write(self, content: Any, at: int) -> None:
        """Write all of the bytes at a place. Raises `OSError` where they cannot be, such as on a full disk."""
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._number, rest, at)
            if not written:
                raise OSError(f"expected {len(rest):,} more bytes to be written, got none; fix: see the disk")
            at += written
            rest = rest[written:]
            self._unsent += written
        if _send is not None and self._unsent >= _SENT_AT_ONCE:
            start, nbytes = ctypes.c_int64(at - self._unsent), ctypes.c_int64(self._unsent)
            _send(self._number, start, nbytes, _SYNC_FILE_RANGE_WRITE)  # the flush reports what fails
            self._unsent = 0

    def reserve(self, size: int) -> None:
        """Take the room for `size` bytes on the disk: zeros, until they are written. Raises `OSError` if it is full."""
        if size >= 1 << 63:  # of which the calls of the system make an OverflowError
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._number, 0, size)
        else:
            os.truncate(self._number, size)


class replacing:
    """A context in which a file is written that takes the place of the one at `path` when the block is over.

    If the block fails, or is interrupted, the old file stays. The new one has its mode and its owner; without an old
    file, those of any new file. A link at `path` stays, and the file that it leads to is replaced.

    If it is to be the `first` file there, one that others have made meanwhile stays, where the file system has links.

    Raises `FileNotFoundError` for a folder that does not exist, `ValueError` where something lies that is no file,
    `FileExistsError` for a second file, and `OSError` for whatever the disk refuses.
    """

    def __init__(self, path: str | os.PathLike[str], *, first: bool = False) -> None:
        self._first = first
        self._target, self._old = uninterrupted(lambda: _target(path))
        if first and self._old is not None:
            raise _not_first(os.fspath(path))
        self._folder = os.path.dirname(self._target)
        self._names: list[str] = []
        self._number: int | None = None
        self._process = _process
        self._is_entered = False

    def __enter__(self) -> Writer:
        uninterrupted(self._begin)
        writer = Writer(cast(int, self._number))
        self._is_entered = True  # nothing interrupts from here to the block
        return writer

    __exit__: Leaving = Leaving()

    def _begin(self) -> None:
        sweep(self._folder)
        self._number = _begun(self._folder, 0o666 if self._old is None else 0o600, self._names)

    def leave(self, error: BaseException | None) -> None:
        """Put the new file in the place of the old one, or remove it after an error."""
        if self._process is not _process:
            return self._leave_to_parent(error)
        is_renamed, since = False, 0
        try:
            try:
                since = moment()
                if self._is_entered and error is None:
                    number = cast(int, self._number)
                    if self._old is not None:
                        _like_the_old(number, self._old)
                    os.fsync(number)
                    if not (self._first and _is_linked(self._names[0], self._target)):
                        os.replace(self._names[0], self._target)
                        self._names.clear()
                    is_renamed = True
                    forget(self._target)  # before the lock is gone: nobody has a log for the new file yet
            finally:
                self._let_go()
            if is_renamed:
                flush_folder(self._folder)
        except BaseException as failed:
            if is_renamed:
                add_notes(failed, since, f"the new file is at {self._target!r}; a power cut may bring the old one back")
            raise

    def _let_go(self) -> None:
        try:
            if self._number is not None:
                release(self._number)
        finally:
            for name in self._names:
                try:
                    os.unlink(name)
                except FileNotFoundError:  # it is not there yet
                    pass
                except OSError as error:
                    if self._number is not None:
                        raise
                    raise_unless_of_system(error)  # none was made: where nothing can be written, nothing is removed

    def _leave_to_parent(self, error: BaseException | None) -> None:
        """Close the file in a child that a signal handler has forked: what is being written is its parent's."""
        if self._number is not None:
            os.close(self._number)
        if error is None:
            raise RuntimeError(
                f"expected a process that goes on, got one that was forked as it wrote {self._target!r}; "
                "fix: end the child by os._exit, or fork elsewhere"
            )


def _target(path: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """The path of the file that is replaced, no link, and what is there now."""
    given = os.fspath(path)
    target = os.path.realpath(given)
    if not os.path.basename(given) or not os.path.isdir(os.path.dirname(target)) or os.path.isdir(target):
        raise FileNotFoundError(f"expected a file in a folder that exists, got {given!r}; fix: make the folder")
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(old.st_mode):
        raise ValueError(f"expected a file, or nothing yet, got a device or a pipe at {given!r}; fix: name a file")
    return target, old


def _not_first(path: str) -> FileExistsError:
    return FileExistsError(f"expected no file yet, got one at {path!r}; fix: Population.open(path), or remove the file")


def _is_linked(name: str, target: str) -> bool:
    """Give a file a second name, unless there is a file of that name, and return whether the file system can do so."""
    try:
        os.link(name, target)
    except FileExistsError:
        raise _not_first(target) from None
    except OSError as error:
        raise_unless_of_system(error)
        return False
    return True


def _begun(folder: str, mode: int, names: list[str]) -> int:
    """The number of a new file with a lock. Its path comes to stand in `names`, and does so before it is there."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | _BINARY
    while True:
        names[:] = [os.path.join(folder, _PREFIX + secrets.token_hex(8))]
        number = os.open(names[0], flags, mode)
        try:
            if _is_locked(number) and os.fstat(number).st_nlink:
                return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)  # somebody who sweeps took it for a dead one, before it had its lock
        with contextlib.suppress(FileNotFoundError):
            os.unlink(names[0])


def _is_locked(number: int) -> bool:
    """Lock a file, and return whether that was possible. Where the file system has no locks nothing is swept."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise_unless_of_system(error)
    return True


def sweep(folder: str) -> list[str]:
    """Remove what killed saves have left in a folder, and return the names. Files that are being written stay."""
    if fcntl is None:
        return []
    swept: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and _is_swept(entry.path):
                    swept.append(entry.name)
    except OSError as error:
        raise_unless_of_system(error)
    return swept


def _is_swept(path: str) -> bool:
    """Remove a file, and return whether that was possible: not if it is gone or another's, or if its writer lives."""
    try:
        _sweep_one(path)
    except OSError as error:
        raise_unless_of_system(error)
        return False
    return True


def _sweep_one(path: str) -> None:
    """Remove a file. Raises `OSError` if it may not be opened, or has a lock."""
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | _NO_LINK)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(number)


def _like_the_old(number: int, old: os.stat_result) -> None:
    """Give a file the owner and the mode of the one that it is to replace."""
    mode = stat.S_IMODE(old.st_mode)
    now = os.fstat(number)
    if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid):
        owner_kept = _may(lambda: os.fchown(number, old.st_uid, old.st_gid))
        if not owner_kept and not _may(lambda: os.fchown(number, -1, old.st_gid)):
            mode &= ~0o070  # what its group might do is not for another group
    os.fchmod(number, mode)


def _may(change: Callable[[], None]) -> bool:
    try:
        change()
    except PermissionError:
        return False
    return True


def flush_folder(folder: str) -> None:
    """Flush a folder, so that a renaming is not lost in a power cut."""
    if os.name != "posix":
        return
    number = os.open(Path(folder), os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _after_fork() -> None:
    global _process
    _process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
