"""The views that were handed out, by address: read-only while what they show is lent, and writable again afterwards.

A view is kept by its size, to a power of two, and where it starts in multiples of that:

```
address   0         64        128       192       256
64        |--a--|   |--b--|             |--c---|         a: (64, 0), b: (64, 1), c: (64, 3)
256       |----------------d---------------------|       d: (256, 0)
```

So those that overlap a range are found by a few look-ups for each size, however many there are.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from flatstore.checks import repeats
from flatstore.layout import Array
from flatstore.threads import unparted

_NEAR = 64
"""Bytes: between leaves that lie together there are fewer."""


class Watched:
    """A view that was handed out, for as long as it exists."""

    __slots__ = ("size", "start", "stop", "view")

    start: int
    stop: int

    def __init__(self, view: Array, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.size: int = (stop - start).bit_length()
        self.view: weakref.ReferenceType[Array] = weakref.ref(view)


@unparted
def _put(places: dict[int, list[Watched]], place: int, watched: Watched) -> None:
    """Keep a view at a place."""
    if place in places:
        places[place] += [watched]
    else:
        places[place] = [watched]


@unparted
def _leave(places: dict[int, list[Watched]], place: int) -> None:
    """Forget a place, if no view is there."""
    if place in places and not places[place]:
        del places[place]


@unparted
def _freeze(frozen: dict[Watched, None], watched: Watched, view: Any) -> None:
    """Make a view read-only, and note it."""
    if view.flags.writeable:
        frozen[watched] = None
        view.flags.writeable = False


@unparted
def _thaw(frozen: dict[Watched, None], watched: Watched, view: Any, owner: Any, version: Any) -> bool:
    """Make a view writable again, unless somebody has come to the region `owner` since it had this version."""
    if owner.version is not version or owner.merged is not None:
        return False
    if watched in frozen:
        view.flags.writeable = True
        del frozen[watched]
    return True


class WatchedViews:
    """The views of a memory that were handed out, and those of them that are frozen."""

    __slots__ = ("_count", "_frozen", "_prune_at", "_sizes")

    def __init__(self) -> None:
        self._sizes: dict[int, dict[int, list[Watched]]] = {}
        self._frozen: dict[Watched, None] = {}
        self._count = 0
        self._prune_at = 64

    def __len__(self) -> int:
        """How many are kept in mind; some of them may be gone."""
        return self._count

    def add(self, view: Array, start: int, stop: int) -> Watched:
        """Watch a view of the addresses start .. stop - 1."""
        watched = Watched(view, start, max(stop, start + 1))
        _put(self._sizes.setdefault(watched.size, {}), start >> watched.size, watched)
        self._count += 1
        if self._count > self._prune_at:
            self._prune()
        return watched

    def freeze_one(self, watched: Watched) -> None:
        """Make a view read-only."""
        view = watched.view()
        if view is not None:
            _freeze(self._frozen, watched, view)

    def freeze(self, start: int, stop: int) -> None:
        """Make the views read-only that overlap the addresses start .. stop - 1."""
        for watched in self._at(start, stop):
            self.freeze_one(watched)

    def thaw(self, region: Callable[[], Any], is_lent: Callable[[], bool]) -> None:
        """Make the frozen views writable again, as long as nothing `is_lent`."""
        while self._frozen:
            owner = region()
            version = owner.version
            if is_lent():
                return
            for watched in [*self._frozen]:
                view = watched.view()
                try:
                    if view is None:
                        self._frozen.pop(watched, None)
                    elif not _thaw(self._frozen, watched, view, owner, version):
                        break
                except ValueError:  # the owner of wrapped memory has made it read-only meanwhile
                    if not repeats(partial(_thaw, self._frozen, watched, view, owner, version)):
                        raise
                    self._frozen.pop(watched, None)

    def _at(self, start: int, stop: int) -> Iterator[Watched]:
        for size, places in [*self._sizes.items()]:
            first, last = (start >> size) - 1, (stop - 1) >> size
            near = range(first, last + 1) if last - first < len(places) else [*places]
            for place in near:
                for watched in [*places.get(place, ())]:
                    if watched.start < stop and start < watched.stop:
                        yield watched

    def _prune(self) -> None:
        """Forget views that are gone."""
        kept = 0
        for watched in [x for places in [*self._sizes.values()] for place in [*places.values()] for x in [*place]]:
            if watched.view() is None:
                self._frozen.pop(watched, None)
                places, place = self._sizes[watched.size], watched.start >> watched.size
                with contextlib.suppress(KeyError, ValueError):  # another thread has
                    places[place].remove(watched)
                _leave(places, place)
            else:
                kept += 1
        self._count, self._prune_at = kept, 2 * kept + 64


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of addresses, with those that are next to each other as one.

    >>> joined([(128, 192), (0, 100), (500, 600)])
    [(0, 192), (500, 600)]
    """
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start - found[-1][1] < _NEAR:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
