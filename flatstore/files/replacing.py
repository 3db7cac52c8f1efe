"""A file that is replaced as a whole, or not at all: written beside its place, flushed, and renamed.

What is being written has a name of its own, and is locked by who writes it: the kernel gives the lock up when that
process ends, so that the next one to save can tell what a killed save has left, and removes it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on POSIX: nothing is swept there
    fcntl: Any = None

_SUFFIX = ".saving"
_LONGEST = 200  # bytes of the name that are part of the temporary one; a name may have 255


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Generator[FileIO]:
    """A context in which a new file is written, which takes the place of `path` at the end, if nothing was raised.

    It is on the disk before it gets its name, and so is the name before the context ends. Mode, owner and group are
    those of the file that is replaced, or of any new file; a symbolic link stays, and what it leads to is replaced.

    Raises `FileNotFoundError` unless the path is a file, or may become one, in a folder that exists; `OSError` if it
    cannot be written. The old file is then as it was, and no other is left.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir() or target.is_dir():
        raise FileNotFoundError(
            f"expected a file in a folder that exists, got {os.fspath(path)!r}; fix: make the folder"
        )
    _sweep(target)
    old = os.stat(target) if target.exists() else None
    name = _beside(target, secrets.token_hex(8))  # known before it is there, so that it is removed
    try:
        with _opened(name, 0o666 if old is None else stat.S_IMODE(old.st_mode)) as file:
            if old is not None:
                _keep(file, old)
            yield file
            os.fsync(file.fileno())
            os.replace(name, target)
        _flush_folder(target.parent)
    except BaseException:
        name.unlink(missing_ok=True)  # it is not there any more if an interrupt came after the replacement
        raise


def _beside(target: Path, token: str) -> Path:
    start = os.fsencode(target.name)[:_LONGEST]
    return target.parent / os.fsdecode(b"." + start + b"." + os.fsencode(token + _SUFFIX))


def _opened(name: Path, mode: int) -> FileIO:
    """The new file, locked. If another process swept it away before it was, it is made again."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), mode)

    while True:
        file = open(name, "xb", buffering=0, opener=opener)  # noqa: SIM115 (the caller's)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _keep(file: FileIO, old: os.stat_result) -> None:
    """Give the file the mode of the old one, and its owner and group where the process may."""
    with contextlib.suppress(PermissionError):
        os.chown(file.fileno(), old.st_uid, old.st_gid)
    os.chmod(file.fileno(), stat.S_IMODE(old.st_mode))


def _sweep(target: Path) -> None:
    """Remove what saves of this file have left that were killed: what nobody holds the lock of."""
    if fcntl is None:
        return
    start = _beside(target, "").name.removesuffix(_SUFFIX)
    for name in os.listdir(target.parent):
        if not (name.startswith(start) and name.endswith(_SUFFIX)):
            continue
        left = target.parent / name
        with contextlib.suppress(FileNotFoundError, PermissionError, BlockingIOError):
            place = os.open(left, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(place).st_nlink:
                    left.unlink()
            finally:
                os.close(place)


def _flush_folder(folder: Path) -> None:
    """Have the name of a file on the disk."""
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
