"""Loops over all of their ranges in one call of C, that finish or take back what they did.

Between two bytecodes other threads run, and signal handlers, which may raise. In a call of C none does. So small work
is done by one call, by the thread that asks for it, and needs no other thread that cannot be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.layout import Array

STOPPED, BY, NOTE = range(3)
"""What an outcome tells: the index at which a loop stopped, or -1; the number of that loop; room for a loop's note."""


NOWHERE = np.zeros((0, 2), np.int64)
"""No ranges."""


def over_ranges(loop: Any, ranges: Array, arguments: tuple[Any, ...]) -> Callable[[], object]:
    """A function of C that calls a compiled `loop(begin, end, *arguments)` for each of some ranges, shape (n, 2)."""
    run = _runner(loop)
    if not run.overloads:  # compiled before others wait for it
        run(NOWHERE, arguments)
    return partial(run, ranges, arguments)


@cache
def _runner(loop: Any) -> Any:
    @compiled
    def run(ranges: Any, arguments: Any) -> None:
        for i in range(ranges.shape[0]):
            loop(ranges[i, 0], ranges[i, 1], *arguments)

    return run


@cache
def all_or_nothing(loop: Any) -> tuple[Any, Any]:
    """Two compiled functions, to run a loop over ranges, and to take that back if another loop stops afterwards.

    The loop is called as `loop(begin, end, *forth)`, and `loop(begin, end, *back)` takes that back. It notes in
    `outcome[NOTE]` where it came to. Both do nothing unless it is their turn, by the outcome of those before.
    """

    @compiled
    def run(number: int, ranges: Any, forth: Any, back: Any, outcome: Any) -> None:
        if outcome[STOPPED] >= 0:
            return
        for i in range(ranges.shape[0]):
            loop(ranges[i, 0], ranges[i, 1], *forth)
            if outcome[NOTE] < ranges[i, 1]:
                reached = outcome[NOTE]
                for before in range(i):
                    loop(ranges[before, 0], ranges[before, 1], *back)
                loop(ranges[i, 0], reached, *back)
                outcome[STOPPED], outcome[BY] = reached, number
                return

    @compiled
    def take_back(number: int, ranges: Any, back: Any, outcome: Any) -> None:
        if outcome[STOPPED] >= 0 and number < outcome[BY]:
            for i in range(ranges.shape[0]):
                loop(ranges[i, 0], ranges[i, 1], *back)

    return run, take_back
