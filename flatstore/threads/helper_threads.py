"""Helpers: threads that work for other threads, one thing at a time.

```
caller    hand over | wait ......................... | go on
helper              | work ======================= |
```

A thread has one helper of its own; what several threads share is done by more of them.
"""

from __future__ import annotations

import _imp
import _thread
import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any

_api: Any = ctypes.pythonapi
_new_lock, _free_lock, _release = _api.PyThread_allocate_lock, _api.PyThread_free_lock, _api.PyThread_release_lock
_new_lock.restype, _new_lock.argtypes = ctypes.c_void_p, []
_free_lock.restype, _free_lock.argtypes = None, [ctypes.c_void_p]
_release.restype, _release.argtypes = None, [ctypes.c_void_p]

# Without the interpreter's lock, and unlike the method of a lock of Python's, it waits without a look at signals.
_unlocked: Any = ctypes.CDLL(None, handle=_api._handle)
acquire: Any = _unlocked.PyThread_acquire_lock
acquire.restype, acquire.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]

# So, too, who is woken finds the interpreter's lock free, and need not wait until the caller waits.
release: Any = _unlocked.PyThread_release_lock
release.restype, release.argtypes = None, [ctypes.c_void_p]


def _plain_arithmetic() -> Callable[[], Any]:
    """What has a thread round to the nearest, and take no small number for zero, as if nobody had asked otherwise."""
    if os.name == "nt":
        return partial(ctypes.CDLL("ucrtbase").fesetround, 0)
    library = ctypes.CDLL(None)
    default = ctypes.addressof(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")) if sys.platform == "darwin" else -1
    return partial(library.fesetenv, ctypes.c_void_p(default))


_compute_plainly = _plain_arithmetic()

process: object = object()  # another one in a forked child, where the helpers of its parent do not exist


class _Lock:
    """A lock, taken."""

    _as_parameter_ = ctypes.c_void_p()

    def __init__(self) -> None:
        self._as_parameter_ = ctypes.c_void_p(_new_lock())
        if not self._as_parameter_:
            raise MemoryError("expected a lock for a thread, got none; fix: free some memory")
        acquire(self, 1)

    def __del__(self) -> None:
        _free_lock(self)


class Mail:
    """What a helper is given to do, and the locks by which it and its caller take turns."""

    __slots__ = ("busy", "caller", "context", "done", "ends", "error", "over", "process", "ready", "wake", "work")

    busy: bool
    done: Any
    ends: bool
    ready: bool
    wake: Any

    over: bool

    def __init__(self, caller: int) -> None:
        self.done, self.wake = _Lock(), _Lock()
        self.work: Callable[[], Any] | None = None
        self.context: Context | None = None
        self.caller: int = caller
        self.error: BaseException | None = None
        self.over = self.busy = self.ready = self.ends = False
        self.process: object = process


class _Beacon:
    """What a thread refers to for as long as it lives."""


class Helper:
    """A thread that does one thing at a time for another thread. It ends when nothing refers to this object."""

    def __init__(self) -> None:
        self.mail: Mail = Mail(caller())

    def start(self) -> None:
        """Start the thread, unless it is ready."""
        while not self.mail.ready:  # what is raised in this thread may end up in one that starts: then there is another
            beacon = _Beacon()
            alive = weakref.ref(beacon)
            # Unlike the start of a `threading.Thread` this is one call of C, which cannot be left half-done.
            _thread.start_new_thread(_serve, (self.mail, beacon))
            del beacon
            while not self.mail.ready and alive() is not None:
                time.sleep(0)

    def __del__(self) -> None:
        mail = getattr(self, "mail", None)  # there is none where memory was short
        if mail is not None and mail.process is process:
            mail.ends = True
            release(mail.wake)


class _Here(threading.local):
    """What is known of each thread."""

    caller: int | None = None
    """The thread that it works for, if it is a helper."""
    assisting = False
    """Whether it does a part of what several helpers share."""

    def __init__(self) -> None:
        self.helpers: list[Helper] = []
        """Those that work for it: one, and another for each handler that is called while the one before is at work."""


_here = _Here()
_idle: list[Helper] = []  # those that share the work of other helpers


SHORT_OF_MEMORY = MemoryError, ctypes.ArgumentError
"""What a call of C raises for want of a few bytes. A thread that others wait for calls again until it has them."""


def _serve(mail: Mail, beacon: _Beacon) -> None:
    """Do what the mail says, until it ends. To be woken for nothing does no harm."""
    while True:
        try:
            _here.caller = mail.caller
            _compute_plainly()  # whatever modes the thread had that started this one
            mail.ready = True
            acquire(mail.wake, 1)
        except SHORT_OF_MEMORY:
            continue
        if mail.ends:
            _surely(release, mail.wake)  # there may be another, if this one was started twice
            return
        if mail.work is None:
            continue
        try:
            _here.caller = mail.caller
            mail.work() if mail.context is None else mail.context.run(mail.work)
        except BaseException as error:
            mail.error = error
        mail.work = mail.context = None
        mail.over = True
        _surely(_release, mail.done)


def _surely(call: Callable[[_Lock], Any], lock: _Lock) -> None:
    """Call a function of C until there are the few bytes that it needs."""
    while True:
        try:
            call(lock)
            return
        except SHORT_OF_MEMORY:
            pass


def assisted(work: Callable[[], Any], others: int) -> None:
    """Do the work here and in up to `others` more helpers at once, and return when all of them are done.

    To be called by a helper. There are fewer of them if there can be no more threads, and none inside of such work.
    """
    helpers: list[Helper] = []
    if _here.assisting:
        others = 0
    with contextlib.suppress(RuntimeError, MemoryError):
        while len(helpers) < others:
            helper = _idle.pop() if _idle else Helper()
            helper.start()
            helpers.append(helper)

    def share() -> None:
        _here.assisting = True
        try:
            work()
        finally:
            _here.assisting = False

    for helper in helpers:
        helper.mail.work, helper.mail.over, helper.mail.caller = share, False, caller()
        _surely(release, helper.mail.wake)
    try:
        share() if others else work()
    finally:
        error = None
        for helper in helpers:
            while not helper.mail.over:
                try:
                    acquire(helper.mail.done, 1)
                except SHORT_OF_MEMORY:
                    pass
            error, helper.mail.error = error or helper.mail.error, None
            if len(_idle) < (os.cpu_count() or 1):
                _idle.append(helper)
        if error is not None:
            raise error


def is_helping() -> bool:
    """Whether this thread is a helper, which nothing interrupts."""
    return _here.caller is not None


def is_interrupted() -> bool:
    """Whether handlers may be called in this thread: not if it is a helper, nor while the interpreter ends."""
    return _here.caller is None and not sys.is_finalizing()


def refuse_waiting_at_the_end() -> None:
    """Raise `RuntimeError` while the interpreter ends, if a thread has been stopped as it imported something.

    It holds the lock of all imports for ever. NumPy and Numba import what they need as they are called.
    """
    if sys.is_finalizing() and _imp.lock_held():
        raise RuntimeError(
            "expected a process that goes on, got one that ends, and a thread that has been stopped as it imported; "
            "fix: join the threads, or do it earlier, such as by atexit.register"
        )


def caller() -> int:
    """The thread that this one works for, or is."""
    return threading.get_ident() if _here.caller is None else _here.caller


def helper_of_this_thread() -> Helper | None:
    """The helper of this thread; None if it has to do the work itself: it is a helper, or the others have stopped."""
    if _here.caller is not None or sys.is_finalizing():
        return None
    for helper in _here.helpers:
        if helper.mail.process is process and not helper.mail.busy:
            break
    else:
        helper = Helper()
        _here.helpers.append(helper)  # before it starts, so that none is lost: what its end raised would be, too
    try:
        helper.start()
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
        return None  # the interpreter is about to end, and starts no thread any more
    return helper


def _after_fork() -> None:
    global process
    process = object()
    _idle.clear()
    _here.helpers.clear()
    _here.caller = None  # a helper may have forked: then it is the main thread of the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
