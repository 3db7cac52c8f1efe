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

There is no lock. What is to be changed is read and thought over at leisure, and changed by one step that does nothing
if something else has been changed meanwhile; then it is thought over again.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from typing import Any, Protocol

from flatstore.threads import unparted

READS, LENDS, WRITES = range(3)
"""What a user of a memory does with it."""


class Span(Protocol):
    """A range of addresses: [start, stop)."""

    start: int
    stop: int


class Member(Span, Protocol):
    """A memory, which knows its region, and by a weak reference the segment that it is the whole of, if it is."""

    region: Region
    segment: Any


def overlap(a: Span, b: Span) -> bool:
    """Whether two ranges of addresses share a byte."""
    return a.start < b.stop and b.start < a.stop


class Region:
    """Memories that share addresses, and their users."""

    __slots__ = ("_prune_at", "_refs", "merged", "segment", "start", "stop", "users", "version")

    def __init__(self, parts: tuple[Region, ...] = (), memory: Member | None = None) -> None:
        spans: list[Any] = [part for part in (*parts, memory) if part is not None]
        self.start: int = min(span.start for span in spans)
        self.stop: int = max(span.stop for span in spans)
        self.segment: Any = next((span.segment for span in spans if span.segment is not None), None)
        """A weak reference to the segment that all of its memories are parts of, if they are."""
        self.users: tuple[dict[Any, None], ...] = tuple(
            {user: None for part in parts for user in [*part.users[kind]]} for kind in (READS, LENDS, WRITES)
        )
        """Who uses the memories, by what they do."""
        self.version: Any = object()
        """Another object whenever a user has come."""
        self.merged: Region | None = None
        """The region that this one has become a part of."""
        self._refs: list[Any] = [weakref.ref(member) for part in parts for member in part.members()]
        self._prune_at = 0
        if memory is not None:
            self.add(memory)

    def add(self, memory: Member) -> None:
        """Note a memory whose addresses are all in the region."""
        self._refs.append(weakref.ref(memory))
        self.version = object()
        if len(self._refs) >= self._prune_at:
            for ref in [ref for ref in [*self._refs] if ref() is None]:
                self._refs.remove(ref)
            self._prune_at = 2 * len(self._refs) + 8

    def members(self) -> list[Any]:
        """The memories that still exist."""
        return [memory for ref in [*self._refs] if (memory := ref()) is not None]

    def covers(self, span: Span) -> bool:
        """Whether all addresses of a span lie in the region."""
        return self.start <= span.start and span.stop <= self.stop


def region_of(memory: Member) -> Region:
    """The region of a memory, as it is now."""
    region = memory.region
    return region if region.merged is None else _whole(region)


@unparted
def enter(region: Region, version: Any, kind: int, user: Any, token: Any) -> bool:
    """Note a user, unless somebody else has come since the region had this version. `token` becomes the next one."""
    if region.version is not version or region.merged is not None:
        return False
    region.users[kind][user] = None
    region.version = token
    return True


@unparted
def _merge(a: Region, version_a: Any, b: Region, version_b: Any, whole: Region) -> bool:
    """Make two regions parts of another one, unless somebody has come to them since they had these versions."""
    if a.version is not version_a or b.version is not version_b or a.merged is not None or b.merged is not None:
        return False
    a.merged = b.merged = whole
    return True


lends: dict[Any, None] = {}
"""Who lends any memory of the process, or has lent it."""

_regions: list[Region] = []  # ascending; some are parts of others by now, or have no memory any more
_starts: list[int] = []  # of these regions
_version: Any = object()  # another one whenever the list has changed
_prune_at = 64


@unparted
def _replace(version: Any, place: slice, regions: list[Region], starts: list[int], token: Any) -> bool:
    """Put regions in the place of others, unless the list has changed since it had this version."""
    global _version
    if _version is not version:
        return False
    _version = token
    _regions[place] = regions
    _starts[place] = starts
    return True


def _find(start: int, stop: int) -> tuple[Any, slice, list[Region]]:
    """The regions that have addresses of start .. stop - 1: (the version of the list, where in it, what they are)."""
    while True:
        version = _version
        try:
            first = bisect_right(_starts, start)
            if first and _regions[first - 1].stop > start:
                first -= 1
            last = first
            while last < len(_starts) and _starts[last] < stop:
                last += 1
            found = _regions[first:last]
        except IndexError:  # it has become shorter meanwhile
            continue
        if _version is version:
            return version, slice(first, last), found


def _whole(region: Region) -> Region:
    """What a region has become a part of, or itself."""
    while region.merged is not None:
        region = region.merged
    return region


def members_at(start: int, stop: int) -> list[Any]:
    """The memories that have addresses of start .. stop - 1."""
    regions = dict.fromkeys([_whole(region) for region in _find(start, stop)[2]])
    members = [member for region in regions for member in region.members()]
    return [member for member in members if member.start < stop and start < member.stop]


def join(memory: Member) -> None:
    """Find the region of a memory, or make one."""
    global _prune_at
    own = memory.region = Region((), memory)
    while True:
        whole = _whole(own)
        version, place, found = _find(whole.start, whole.stop)
        touched = dict.fromkeys([_whole(region) for region in found])
        members = {region: region.members() for region in touched}  # held, so that none is gone meanwhile
        alive = [region for region in touched if members[region] and region is not whole]
        if whole is own and len(alive) == 1 == len(touched) and alive[0].covers(memory):
            memory.region = alive[0]
            alive[0].add(memory)
            if alive[0].merged is None:
                return
            continue
        if alive:
            _unite([*alive, own])
        elif _replace(version, place, [whole], [whole.start], object()):
            break
    if len(_regions) >= _prune_at:
        version, wholes = _version, dict.fromkeys([_whole(region) for region in [*_regions]])
        kept = [region for region in wholes if region.members()]
        if _replace(version, slice(None), kept, [region.start for region in kept], object()):
            _prune_at = 2 * len(kept) + 64


def _unite(regions: list[Region]) -> None:
    """Make regions one: neighbours first, so that each memory is noted anew only as often as their number doubles."""
    while len(regions) > 1:
        for a, b in zip(regions[::2], regions[1::2], strict=False):
            while (one := _whole(a)) is not (other := _whole(b)):
                versions = one.version, other.version
                _merge(one, versions[0], other, versions[1], Region((one, other)))
        regions = regions[::2]


def _after_fork() -> None:
    """Forget, in a child process, who reads and writes in its parent."""
    lends.clear()
    for memory in [memory for region in map(_whole, _regions) for memory in region.members()]:
        for users in region_of(memory).users:
            users.clear()
        memory.thaw()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
