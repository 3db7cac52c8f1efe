"""The one lock of the package: held for a few statements, to note who reads and who writes which memory.

It is free in a child process, whoever held it in the parent. And nobody waits for it while the interpreter ends: the
other threads have stopped by then, and one of them may have been holding it.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import AbstractContextManager
from typing import Any

_lock: Any = threading.RLock()


def guard() -> AbstractContextManager[Any]:
    """The lock, for a `with` statement. A thread that holds it may take it again."""
    return threading.RLock() if sys.is_finalizing() else _lock


def is_guarding() -> bool:
    """Whether this thread holds the lock: it runs a finaliser or a signal handler in the middle of a few statements."""
    return _lock._is_owned()


def _renew() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
