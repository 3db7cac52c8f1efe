"""Work that nothing interrupts.

Between two bytecodes of the main thread Python calls the handlers of signals, and a handler may raise there: Ctrl-C,
the timeout of an alarm, `sys.exit` on SIGTERM. `PyThreadState_SetAsyncExc` raises likewise, in any thread. So what must
not be left half-done is done by another thread, a *helper*, while the caller waits in C, where nothing is raised:

```
caller    prepare | hand over | wait ......................... | raise what came meanwhile, or go on
helper                        | work ======================= |
```

From the hand-over on the caller must not be interrupted. CPython calls handlers as a function is entered, after a call
of something written in C, and where a loop jumps back. So the hand-over is a generator that is resumed from C: what is
raised as it goes on, or after a call that it makes, is raised in a `try`, and kept until the work is over.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, TypeVar

from flatstore.threads.lock import is_guarding

T = TypeVar("T")

HELD_UNTIL_FINISHED = "flatstore held this back until the work in progress was finished"
HELD_AFTER_FAILURE = "flatstore held this back until the work in progress was over; it had failed, see the cause"

_api: Any = ctypes.pythonapi
_new_lock, _free_lock, _release = _api.PyThread_allocate_lock, _api.PyThread_free_lock, _api.PyThread_release_lock
_new_lock.restype, _new_lock.argtypes = ctypes.c_void_p, []
_free_lock.restype, _free_lock.argtypes = None, [ctypes.c_void_p]
_release.restype, _release.argtypes = None, [ctypes.c_void_p]

# Without the interpreter's lock, and unlike the method of a lock of Python's, it waits without a look at signals.
_acquire: Any = ctypes.CDLL(None, handle=_api._handle).PyThread_acquire_lock
_acquire.restype, _acquire.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]

# Resumes a generator. Called as an `__exit__` is, with an exception behind the generator, which C leaves alone.
_resume: Any = ctypes.PYFUNCTYPE(None, *[ctypes.py_object] * 4)(("PyIter_Next", _api))

_process = object()  # another one in a forked child, where the helpers of its parent do not exist


class _Mail:
    """What a helper is given to do, and the locks by which it and its caller take turns."""

    __slots__ = ("done", "error", "over", "process", "wake", "work")

    def __init__(self) -> None:
        self.done = ctypes.c_void_p(_new_lock())
        if not self.done:
            raise MemoryError("expected a lock for a thread, got none; fix: free some memory")
        _acquire(self.done, 1)
        self.work: Callable[[], Any] | None = None
        self.error: BaseException | None = None
        self.over = False
        self.process = _process
        self.wake = threading.Lock()
        self.wake.acquire()

    def __del__(self) -> None:
        _free_lock(self.done)


class _Helper:
    """A thread that does one thing at a time for another thread. It ends when nothing refers to this object."""

    def __init__(self) -> None:
        self.mail = _Mail()
        # Unlike the start of a `threading.Thread` this is one call of C, which cannot be left half-done.
        _thread.start_new_thread(_serve, (self.mail,))

    def __del__(self) -> None:
        if self.mail.process is _process:
            self.mail.work = None
            self.mail.wake.release()


class _Here(threading.local):
    """What is known of each thread."""

    helping = False
    """Whether it is a helper."""
    assisting = False
    """Whether it does a part of what several helpers share."""
    helper: _Helper | None = None
    """The one that works for it."""


_here = _Here()
_idle: list[_Helper] = []  # those that share the work of other helpers


def _serve(mail: _Mail) -> None:
    """Do what the mail says, until it says nothing."""
    _here.helping = True
    while True:
        mail.wake.acquire()
        if mail.work is None:
            return
        try:
            mail.work()
        except BaseException as error:
            mail.error = error
        mail.work = None
        mail.over = True
        _release(mail.done)


def assisted(work: Callable[[], Any], others: int) -> None:
    """Do the work here and in up to `others` more helpers at once, and return when all of them are done.

    To be called by a helper. There are fewer of them if there can be no more threads, and none inside of such work.
    """
    helpers: list[_Helper] = []
    if _here.assisting:
        others = 0
    with contextlib.suppress(RuntimeError, MemoryError):
        while len(helpers) < others:
            helpers.append(_idle.pop() if _idle else _Helper())

    def share() -> None:
        _here.assisting = True
        try:
            work()
        finally:
            _here.assisting = False

    for helper in helpers:
        helper.mail.work, helper.mail.over = share, False
        helper.mail.wake.release()
    try:
        share() if others else work()
    finally:
        error = None
        for helper in helpers:
            while not helper.mail.over:
                _acquire(helper.mail.done, 1)
            error, helper.mail.error = error or helper.mail.error, None
            if len(_idle) < (os.cpu_count() or 1):
                _idle.append(helper)
        if error is not None:
            raise error


def is_helping() -> bool:
    """Whether this thread is a helper, which nothing interrupts."""
    return _here.helping


def _mine() -> _Helper | None:
    """The helper of this thread; None if it has to do the work itself: other threads have stopped, or wait for it."""
    if _here.helping or sys.is_finalizing() or is_guarding():
        return None
    helper = _here.helper
    if helper is None or helper.mail.process is not _process:
        try:
            helper = _here.helper = _Helper()
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            return None  # the interpreter is about to end, and starts no thread any more
    return helper if helper.mail.work is None else _Helper()  # it is at work: this is a handler, called meanwhile


Step = Callable[[BaseException | None], Any]
"""It is given the exception that is being handled, as the `with` block that it ends has raised it."""


def _turn(work: Step, then: Step) -> Generator[None]:
    """When resumed, let a helper work and wait for it; then raise what was raised by the work, or meanwhile."""
    block = caught = error = None
    helper = _mine()

    def task() -> None:
        work(block)  # noqa: F821 (it is deleted when this is over)

    try:
        yield
        block = sys.exception()
        helper = _mine()
    except GeneratorExit:  # it is not called any more
        return
    except BaseException as raised:
        caught, block = raised, raised.__context__
    # Up to the end of the loop no statement outside of a `try` may call anything, jump back, or allocate.
    if helper is None:
        try:
            work(block)
        except BaseException as raised:
            error = raised
    else:
        mail = helper.mail
        try:
            mail.over, mail.work = False, task
            mail.wake.release()
        except BaseException as raised:
            if caught is None:
                caught = raised
        while not mail.over and mail.process is _process:
            try:
                _acquire(mail.done, 1)
            except BaseException as raised:
                if caught is None:
                    caught = raised
        error, mail.error = mail.error, None
        del mail
    try:
        if caught is not None:
            if error is None:
                raise caught
            raise caught from error
        if error is not None:
            raise error
        then(block)
    finally:
        del block, caught, error, work, task, helper  # an exception holds this frame, which must not hold the exception


def _nothing(error: BaseException | None) -> None:
    """Do nothing."""


def _prepared(work: Step, then: Step = _nothing) -> Callable[[Any, Any, Any], None]:
    """A function, written in C, that does the work when it is called: once, with the arguments of an `__exit__`."""
    turn = _turn(work, then)
    next(turn)
    return partial(_resume, turn)


class Leaving:
    """An `__exit__` that calls `leave(error)` of its object, with the error of the block or None: uninterrupted.

    An `__exit__` of Python can be interrupted at its first line, and the block is left without it. This one is written
    in C: what comes as the block ends is raised when `leave` is over. If there is nothing to raise, and the object has
    it, `left(error)` follows, in the thread of the caller.
    """

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., None]:
        if owner is None:  # as ExitStack asks for it
            return self._leave
        return _prepared(owner.leave, getattr(owner, "left", _nothing))

    def _leave(self, owner: Any, *error: Any) -> None:
        self.__get__(owner)(*error)


class noted:
    """A context that adds notes to an exception of its block: what `notes(error)` yields.

    An `except` clause could be interrupted before it has added them, and they say what state things are in.
    """

    def __init__(self, notes: Callable[[BaseException], Iterable[str]]) -> None:
        self._notes = notes

    def __enter__(self) -> None:
        pass

    __exit__ = Leaving()

    def leave(self, error: BaseException | None) -> None:
        """Add the notes."""
        if error is not None:
            for note in self._notes(error):
                error.add_note(note)


def uninterrupted(work: Callable[[], T]) -> T:
    """Do the work, and return its result. Nothing is raised in the middle: what a signal handler raises comes after it.

    >>> uninterrupted(lambda: 1 + 1)
    2

    The work is done by another thread. So it is to be that of this package, and no function of the user's. If it fails,
    its error is raised here. An exception that comes meanwhile is raised when the work is over, and has a note that
    says so; without the note nothing has begun. In a thread that nothing interrupts, and while the interpreter ends,
    the work is done here.
    """
    if _mine() is None:
        return work()
    result: list[T] = []
    failed: list[BaseException] = []

    def task(_: BaseException | None) -> None:
        try:
            result.append(work())
        except BaseException as error:
            failed.append(error)
            raise

    run = _prepared(task)
    try:
        run(None, None, None)
        return result[0]
    except BaseException as error:
        if error not in failed and (result or failed):
            error.add_note(HELD_AFTER_FAILURE if failed else HELD_UNTIL_FINISHED)
        raise
    finally:
        failed.clear()  # an exception holds this frame, which must not hold the exception


def _after_fork() -> None:
    global _process
    _process = object()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
