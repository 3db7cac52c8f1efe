"""Work that is done by a thread that rounds to the nearest, small numbers too, as all helpers do.

Others may have been told to round upward, or to take numbers near zero for zero (`torch.set_flush_denormal`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from flatstore.threads.signal_safe import handed_over

P = ParamSpec("P")
T = TypeVar("T")

_ONE, _HALF = 1.0, 2.0**-53  # half of the distance to the next larger number
_LEAST: float = struct.unpack("d", (1).to_bytes(8, sys.byteorder))[0]  # a thread may take the literal for zero


def rounded_to_nearest(function: Callable[P, T]) -> Callable[P, T]:
    """Have a function done by a thread that rounds to the nearest, whatever the one that calls it has been told.

    >>> @rounded_to_nearest
    ... def total(a, b):
    ...     return a + b
    >>> total(0.1, 0.2)
    0.30000000000000004
    """

    @wraps(function)
    def rounded(*arguments: P.args, **keywords: P.kwargs) -> T:
        if rounds_to_nearest():
            return function(*arguments, **keywords)
        return handed_over(lambda: function(*arguments, **keywords))

    return rounded


def rounds_to_nearest() -> bool:
    """Whether this thread rounds to the nearest, which nearly all do.

    >>> rounds_to_nearest()
    True
    """
    return _ONE + _HALF == _ONE and _ONE - _HALF / 2 == _ONE and _LEAST + _LEAST != 0
