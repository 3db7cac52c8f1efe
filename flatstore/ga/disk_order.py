"""Genes in the order that a disk likes: in long pieces, each read once, shortly before its turn, and written once.

A task is a range of genes of all members: a piece of each row. Left to itself, the system reads around each piece as it
is touched, and forgets what it read before its turn comes.

```
members       genes ->
   |          | task 0 | task 1 | task 2 | task 3 |
   |          | over   | now    | asked for       |       `WINDOW` bytes each
```
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flatstore.files import WrittenFile
from flatstore.layout import Array
from flatstore.store import Population
from flatstore.threads import Task

WINDOW = 64 << 20
"""Bytes of the population in a task at most, unless the pieces of its rows would be shorter than a page."""

LEAST = 4 << 20
"""Bytes of a task of a population so small that all its tasks would otherwise be fewer than `TASKS`."""

TASKS = 32
"""Tasks that a population is cut into at least, so that threads share them well and little is in memory at once."""

_SAMPLE = 256
"""Pages of a file that are looked at: if all are in memory, nothing is asked for."""

# It is but advice: where there is none, the system reads as it does.
_HAS_ADVICE = sys.platform == "linux"
_mincore: Any = ctypes.CDLL(None).mincore if _HAS_ADVICE else None


def genes_in_task(pop: Population, itemsize: int, width: int) -> int:
    """The genes of a task, a multiple of the width of a block."""
    window = min(WINDOW, max(LEAST, pop.memory.bytes.size // TASKS))
    genes = max(window // (pop.size * itemsize), mmap.PAGESIZE // itemsize)
    return max(1, genes // width) * width


def _is_in_memory(mapping: mmap.mmap) -> bool:
    """Whether a file can be had without a disk: a few of its pages, all over it."""
    if not _HAS_ADVICE:
        return True
    start: int = np.frombuffer(mapping, np.uint8).ctypes.data
    pages = np.random.default_rng(0).integers(0, -(-len(mapping) // mmap.PAGESIZE), _SAMPLE)
    found = ctypes.c_ubyte()

    def is_there(page: int) -> bool:
        _mincore(ctypes.c_void_p(start + page * mmap.PAGESIZE), ctypes.c_size_t(1), ctypes.byref(found))
        return found.value == 1

    return all(map(is_there, pages.tolist()))


class ReadAhead:
    """Asks the system for the pieces of tasks before they are worked on: `runs` and bytes of an element by group."""

    def __init__(
        self, pop: Population, file: WrittenFile, tasks: Sequence[Task], runs: Mapping[Any, tuple[Array, int]]
    ) -> None:
        self._file, self._tasks, self._size = file, tasks, pop.size
        self._runs = {group: (found.tolist(), itemsize) for group, (found, itemsize) in runs.items()}
        self._asked = len(tasks) if _is_in_memory(file.mapping) else 0

    @contextmanager
    def in_pieces(self) -> Generator[None]:
        """A context in which the system reads nothing but what it is asked for."""
        mapping = self._file.mapping
        if _HAS_ADVICE and not self._asked:
            mapping.madvise(mmap.MADV_RANDOM)
        try:
            yield
        finally:
            if _HAS_ADVICE:
                mapping.madvise(mmap.MADV_NORMAL)

    def ask(self, number: int) -> None:
        """Ask for this task and the next one, if that was not done."""
        stop = min(number + 2, len(self._tasks))
        first, self._asked = self._asked, max(stop, self._asked)
        for task in self._tasks[first:stop]:
            for start, nbytes in self._pieces(task):
                os.posix_fadvise(self._file.number, start, nbytes, os.POSIX_FADV_WILLNEED)

    def _pieces(self, task: Task) -> Iterator[tuple[int, int]]:
        """The bytes of the mapping that a task goes over: first byte and number."""
        runs, itemsize = self._runs[task.group]
        for begin, end, place, step in runs:
            low, high = max(begin, task.start), min(end, task.stop)
            if low >= high:
                continue
            start, nbytes = self._file.start + (place + low - begin) * itemsize, (high - low) * itemsize
            if high - low == step:  # the rows of a leaf that is all in the task
                yield start, nbytes * self._size
            else:
                yield from ((start + member * step * itemsize, nbytes) for member in range(self._size))
