"""One generation whose members are evaluated elsewhere: who waits, and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flatstore.layout import Array


@dataclass
class Counts:
    """What has become of a run's workers and results, so far."""

    workers: int = 0
    """Workers that are there."""
    waiting: int = 0
    """Members of the generation that no worker has yet."""
    lost: int = 0
    """Members that went back into the queue since their worker had died, or was stopped."""
    late: int = 0
    """Results that came when their generation was closed, and were dropped."""
    doubled: int = 0
    """Results that had come before, and were dropped."""
    missing: int = 0
    """Members that were not waited for."""
    deaths: int = 0
    """Workers that have died."""
    stopped: list[str] = field(default_factory=list[str])
    """Workers that were stopped since their centre had other bits, by name, and since when."""


class Tally:
    """The queue and the fitness of generation `number`. What comes is kept by member, once.

    >>> counts = Counts()
    >>> tally = Tally(7, 4, counts)
    >>> tally.next(2), tally.next(9)
    (range(0, 2), range(2, 4))
    >>> tally.take(7, [2, 3], np.array([0.5, 0.25]))
    >>> tally.put_back([0, 1])                              # their worker has died
    >>> tally.next(2), tally.is_enough(0.5), counts.lost    # member 0 waits for a worker
    ([1], False, 2)
    >>> tally.take(7, [2], np.array([0.5])), tally.take(6, [1], np.array([1.0])), counts.doubled, counts.late
    (None, None, 1, 1)
    """

    number: int
    counts: Counts

    def __init__(self, number: int, members: int, counts: Counts) -> None:
        self.number, self.counts = number, counts
        counts.waiting = members
        self.fitness: Array = np.full(members, np.nan)
        self.has_come: Array = np.zeros(members, bool)
        self._queue = range(members)
        self._again: list[int] = []

    def next(self, most: int) -> Sequence[int]:
        """The members that a free worker is handed, up to so many. Those whose worker has died come one by one."""
        members: Sequence[int]
        if self._again:
            members = [self._again.pop()]
        else:
            members, self._queue = self._queue[:most], self._queue[most:]
        self.counts.waiting -= len(members)
        return members

    def put_back(self, members: Sequence[int]) -> None:
        """Hand these out again, before others: their worker will not answer."""
        again = [i for i in members if not self.has_come[i]]
        self._again += again
        self.counts.waiting += len(again)
        self.counts.lost += len(again)

    def take(self, number: int, members: Sequence[int], fitness: Array) -> None:
        """Keep what came for members of a generation. What is late, or was there, is counted and dropped."""
        if number != self.number:
            self.counts.late += len(members)
            return
        for i, value in zip(members, fitness.tolist(), strict=True):
            self.counts.doubled += bool(self.has_come[i])
            if not self.has_come[i]:
                self.fitness[i], self.has_come[i] = value, True

    def is_enough(self, fraction: float) -> bool:
        """Whether all are handed out, and this share of them has come."""
        return not self.counts.waiting and int(self.has_come.sum()) >= math.ceil(fraction * len(self.has_come))
