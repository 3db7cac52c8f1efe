"""Work that is done by a thread that rounds to the nearest, as all helpers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flatstore.threads.signal_safe import handed_over

T = TypeVar("T")

_ONE, _HALF = 1.0, 2.0**-53  # half of the distance to the next larger number


def rounded_to_nearest(work: Callable[[], T]) -> T:
    """Do the work in a thread that rounds to the nearest, whatever this one has been told, and return its result.

    >>> rounded_to_nearest(lambda: 0.1 + 0.2)
    0.30000000000000004
    """
    return work() if rounds_to_nearest() else handed_over(work)


def rounds_to_nearest() -> bool:
    """Whether this thread rounds to the nearest, which nearly all do.

    >>> rounds_to_nearest()
    True
    """
    return _ONE + _HALF == _ONE and _ONE - _HALF / 2 == _ONE
