"""Reading and writing memories, as the verbs do: by contexts, or work that is done uninterrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.lib.array_utils import byte_bounds

from flatstore.layout import Array
from flatstore.memory.claims import Claim, Lease, persist
from flatstore.memory.host import Memory
from flatstore.memory.regions import members_at
from flatstore.threads import Leaving, guard, uninterrupted

T = TypeVar("T")


class reading:  # noqa: N801 (used as a function)
    """A context in which these memories are read, and not written by verbs. Raises `LentError` if one is written."""

    def __init__(self, *memories: Memory) -> None:
        self.leases = [Lease(memory, self, lends=False) for memory in memories]

    def __enter__(self) -> Self:
        for lease in self.leases:
            lease.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lease in self.leases:
            lease.end()


def memories_of(arrays: Iterable[Any]) -> list[Memory]:
    """The memories, each once, in which any of these NumPy arrays lies; what is no array of NumPy's lies in none."""
    found: dict[int, Memory] = {}
    last: Memory | None = None
    with guard():
        for array in arrays:
            if not isinstance(array, np.ndarray) or not array.size:
                continue
            start, stop = byte_bounds(cast(Array, array))
            if last is not None and last.start <= start and stop <= last.stop:
                continue  # many leaves of one store
            for memory in members_at(start, stop):
                found[id(memory)] = last = memory
    return list(found.values())


class writing:  # noqa: N801 (used as a function)
    """A context in which this thread alone writes a memory, in several steps that may each be interrupted."""

    def __init__(self, memory: Memory) -> None:
        self._claim = Claim(memory, self)

    def __enter__(self) -> None:
        """Begin. Raises `LentError` if anybody else reads or writes the memory."""

        def begin() -> None:
            with guard():
                self._claim.begin(self._claim.thread)

        persist(begin)

    __exit__ = Leaving()

    def leave(self, error: BaseException | None) -> None:
        """End the claim."""
        self._claim.end()


def write(memories: Sequence[Memory], work: Callable[[], T], own: reading | None = None) -> T:
    """Do the work as the only writer of these memories, uninterrupted, and return its result.

    `own` is what the work itself reads, which may be the same memories. Raises `LentError`, before the work begins, if
    anybody else reads or writes them.
    """
    caller = threading.get_ident()
    begun = False

    def attempt() -> T:
        nonlocal begun
        claims = [Claim(memory, work) for memory in memories]
        try:
            with guard():
                for claim in claims:
                    claim.begin(caller, own.leases if own else ())
            begun = True
            return work()
        finally:
            for claim in claims:
                claim.end()

    return persist(lambda: uninterrupted(attempt), lambda: begun)
