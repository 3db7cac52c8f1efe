"""Threads that wait for others, where they are told to, and never for each other.

Who waits holds what it has. So two may wait for each other: the one that began to wait last gets an error then.

```
thread 1    reads a | waits to write b ....................... | writes b
thread 2    reads b            | waits to write a ... | error
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextvars import ContextVar
from typing import TypeVar

from flatstore.checks import real
from flatstore.memory.guarded_views import LentError
from flatstore.threads import Closing, caller

T = TypeVar("T")

_patience: ContextVar[float] = ContextVar("patience", default=0.0)


class waiting:  # noqa: N801 (used as a function)
    """A context in which this thread waits for others, up to so many seconds, where it would get a `LentError`.

    It waits to read what another thread writes, and to write what another thread reads or has lent: for instance, to
    save a store while another thread trains it. It never waits for a lend of its own, which would not end meanwhile,
    nor for a thread that waits for it: two that copy into each other's stores do so in turn, or one gets the error.

    >>> import numpy as np, flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(2)})
    >>> with fs.waiting(10.0):
    ...     vector = store.to_vector()

    Raises `ValueError` unless `seconds` is a number of 0 or more.
    """

    def __init__(self, seconds: float) -> None:
        if not real(seconds) >= 0:
            raise ValueError(f"expected seconds >= 0 to wait, got {seconds!r}; fix: pass a number such as 10.0")
        self._seconds = real(seconds)

    def __enter__(self) -> None:
        _patience.set(self._seconds)

    __exit__: Closing = Closing()

    def closing(self) -> Generator[None]:
        """When resumed, wait as long as before. Of a generator around the block an interrupt could skip the end."""
        before = _patience.get()
        try:
            yield
        finally:
            _patience.set(before)


def patience() -> float:
    """The seconds that this thread waits: what `waiting` was told, otherwise 0."""
    return _patience.get()


class BusyError(LentError):
    """Raised where it may help to wait: other threads read or write."""

    __module__, __qualname__ = "flatstore", "LentError"

    def __init__(self, message: str, threads: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.threads: set[int] = {*threads}


def persist(action: Callable[[], T], begun: Callable[[], bool] = bool) -> T:
    """Call `action`; within `waiting`, until it is not refused because of other threads, or has begun."""
    try:
        return action()
    except BusyError as error:
        if begun() or not _patience.get():
            raise LentError(*error.args) from None
        wait = _Wait(error)
    try:
        while True:
            wait.a_little()
            try:
                return action()
            except BusyError as error:
                if begun():
                    raise LentError(*error.args) from None
                wait.refused(error)
    finally:
        _waits.pop(wait.thread, None)


_waits: dict[int, _Wait] = {}


class _Wait:
    """A thread that waits for others, and tries again and again."""

    def __init__(self, error: BusyError) -> None:
        self.thread = caller()
        self.since = time.monotonic()
        self.tries, self._pause = 0, 20e-6
        self._seen: dict[int, int] = {}
        self.refused(error)

    def refused(self, error: BusyError) -> None:
        """Note why it waits on."""
        self.message, self.others = error.args[0], error.threads
        self.tries += 1
        _waits[self.thread] = self

    def a_little(self) -> None:
        """Wait a little. Raises `LentError` if the time is over, or the others wait for this thread."""
        if time.monotonic() - self.since >= _patience.get():
            raise LentError(self.message)
        circle = self._circle()
        if circle and all(wait.tries > self._seen.get(wait.thread, wait.tries) + 1 for wait in circle):
            # All of them have tried again since the circle was first seen, and it is still there.
            if all(wait.since <= self.since for wait in circle):
                raise LentError(
                    "expected to wait for threads that go on, got some that wait for this one; "
                    f"fix: read and write in the same order in all threads. {self.message}"
                )
        self._seen = {wait.thread: min(wait.tries, self._seen.get(wait.thread, wait.tries)) for wait in circle}
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, 1e-3)

    def _circle(self) -> list[_Wait]:
        """The other threads that wait for this one, and that this one waits for, directly or by way of others."""
        ahead = self._reached()
        return [wait for wait in ahead if wait is not self and self in wait._reached()] if self in ahead else []

    def _reached(self) -> list[_Wait]:
        found: dict[_Wait, None] = {}
        next_ones = [*self.others]
        while next_ones:
            wait = _waits.get(next_ones.pop())
            if wait is not None and wait not in found:
                found[wait] = None
                next_ones += wait.others
        return [*found]
