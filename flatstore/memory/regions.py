"""Which memories share addresses, and who reads and writes there.

Readers and writers are counted by address, not by object, so that two stores over one buffer, or over parts of it that
overlap, know of each other. Memories that overlap, directly or by way of others, are one *region*:

```
address   a                           b                     c           d
          |---- a Memory -------------|                     |-- another |
                 |-- one inside of it ------|
region    |---------------------------------|               |-----------|
```

Regions do not overlap, so that one is found by its first address, however many stores there are.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from typing import Any, Protocol


class Span(Protocol):
    """A range of addresses: [start, stop)."""

    start: int
    stop: int


class Member(Span, Protocol):
    """A memory, which knows its region."""

    region: Region


def overlap(a: Span, b: Span) -> bool:
    """Whether two ranges of addresses share a byte."""
    return a.start < b.stop and b.start < a.stop


class Region:
    """Memories that share addresses, their readers and their writers.

    The sets are changed by one call of C at a time: no handler that is called meanwhile loses what another has noted.
    """

    __slots__ = ("_prune_at", "_refs", "leases", "start", "stop", "writers")

    def __init__(self, memory: Member, merged: list[Region]) -> None:
        self.start = min(memory.start, *(region.start for region in merged)) if merged else memory.start
        self.stop = max(memory.stop, *(region.stop for region in merged)) if merged else memory.stop
        self.leases: set[Any] = {lease for region in merged for lease in region.leases}
        self.writers: set[Any] = {claim for region in merged for claim in region.writers}
        self._refs = [weakref.ref(member) for region in merged for member in region.members()]
        self._prune_at = 0
        self.add(memory)

    def add(self, memory: Member) -> None:
        """Note a memory whose addresses are all in the region."""
        if len(self._refs) >= self._prune_at:
            self._refs = [ref for ref in self._refs if ref() is not None]
            self._prune_at = 2 * len(self._refs) + 8
        self._refs.append(weakref.ref(memory))

    def members(self) -> list[Any]:
        """The memories that still exist."""
        return [memory for ref in self._refs if (memory := ref()) is not None]

    def covers(self, span: Span) -> bool:
        """Whether all addresses of a span lie in the region."""
        return self.start <= span.start and span.stop <= self.stop


_regions: list[Region] = []  # ascending; some have no memory any more
_prune_at = 64


def find(start: int, stop: int) -> slice:
    """Where in `_regions` those are that have addresses of start .. stop - 1 (under the lock)."""
    first = bisect_right(_regions, start, key=lambda region: region.start)
    if first and _regions[first - 1].stop > start:
        first -= 1
    last = first
    while last < len(_regions) and _regions[last].start < stop:
        last += 1
    return slice(first, last)


def members_at(start: int, stop: int) -> list[Any]:
    """The memories that have addresses of start .. stop - 1 (under the lock)."""
    members = [member for region in _regions[find(start, stop)] for member in region.members()]
    return [member for member in members if member.start < stop and start < member.stop]


def join(memory: Member) -> None:
    """Find the region of a memory, or make one (under the lock)."""
    global _prune_at
    if len(_regions) >= _prune_at:
        _regions[:] = [region for region in _regions if region.members()]
        _prune_at = 2 * len(_regions) + 64
    place = find(memory.start, memory.stop)
    touched = _regions[place]
    alive = [region for region in touched if region.members()]
    if len(alive) == 1 == len(touched) and alive[0].covers(memory):
        memory.region = alive[0]
        alive[0].add(memory)
        return
    whole = Region(memory, alive)
    for member in whole.members():
        member.region = whole
    _regions[place] = [whole]


def _after_fork() -> None:
    """Forget, in a child process, who reads and writes in its parent."""
    for memory in [memory for region in _regions for memory in region.members()]:
        memory.region.leases.clear()
        memory.region.writers.clear()
        memory.thaw()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
