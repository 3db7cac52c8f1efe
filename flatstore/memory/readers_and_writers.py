"""Many readers or one writer (law 7), and who waits for whom: nobody, unless it is told to.

An *access* reads, lends or writes memories, from its begin to its end. The second to come gets a `LentError`:

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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flatstore.memory.guarded_views import LentError
from flatstore.memory.holds import Hold, Segment
from flatstore.memory.host import Memory
from flatstore.memory.overlaps import LENDS, READS, WRITES, Region, enter, overlap, region_of
from flatstore.memory.overlaps import lends as lends_of_all
from flatstore.memory.waits import BusyError, persist
from flatstore.threads import caller
from flatstore.trees import StructureError, first_of

MOVED = "elsewhere than where the store was made"
"""What is said of leaves whose owner has moved them."""


class Access:
    """What reads, lends and writes memories, each as a `Use` of it, all of them at once."""

    __slots__ = ("__weakref__", "_memories", "beside", "holds", "over", "uses")
    uses: list[Use]

    def __init__(
        self,
        *,
        reads: Sequence[Memory] = (),
        lends: Sequence[Memory] = (),
        writes: Sequence[Memory] = (),
        beside: Access | None = None,
        runner: int | None = None,
    ) -> None:
        self.over = True
        """Whether it has ended, or not begun. To end it is one step: those who find it so remove its uses."""
        self.beside: Access | None = beside
        """Another access of the same work: it may write what that one reads."""
        self.holds: list[Hold] = []
        """The locks of the segments among the memories: other processes know of it by these."""
        threads = threading.get_ident() if runner is None else runner, caller()
        ref = weakref.ref(self)
        self._memories = *reads, *lends, *writes  # their addresses must not become another's while they are used
        self.uses = [Use(ref, part, READS, *threads) for memory in reads for part in memory.parts] if reads else []
        if lends:
            self.uses += [Use(ref, part, LENDS, *threads) for memory in lends for part in memory.parts]
        if writes:
            for part in (part for memory in writes for part in memory.parts):
                _refuse_read_only(part)
            self.uses += [Use(ref, part, WRITES, *threads) for memory in writes for part in memory.parts]

    def begin(self) -> None:
        """Begin all uses, or none. Raises `LentError` if others are in the way."""
        persist(self._begin)

    def _begin(self) -> None:
        for memory in self._memories:  # each time: it may have moved as this one waited
            if moved := memory.moved():
                raise StructureError(moved, MOVED)
        self.over = False
        try:
            for use in self.uses:
                use.begin()
                segment = region_of(use).segment
                if segment is not None and (there := segment()) is not None:
                    self._hold(there, use)
        except BaseException:
            self.over = True
            self.forget()
            raise

    def _hold(self, segment: Segment, use: Use) -> None:
        """Lock a segment as a use needs it, unless this process has locked it so. Raises `BusyError`."""
        of_beside = self.beside.holds if self.beside else []
        own = next((hold for hold in reversed([*of_beside, *self.holds]) if hold.segment is segment), None)
        writes = use.kind == WRITES
        if own.writes or not writes if own else use.is_within_a_writer():
            return
        try:
            self.holds.append(Hold(segment, writes=writes, base=own))
        except BlockingIOError:
            if writes:
                message = (
                    "expected a buffer that nobody reads, got one that another process reads; "
                    "fix: write it afterwards, or wait: with fs.waiting(seconds)"
                )
            else:
                message = (
                    "expected a buffer at rest, got one that another process writes; "
                    "fix: read it afterwards, or wait: with fs.waiting(seconds)"
                )
            raise BusyError(message) from None

    def note(self, exports: Iterable[tuple[int, str, Callable[[], object]]]) -> None:
        """Note exports, (address, path, what tells whether it is held), each with the use of the memory it is from."""
        starts = [use.start for use in self.uses]
        noted: list[list[tuple[str, Callable[[], object]]]] = [[] for _ in starts]
        for address, path, view in exports:
            noted[bisect_right(starts, address) - 1].append((path, view))
        for use, those in zip(self.uses, noted, strict=True):
            use.exports = those

    def end(self) -> None:
        """End all uses: the lent as soon as nobody holds what was exported."""
        self.over: bool = True
        self.forget()

    def forget(self) -> None:
        """Remove the uses that are over, and the locks, unless exports are still held."""
        try:
            if self.holds and not _held(self):
                for hold in reversed(self.holds):  # the base of another one after it
                    hold.release()
            for use in self.uses:
                if use.is_over():
                    use.leave()
        except MemoryError as error:  # what was done in between must not seem to have failed; others remove the rest
            if error.args:  # a signal handler's: the interpreter's own says nothing
                raise


class Use:
    """One memory that an access reads, lends or writes, until the access is over, or gone, and nobody holds exports.

    An export is a view that another library has imported: it stays alive as long as that library holds it. So weak
    references tell whether it is still read.
    """

    __slots__ = ("_access", "_lent", "caller", "exports", "kind", "region", "runner", "segment", "start", "stop")

    def __init__(self, access: Callable[[], Any], memory: Memory, kind: int, runner: int, caller: int) -> None:
        self._access: Callable[[], Access | None] = access
        self.start: int = memory.start
        self.stop: int = memory.stop
        self.region: Region = memory.region
        self.segment: Any = memory.segment
        # What is lent is kept until all exports are gone. Else one that is over would keep it until others come.
        self._lent = memory if kind == LENDS else None
        self.kind: int = kind
        self.runner: int = runner
        self.caller: int = caller
        self.exports: list[tuple[str, Callable[[], object]]] = []

    def begin(self) -> None:
        """Enter the region of the memory. Raises `LentError` if others there are in the way."""
        kind, token = self.kind, object()
        while True:
            region = region_of(self)
            version = region.version
            readers, lends, writers = users = region.users
            if kind == WRITES:
                if readers or lends or writers:
                    self._refuse_readers_and_writers(users)
            elif writers:
                self._refuse_writers(users)
            if enter(region, version, kind, self, token):
                if kind == LENDS:
                    lends_of_all[self] = None
                return

    def leave(self) -> None:
        """Leave the region, and make views writable that are no longer lent."""
        region = region_of(self)
        if self.kind == LENDS:
            lends_of_all.pop(self, None)
            for member in region.members():
                member.thaw()
        region.users[self.kind].pop(self, None)

    def unreleased(self) -> list[str]:
        """The paths of the exports that are still held."""
        return [path for path, view in self.exports if view() is not None]

    def is_over(self) -> bool:
        """Whether nobody uses the memory by this any more."""
        access = self._access()
        return (access is None or access.over) and not (self.exports and self.unreleased())

    def _others(self, users: Iterable[Use]) -> list[Use]:
        """Those of the users that share addresses with this one. Who is over is removed."""
        found: list[Use] = []
        for use in [*users]:
            if use.is_over():
                use.leave()
            elif overlap(use, self):
                found.append(use)
        return found

    def is_within_a_writer(self) -> bool:
        """Whether this process writes the memory already: then it is by the same thread, of which this is a part."""
        own = self._access()
        writers = self._others(region_of(self).users[WRITES])
        return any(use is not self and use._access() is not own for use in writers)

    def _refuse_writers(self, users: Sequence[dict[Use, None]]) -> None:
        writers = self._others(users[WRITES])
        if writers and (self.kind == LENDS or any(use.runner != self.runner for use in writers)):
            message = (
                "expected a buffer at rest, got one that is being written; "
                "fix: read it afterwards, or wait for another thread: with fs.waiting(seconds)"
            )
            if any(use.runner == self.runner for use in writers):
                raise LentError(message)
            raise BusyError(message, [use.caller for use in writers])

    def _refuse_readers_and_writers(self, users: Sequence[dict[Use, None]]) -> None:
        access = self._access()
        own = (access, access.beside) if access else ()
        if writers := [use for use in self._others(users[WRITES]) if use.runner not in (self.caller, self.runner)]:
            raise BusyError(
                "expected a buffer at rest, got one that another thread writes; "
                "fix: let one thread write at a time, or wait: with fs.waiting(seconds)",
                [use.caller for use in writers],
            )
        lends = self._others(users[LENDS])
        readers = [use for use in self._others(users[READS]) if use._access() not in own]
        if not lends and not readers:
            return
        if lends:
            held = sorted({path for lend in lends for path in lend.unreleased()})
            leaves = f", of {first_of(held)}" if held else ""  # a lend that has begun, or of whole trees, names none
            message = (
                f"expected a buffer that nobody reads, got one that is lent: {len(lends)} lend(s){leaves}; "
                "fix: leave the `with` block of the lend first, and drop NumPy or torch views taken in it"
            )
        else:
            message = (
                "expected a buffer that nobody reads, got one that another thread copies or saves; "
                "fix: write it afterwards, or wait: with fs.waiting(seconds)"
            )
        # What this thread has lent, or reads, does not end while it waits; but a computation that was begun may.
        if any(use.runner == self.caller and not use.has_ended() for use in (*lends, *readers)):
            raise LentError(message)
        raise BusyError(message, [use.caller for use in (*lends, *readers)])

    def has_ended(self) -> bool:
        """Whether the access is over, though exports may still be held."""
        access = self._access()
        return access is None or access.over


def _refuse_read_only(memory: Memory) -> None:
    """Raise `ValueError` for memory that verbs must not write."""
    segment = region_of(memory).segment
    there: Segment | None = segment and segment()
    if there is not None and not there.is_own:
        raise ValueError(
            f"expected memory that may be written, got the segment {there.name!r} of another process; "
            "fix: write it in the process that shared it, or copy()"
        )
    if memory.is_read_only:
        raise ValueError(
            "expected memory that may be written, got that of a file opened with mode='r'; fix: open it "
            "with mode='r+' to write the file, with 'c' to keep what is written to yourself, or copy()"
        )


def released(access: Access, patience: float) -> list[str]:
    """Wait up to `patience` seconds for the exports of an access that is over: the paths of those still held."""
    started = time.monotonic()
    pause, collected = 20e-6, False
    while (held := _held(access)) and (waited := time.monotonic() - started) < patience:
        if waited > 0.25 and not collected:
            gc.collect()  # a view in a reference cycle is freed only by the collector
            collected = True
        time.sleep(min(pause, patience))
        pause = min(2 * pause, 1e-3)
    if held and not collected:
        gc.collect()
    access.forget()
    return _held(access)


def _held(access: Access) -> list[str]:
    return [path for use in access.uses for path in use.unreleased()]


def settle(memory: Memory) -> None:
    """Make views writable that are no longer lent, since the last export is gone."""
    for use in [*memory.lends]:
        if use.is_over():
            use.leave()
