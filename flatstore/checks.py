"""Numbers that a caller passes, as Python's own. A truth value is not a number here, and neither is a text.

What is not a number becomes NaN, which lies in no range. So one comparison refuses it together with all numbers that
are out of range:

    >>> 0 < real(0.5) <= 1, 0 < real("0.5") <= 1, whole(3) >= 1, whole(True) >= 1
    (True, False, True, False)
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_MISLEADING = re.compile(r"bool|complex|object|String|[SUV]\d")
"""Names of dtypes whose values are not numbers, or may be none."""


def real(value: Any) -> float:
    """A real number of any type as a float; NaN for anything else, and for a number that is too large for a float."""
    if _is_misleading(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        if not repeats(lambda: float(value)):
            raise
        return math.nan


def whole(value: Any) -> int | float:
    """An integer of any type as one of Python's; NaN for anything else, such as 3.0."""
    if _is_misleading(value):
        return math.nan
    try:
        return operator.index(value)
    except TypeError:
        if not repeats(lambda: operator.index(value)):
            raise
        return math.nan


def _is_misleading(value: Any) -> bool:
    """Whether a value is not a number, or not one alone, although Python may convert it to one."""
    if isinstance(value, (bool, np.ma.MaskedArray)) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        return True  # as of a text, whatever holds it
    dtype = str(getattr(value, "dtype", ""))
    return getattr(value, "ndim", 0) != 0 or _MISLEADING.search(dtype) is not None


def raise_unless_of_system(error: OSError) -> None:
    """Raise an error again that no call of the system has raised, but a signal handler, such as a `TimeoutError`."""
    if error.errno is None:
        raise error


def repeats(call: Callable[[], object]) -> bool:
    """Whether a call that raised does so again: otherwise it was a signal handler, called meanwhile, that raised."""
    try:
        call()
    except Exception:
        return True
    return False
