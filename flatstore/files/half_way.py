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

try:
    import fcntl
except ImportError:  # Windows: two processes at work on one file are not noticed
    fcntl: Any = None

ENDING = ".generation"
"""What the name of a log adds to that of the population's file."""

MAGIC = b"flatgen1"
OVER, UNDER_WAY = (number.to_bytes(8, "little") for number in (0, 1))
"""What follows the magic in a log."""


def log_of(path: str | os.PathLike[str]) -> str:
    """The path of the log of a population's file; a link to the file has the file's."""
    return os.path.realpath(path) + ENDING


def refuse_half_way(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` if a generation in the file is not over."""
    if not os.path.lexists(log := log_of(path)):
        return
    with suppress(FileNotFoundError), open(log, "rb") as file:
        if file.read(len(MAGIC) + len(OVER)) == MAGIC + UNDER_WAY:
            raise ValueError(
                f"expected a whole population, got one whose generation is not over in {os.fspath(path)!r}; "
                "fix: if no process is at work on it any more, Population.open(path) finishes the generation"
            )


def forget(path: str | os.PathLike[str]) -> None:
    """Remove the log of a file that was replaced: what it says is of the old one."""
    if os.path.lexists(log := log_of(path)):
        os.unlink(log)


@contextmanager
def alone_in(path: str, number: int) -> Generator[None]:
    """A context in which no other process, and no other opening of the file, makes a generation in it.

    Raises `BlockingIOError` if one does. The lock is the kernel's, and is gone when the process is.
    """
    if fcntl is not None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"expected a population that nobody else is at work on, got {path!r}, in which a generation is made; "
                "fix: wait until it is over"
            ) from error
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_UN)
