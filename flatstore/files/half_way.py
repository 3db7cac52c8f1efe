"""A population in a file whose generation was killed half-way: what lies beside it then, and who may read it.

A generation writes the file's own bytes, so its log lies beside it, in `<file>.generation`. A word in the log says
whether the generation is over: until then some genes in the file are the children's, and the others the parents'.

```
population.safetensors               | the genes
population.safetensors.generation    | magic | under way? | what to go on from
```
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from flatstore.checks import raise_unless_of_system
from flatstore.threads import uninterrupted

try:
    import fcntl
except ImportError:  # Windows: two processes at work on one file are not noticed
    fcntl: Any = None

ENDING = ".generation"
"""What the name of a log adds to that of the population's file."""

MAGIC = b"flatgen1"
OVER, UNDER_WAY, NOT_BEGUN = (number.to_bytes(8, "little") for number in range(3))
"""What follows the magic in a log: the generation is over, some genes may be replaced, or none is."""


def log_of(path: str | os.PathLike[str]) -> str:
    """The path of the log of a population's file; a link to the file has the file's."""
    # What a handler raises in it would be taken for an error of the system's, and be lost.
    return uninterrupted(lambda: os.path.realpath(path)) + ENDING


def refuse_half_way(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a generation in the file is not over."""
    log = log_of(path)
    if uninterrupted(lambda: _begins(log)) == MAGIC + UNDER_WAY:
        raise half_way_error(path)


def _begins(log: str) -> bytes:
    """How a log begins; nothing without one."""
    if os.path.lexists(log):
        with suppress(FileNotFoundError), open(log, "rb", opener=not_waiting) as file:
            return file.read(len(MAGIC) + len(OVER))
    return b""


def not_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes is not waited for."""
    return os.open(path, flags | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))


def half_way_error(path: str | os.PathLike[str]) -> ValueError:
    """The error that a generation in the file is not over."""
    return ValueError(
        f"expected a whole population, got one whose generation is not over in {os.fspath(path)!r}; "
        "fix: if no process is at work on it any more, Population.open(path) finishes the generation"
    )


def forget(path: str | os.PathLike[str]) -> None:
    """Remove the log of a file that was replaced: what it says is of the old one."""
    if os.path.lexists(log := log_of(path)):
        os.unlink(log)


_locked: dict[int, tuple[int, bool]] = {}
"""By the number of an open file that of the one that has its lock, and whether the file is at its path."""


@contextmanager
def alone_in(path: str, number: int) -> Generator[bool]:
    """A context in which no other process, and no other opening of the file, makes a generation in it.

    It gives whether the file is at the path still, and has not been replaced. Who is in it may enter it again. Raises
    `BlockingIOError` if somebody else is at work. The lock is the kernel's, and is gone when the process is.
    """
    if number in _locked:
        yield _locked[number][1]
        return
    own, is_there = _locked[number] = _opened_anew(path, number)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    f"expected a population that nobody else is at work on, got {path!r}, in which a generation is "
                    "made; fix: wait until it is over"
                ) from error
            except OSError as error:  # the file system has no locks
                raise_unless_of_system(error)
        yield is_there
    finally:
        if _locked.pop(number, None):  # it is not there in a child that was forked meanwhile
            release(own)


def release(number: int) -> None:
    """Take the lock of an open file away, and close it. A forked child that has it open, too, would keep the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_UN)
    except OSError:  # the file system has no locks
        pass
    finally:
        os.close(number)


def _opened_anew(path: str, number: int) -> tuple[int, bool]:
    """Another number of an open file, and whether it is at the path.

    There it has locks of its own: those of an old number are a forked child's, too.
    """
    with suppress(FileNotFoundError):
        own = os.open(path, os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
        if os.path.samestat(os.fstat(own), os.fstat(number)):
            return own, True
        os.close(own)
    return os.dup(number), False


def _after_fork() -> None:
    for number, _ in _locked.values():
        os.close(number)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
