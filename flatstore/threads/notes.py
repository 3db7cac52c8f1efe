"""What is raised: its notes are true, though the same object is raised twice, and no generator loses it."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from operator import call
from typing import Any

from flatstore.threads.helper_threads import caller

_raise_in: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.restype, _raise_in.argtypes = ctypes.c_int, [ctypes.c_ulong, ctypes.py_object]

# Has the main thread ask, before its next step, whether an object is true.
_ask_later: Any = ctypes.pythonapi.Py_AddPendingCall
_ask_later.restype, _ask_later.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.py_object]
_ask = ctypes.cast(ctypes.pythonapi.PyObject_IsTrue, ctypes.c_void_p)
_keep: Any = ctypes.pythonapi.Py_IncRef
_forget: Any = ctypes.pythonapi.Py_DecRef
_keep.argtypes = _forget.argtypes = [ctypes.py_object]
_keep.restype = _forget.restype = None


class _Note(str):
    """A note of this package, which knows when it was made."""

    moment: int


moment: Callable[[], int] = itertools.count().__next__
"""A number that grows from call to call."""


def add_notes(error: BaseException, since: int, *notes: str) -> None:
    """Add notes to an exception of what has begun at the moment `since`.

    Older ones of this package are removed: the same object has been raised before, and they are not true any more.

    >>> error, before = KeyError(), moment()
    >>> add_notes(error, before, "the first time")
    >>> add_notes(error, moment(), "the second time")
    >>> error.__notes__
    ['the second time']
    """
    made: list[str] = []
    for text in notes:
        note = _Note(text)
        note.moment = moment()
        made.append(note)
    old: list[Any] = getattr(error, "__notes__", [])
    kept = [note for note in old if not (isinstance(note, _Note) and note.moment < since)]
    if made or len(kept) < len(old):
        error.__notes__ = [*kept, *made]


class _Raising:
    """Something that is neither true nor false: to ask raises an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __bool__(self) -> bool:
        _forget(self)
        raise self.error


def raised_later(error: BaseException) -> Mapping[Any, Any]:
    """What has an exception raised in this thread when it is asked for any item: as soon as the thread goes on.

    What is raised as a generator is closed is lost. It may ask for an item then: other than after a call, nothing is
    raised after that, until it is closed.
    """
    thread, main = caller(), threading.main_thread().ident
    if thread == main:  # as what a handler raises
        raising = _Raising(error)
        steps = partial(_keep, raising), partial(_ask_later, _ask, raising)
    else:

        def same(*_: Any) -> BaseException:
            return error

        steps = (partial(_raise_in, thread, type("Again", (BaseException,), {"__new__": same})),)
    do_all: Any = deque
    return defaultdict(partial(do_all, map(call, steps), 0))
