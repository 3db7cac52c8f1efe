"""Files of machine code: nobody else can have written them, and one process at a time makes each.

```
<folder>/<key>.kernel       sha256 of key and content (32 bytes) | content: a pickle
<folder>/<key>.turn         whose process compiles it now: locked, and removed when it is done
```

Machine code is executed, and a pickle may execute anything. So a folder or a file is left alone unless it belongs to
this user and nobody else may write it, and a file that is a link is not followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Any

from flatstore.checks import raise_unless_of_system

try:
    import fcntl
except ImportError:  # on Windows, where each process compiles for itself
    fcntl: Any = None

PATIENCE = 60.0
"""Seconds that a process waits while another one compiles the same function."""

_MOST = 1 << 26  # bytes: the machine code of a function has a thousandth of it
_DIGEST = hashlib.sha256().digest_size
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for a pipe
_told: set[str] = set()

log: logging.Logger = logging.getLogger("flatstore.kernels")


def cache_folder() -> Path | None:
    """Return the folder that machine code is kept in, or None if it is not kept. The folder need not exist."""
    if (named := os.environ.get("FLATSTORE_CACHE_DIR")) is not None:
        return Path(named).expanduser() if named else None
    if Path(cache := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        return Path(cache) / "flatstore"
    try:
        return Path.home() / ".cache" / "flatstore"
    except RuntimeError:
        return None


def _is_private(path: Path, status: os.stat_result) -> bool:
    """Whether only this user can have written a file, or what is in a folder; says so once if not."""
    if not hasattr(os, "geteuid"):
        return True
    if status.st_uid != os.geteuid():
        why = f"{path} belongs to another user; fix: set FLATSTORE_CACHE_DIR to a folder of your own"
    elif not stat.S_ISLNK(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = f"others may write {path}; fix: chmod go-w, or set FLATSTORE_CACHE_DIR to a private folder"
    else:
        return True
    if why not in _told:
        _told.add(why)
        log.warning("machine code is kept in this process only, and compiled anew: %s", why)
    return False


def _is_private_folder(folder: Path) -> bool:
    return _is_private(folder, folder.lstat()) and _is_private(folder, folder.stat())


def _signed(file: Path, content: bytes) -> bytes:
    return hashlib.sha256(file.stem.encode() + content).digest()


def _content(file: Path) -> bytes:
    """The bytes of a file; none if others may have written it, or if it is not one of machine code."""
    number = os.open(file, os.O_RDONLY | _NO_LINK | _NO_WAIT)
    try:
        status = os.fstat(number)
        if not _is_private(file, status) or not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
            return b""
        with open(number, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(number)


def read(file: Path) -> bytes | None:
    """The content of a file, or None if it is missing, damaged, a link, or if others may have written it."""
    try:
        if not _is_private_folder(file.parent):
            return None
        whole = _content(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise_unless_of_system(error)
        log.debug("cannot read machine code: %s", error)
        return None
    if whole[:_DIGEST] != _signed(file, whole[_DIGEST:]):
        log.debug("%s is damaged, or not ours", file)
        return None
    return whole[_DIGEST:]


def write(file: Path, content: bytes) -> None:
    """Write a file in one step, so that no other process sees half of it."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private_folder(file.parent):
            return
        number, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem[:8], suffix=".part")
        try:
            with open(number, "wb") as stream:
                stream.write(_signed(file, content) + content)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise_unless_of_system(error)
        log.debug("machine code is kept in this process only: %s", error)


class Turn:
    """A turn to make a file: while one process has it, the others wait. It ends with the process, whatever happens."""

    def __init__(self, file: Path) -> None:
        self._path = file.with_suffix(".turn")
        self._number: int | None = None

    def take(self) -> None:
        """Wait for the turn, at most `PATIENCE` seconds, while another process has it."""
        if fcntl is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private_folder(self._path.parent):
                self._number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | _NO_LINK, 0o600)
                self._wait(self._number)
        except OSError as error:  # such as of a file system without locks
            raise_unless_of_system(error)
            log.debug("machine code may be compiled by several processes at once: %s", error)

    def _wait(self, number: int) -> None:
        started, pause = time.monotonic(), 0.001
        while time.monotonic() - started < PATIENCE:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        log.debug("another process has compiled for %g s: this one does it, too", PATIENCE)

    def end(self) -> None:
        """Let the next process have its turn."""
        number, self._number = self._number, None
        if number is not None:
            try:
                os.unlink(self._path)
            except OSError as error:
                raise_unless_of_system(error)
            finally:
                os.close(number)
