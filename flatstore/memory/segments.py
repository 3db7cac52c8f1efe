"""Segments: memory with a name, which other processes attach to. The kernel knows who of them reads and who writes.

A segment is a file that lies in memory, for its owner only. Text before the bytes says what they are:

```
/dev/shm/flatstore-1000-weights
| magic, version | sizes | digest | is written | text | zeros, to a page | the bytes ...
  locked while its creator lives; the next byte locked by those who read, or by the one who writes
```

A creator removes its segments as it ends. Those of one that was killed have no lock any more, and the next process that
shares removes them: no tracker does, and no process that attaches and leaves.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import stat
import struct
import weakref
from collections.abc import Callable
from io import FileIO

import numpy as np

from flatstore.checks import raise_unless_of_system
from flatstore.layout import Array
from flatstore.memory.holds import ALIVE, IS_WRITTEN, Segment, close_once, fcntl, is_locked, lock, with_locks

PAGE = 4096
"""Bytes: the data start at a multiple of this, and so may leaves that are aligned to at most as much."""

_MAGIC, _VERSION = b"flatshm\0", 1
_HEAD = struct.Struct("<8sQQQ16s")  # magic, version, bytes of the text, bytes of the data, digest of what is before
_TEXT = IS_WRITTEN + 1  # the byte at which the text starts
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def check_name(name: str | None) -> str:
    """The name of a segment, or a new one.

    Raises `ValueError` for what cannot be one, and `OSError` where the system has no segments.
    """
    if not (hasattr(fcntl, "F_OFD_SETLK") and os.path.isdir(folder())):
        raise OSError(
            f"expected a system with memory to share at {folder()}, got another; fix: share on Linux; to read what is "
            "at rest save a file, and open it in each process"
        )
    if name is None:
        return secrets.token_hex(8)
    if not isinstance(name, str) or not _NAME.fullmatch(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"expected a name of up to 100 letters, digits and . _ -, got {str(name)[:120]!r}; fix: pass one like 'a-1'"
        )
    return name


def folder() -> str:
    """The folder whose files lie in memory: /dev/shm, or that of the environment variable FLATSTORE_SHARED_DIR."""
    return os.environ.get("FLATSTORE_SHARED_DIR") or "/dev/shm"


def prefix() -> str:
    """How the names of this user's files begin there."""
    return f"flatstore-{os.geteuid()}-"


def _open(path: str, flags: int) -> int:
    """Open a file of this folder; a link, or a pipe that nobody writes, is neither followed nor waited for."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def make_segment(name: str, text: str, nbytes: int) -> tuple[Array, Segment]:
    """The bytes of a new segment, zeros, with a text; it is removed as it is dropped, or when the interpreter ends.

    Raises `FileExistsError` for a name that is in use, `MemoryError` where there is no room.
    """
    sweep()
    path, content = os.path.join(folder(), prefix() + name), text.encode()
    start = -(-(_TEXT + len(content)) // PAGE) * PAGE
    file, remove = _begun(name, path)
    opened: list[int] = []
    try:
        os.posix_fallocate(file.fileno(), 0, start + nbytes)  # what is missing is missed now, not as it is written
        head = _HEAD.pack(_MAGIC, _VERSION, len(content), nbytes, _digest(content, nbytes))
        _write(file, content, _TEXT)
        _write(file, head, 0)
        opened.append(_open(path, os.O_RDWR))
        segment = Segment(name, opened, remove)
        array = _mapped(segment, start, nbytes, mmap.MAP_SHARED)
    except BaseException as error:
        close_once(opened)
        remove()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise MemoryError(
                f"expected {start + nbytes:,} bytes of shared memory, got none in {folder()} ({error.strerror}); "
                "fix: give it more room, such as docker run --shm-size, or share less"
            ) from error
        raise
    return array, segment


def _begun(name: str, path: str) -> tuple[FileIO, Callable[[], object]]:
    """A new file, locked by its creator, and what removes it: when it is called, or the interpreter ends.

    The lock is that of this file alone: a mapping would keep it in a child.
    """
    was_swept = False
    while True:
        try:
            file = FileIO(path, "xb+", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if not was_swept:
                raise FileExistsError(
                    f"expected a name that is free, got {name!r}, which is in use; fix: pass another name, or none"
                ) from None
            was_swept = False
            sweep()
            continue
        try:
            with_locks[file.fileno()] = weakref.ref(file)
            os.fchmod(file.fileno(), 0o600)
            lock(file, fcntl.F_WRLCK, ALIVE)
            if os.fstat(file.fileno()).st_nlink:
                return file, weakref.finalize(Segment, _remove, path, os.getpid(), file)  # no class is ever dropped
        except BlockingIOError:
            pass
        except BaseException:
            os.unlink(path)
            file.close()
            raise
        file.close()  # somebody who sweeps took it for a dead one, before it had its lock
        was_swept = True


def _write(file: FileIO, content: bytes, at: int) -> None:
    while content:
        written = os.pwrite(file.fileno(), content, at)
        content, at = content[written:], at + written


def _digest(content: bytes, nbytes: int) -> bytes:
    return hashlib.blake2b(content + struct.pack("<QQ", _VERSION, nbytes), digest_size=16).digest()


def _mapped(segment: Segment, start: int, nbytes: int, flags: int) -> Array:
    """The bytes of a segment."""
    mapping = mmap.mmap(segment.number, start + nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(mapping, np.uint8)[start:]


def _remove(path: str, process: int, file: FileIO) -> None:
    """Remove what this process has made, if it is still there; a forked child only forgets it."""
    if process == os.getpid():
        with contextlib.suppress(FileNotFoundError):
            if _identity(os.lstat(path)) == _identity(os.fstat(file.fileno())):
                os.unlink(path)
    file.close()


def attached_segment(name: str) -> tuple[Array, Segment, str]:
    """The bytes of a segment that another process has made, to be read, and the text.

    The pages are private: whoever writes them past all flags changes neither the segment nor another process.

    Raises `FileNotFoundError` if there is none; `ValueError` for what is not one, and for one whose creator has ended;
    `PermissionError` for one that others own, or may read.
    """
    path = os.path.join(folder(), prefix() + check_name(name or ""))
    try:
        file = FileIO(path, "rb", opener=_open)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"expected a segment named {name!r}, got none; fix: share() in another process, and keep what it returns"
        ) from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise _unlike(name, "a link, or a folder") from None
        raise
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _unlike(name, "a device or a pipe")
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o600:
            raise PermissionError(
                f"expected the segment {name!r} to be for its owner only, you, got owner {status.st_uid} and mode "
                f"{stat.S_IMODE(status.st_mode):04o}; fix: share it as this user"
            )
        if status.st_nlink > 1:
            raise _unlike(name, "a file with several names")
        text, start, nbytes = _read(file, status.st_size, name)
        if not is_locked(file, ALIVE):
            raise ValueError(
                f"expected a creator of {name!r} that lives, got one that has ended; fix: share it in a new process"
            )
        opened = [os.dup(file.fileno())]
        try:
            segment = Segment(name, opened)
            return _mapped(segment, start, nbytes, mmap.MAP_PRIVATE | _NO_RESERVE), segment, text
        except BaseException:
            close_once(opened)
            raise


def _read(file: FileIO, size: int, name: str) -> tuple[str, int, int]:
    """What the text before the bytes says: (the text, where the bytes start, how many they are)."""
    head = os.pread(file.fileno(), _HEAD.size, 0)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        raise _unlike(name, "a file of others, or one that is still being made")
    _, version, length, nbytes, digest = _HEAD.unpack(head)
    if version != _VERSION:
        raise _unlike(name, f"version {version}, not {_VERSION}")
    start = -(-(_TEXT + length) // PAGE) * PAGE
    if start + nbytes != size:
        raise _unlike(name, f"{size:,} bytes, not {start + nbytes:,}")
    content = os.pread(file.fileno(), length, _TEXT)
    if len(content) != length or _digest(content, nbytes) != digest:
        raise _unlike(name, "a text of another digest")
    return content.decode(), start, nbytes


def _unlike(name: str, got: str) -> ValueError:
    return ValueError(f"expected a segment named {name!r}, got {got}; fix: share it again, with the same flatstore")


def sweep() -> list[str]:
    """Remove the segments of this user whose creators have ended, and return the names of the files."""
    swept: list[str] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder()) as entries:
        for name in [entry.name for entry in entries if entry.name.startswith(prefix())]:
            path = os.path.join(folder(), name)
            try:
                with FileIO(path, "rb+", opener=_open) as file:
                    status = os.fstat(file.fileno())
                    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                        lock(file, fcntl.F_WRLCK, ALIVE)
                        if _identity(os.lstat(path)) == _identity(status):
                            os.unlink(path)
                            swept.append(name)
            except OSError as error:  # it is gone, it is another's, or its creator is alive
                raise_unless_of_system(error)
    return swept
