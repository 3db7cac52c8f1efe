"""Many readers or one writer (law 7), and who waits for whom: nobody, unless it is told to.

A *lease* says that somebody reads a memory, a *claim* that somebody writes it. The second to come gets a `LentError`:

```
              reads it             writes it
to read       together             LentError
to write      LentError            LentError
```

Waiting would hide an order of events that the program must decide anyway; a program that has decided says so by
`waiting`.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from flatstore.layout import Array
from flatstore.memory.guarded import LentError
from flatstore.memory.host import Memory
from flatstore.memory.regions import overlap
from flatstore.threads import guard
from flatstore.trees import first_of

T = TypeVar("T")

_patience: ContextVar[float] = ContextVar("patience", default=0.0)


@contextmanager
def waiting(seconds: float) -> Generator[None]:
    """A context in which this thread waits for others, up to so many seconds, where it would get a `LentError`.

    It waits to read what another thread writes, and to write what another thread reads or has lent: for instance, to
    save a store while another thread trains it. It never waits for a lend of its own, which would not end meanwhile.

    >>> import numpy as np, flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(2)})
    >>> with fs.waiting(10.0):
    ...     vector = store.to_vector()

    Raises `ValueError` unless `seconds` is a number of 0 or more.
    """
    if not isinstance(seconds, (int, float)) or not seconds >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"expected seconds >= 0 to wait, got {seconds!r}; fix: pass a number such as 10.0")
    token = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(token)


def patience() -> float:
    """The seconds that this thread waits: what `waiting` was told, otherwise 0."""
    return _patience.get()


class _BusyError(LentError):
    """Raised where it may help to wait: another thread reads or writes."""

    __module__, __qualname__ = "flatstore", "LentError"


class Lease:
    """One reader of a memory: it reads until it ends, or what holds it is gone, and nobody holds its exports.

    An export is a view that another library has imported: it stays alive as long as that library holds it. So weak
    references tell whether it is still read.
    """

    def __init__(self, memory: Memory, holder: Any, *, lends: bool) -> None:
        self.memory = memory  # kept alive: its addresses must not become another's while they are read
        self.start, self.stop = memory.start, memory.stop
        self.lends = lends
        """Whether views are read-only meanwhile: what is lent must not change, what is copied may be read beside."""
        self.thread = threading.get_ident()
        self._holder: Callable[[], Any] = weakref.ref(holder)
        self._exports: list[tuple[str, weakref.ref[Array]]] = []

    def begin(self) -> None:
        """Begin to read, and refuse writers. Raises `LentError` if there is one."""
        persist(self._begin)

    def _begin(self) -> None:
        with guard():
            settle(self.memory)
            region = self.memory.region
            claims = [claim for claim in [*region.writers] if overlap(claim, self)]
            if any(self.lends or claim.thread != self.thread for claim in claims):
                kind = LentError if any(claim.thread == self.thread for claim in claims) else _BusyError
                raise kind(
                    "expected a buffer at rest, got one that is being written; "
                    "fix: read it afterwards, or wait for another thread: with fs.waiting(seconds)"
                )
            region.leases.add(self)
            if self.lends:
                for other in region.members():
                    if overlap(other, self):
                        other.freeze()

    def watch(self, exports: Iterable[tuple[str, Array]]) -> None:
        """Count the views of these (path, view) pairs as read for as long as they are alive."""
        self._exports += [(path, weakref.ref(view)) for path, view in exports]

    def unreleased(self) -> list[str]:
        """The paths of the views that are still held."""
        return [path for path, view in self._exports if view() is not None]

    def is_over(self) -> bool:
        """Whether nobody reads by this lease any more."""
        return self._holder() is None and not self.unreleased()

    def may_end(self, thread: int) -> bool:
        """Whether the lease can end while this thread waits: it is another's, or a computation is still to finish."""
        return self.thread != thread or self._holder() is None

    def end(self) -> None:
        """Stop reading: the lease is over as soon as nobody holds its exports."""
        self._holder = _nobody
        settle(self.memory)

    def released(self, patience: float) -> list[str]:
        """Wait up to `patience` seconds for the exports, after the end, and return the paths still held."""
        started = time.monotonic()
        pause, collected = 20e-6, False
        while (held := self.unreleased()) and (waited := time.monotonic() - started) < patience:
            if waited > 0.25 and not collected:
                gc.collect()  # a view in a reference cycle is freed only by the collector
                collected = True
            time.sleep(min(pause, patience))
            pause = min(2 * pause, 1e-3)
        if held and not collected:
            gc.collect()
        settle(self.memory)
        return self.unreleased()


def _nobody() -> None:
    """What a weak reference returns when its object is gone."""


class Claim:
    """The writer of a memory: a thread, until it ends the claim, or what holds it is gone."""

    def __init__(self, memory: Memory, holder: Any) -> None:
        self.memory = memory
        self.start, self.stop = memory.start, memory.stop
        self.thread = threading.get_ident()
        self._holder: Callable[[], Any] = weakref.ref(holder)

    def begin(self, caller: int, own: Sequence[Lease] = ()) -> None:
        """Begin to write, for the thread `caller` (under the lock). Raises `LentError` if others read or write.

        `own` are leases of the work itself: it may write what it reads.
        """
        settle(self.memory)
        _refuse_busy(self.memory, self.thread, caller, own)
        self.memory.region.writers.add(self)

    def is_over(self) -> bool:
        """Whether nobody writes by this claim any more."""
        return self._holder() is None

    def end(self) -> None:
        """Stop writing."""
        self._holder = _nobody
        settle(self.memory)


def settle(memory: Memory) -> None:
    """Forget who has ended to read or write in a memory's region, and make views writable that are no longer lent."""
    with guard():
        region = memory.region
        region.writers.difference_update([claim for claim in [*region.writers] if claim.is_over()])
        if over := [lease for lease in [*region.leases] if lease.is_over()]:
            region.leases.difference_update(over)
            for member in region.members():
                if not is_lent(member):
                    member.thaw()


def is_lent(memory: Memory) -> bool:
    """Whether the memory is lent now, wholly or in part, so that its views must not be written."""
    return any(lease.lends and overlap(lease, memory) for lease in [*memory.region.leases])


def _refuse_busy(memory: Memory, runner: int, caller: int, own: Sequence[Lease]) -> None:
    """Raise `LentError` if anybody else reads or writes the memory."""
    if any(overlap(claim, memory) and claim.thread not in (caller, runner) for claim in [*memory.region.writers]):
        raise _BusyError(
            "expected a buffer at rest, got one that another thread writes; "
            "fix: let one thread write at a time, or wait: with fs.waiting(seconds)"
        )
    leases = [lease for lease in [*memory.region.leases] if overlap(lease, memory) and lease not in own]
    kind = _BusyError if all(lease.may_end(caller) for lease in leases) else LentError
    if lends := [lease for lease in leases if lease.lends]:
        held = sorted({path for lease in lends for path in lease.unreleased()})
        raise kind(
            f"expected a buffer that nobody reads, got one that is lent: {len(lends)} lend(s), of "
            f"{first_of(held) or 'no leaf yet'}; "
            "fix: leave the `with` block of the lend first, and drop NumPy or torch views taken in it"
        )
    if leases:
        raise kind(
            "expected a buffer that nobody reads, got one that another thread copies or saves; "
            "fix: write it afterwards, or wait: with fs.waiting(seconds)"
        )


def persist(action: Callable[[], T], begun: Callable[[], bool] = bool) -> T:
    """Call `action`; within `waiting`, until it is not refused because of another thread, or has begun."""
    deadline, pause = time.monotonic() + _patience.get(), 20e-6
    while True:
        try:
            return action()
        except _BusyError as error:
            if begun() or time.monotonic() >= deadline:
                raise LentError(*error.args) from None
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
