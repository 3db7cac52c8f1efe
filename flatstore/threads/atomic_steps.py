"""Steps that nothing comes between, so that who reads and who writes is noted without a lock that is held.

CPython calls signal handlers, and lets another thread go on, as a function is entered, after a call, and where a loop
jumps back. A function that only compares and stores has none of these between its first line and its last. So whatever
a handler waits for, it never waits for the code that it has interrupted.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

STEPS: list[Any] = []
"""All functions whose steps nothing comes between."""

_has_lock: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
_lock: Any = threading.RLock()  # in the place of the interpreter's, where that has none


def unparted(function: F) -> F:
    """Declare that nothing comes between the steps of a function: it calls nothing, and has no loop.

    >>> @unparted
    ... def replace(cells, old, new):
    ...     if cells[0] is not old:
    ...         return False
    ...     cells[0] = new
    ...     return True
    >>> cells = [None]
    >>> replace(cells, None, 1), replace(cells, None, 2), cells
    (True, False, [1])
    """
    STEPS.append(function)
    if _has_lock:
        return function

    @wraps(function)
    def locked(*arguments: Any) -> Any:
        with _lock:
            return function(*arguments)

    return locked  # pyright: ignore[reportReturnType]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)
