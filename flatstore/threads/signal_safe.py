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

import ctypes
import sys
from collections.abc import Callable, Generator, Iterable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from flatstore.threads import helper_threads
from flatstore.threads.helper_threads import SHORT_OF_MEMORY, Helper, acquire, helper_of_this_thread, release
from flatstore.threads.notes import add_notes, moment, raised_later

T = TypeVar("T")

HELD_UNTIL_FINISHED = "flatstore held this back until the work in progress was finished"
HELD_AFTER_FAILURE = "flatstore held this back until the work in progress was over; it had failed, see the cause"

# Called as an `__exit__` is: with an object, the class of an exception or None, and the rest, which C leaves alone.
_resume: Any = ctypes.PYFUNCTYPE(None, *[ctypes.py_object] * 4)(("PyIter_Next", ctypes.pythonapi))
_item: Any = ctypes.PYFUNCTYPE(*[ctypes.py_object] * 5)(("PyObject_GetItem", ctypes.pythonapi))


class _Sending:
    """What sends to a generator the key that an item is asked for by: without a step of Python in between."""

    __slots__ = ("__getitem__",)

    def __init__(self, generator: Generator[None, Any]) -> None:
        self.__getitem__ = generator.send


Step = Callable[[BaseException | None], Any]
"""It is given the exception that is being handled, as the `with` block that it ends has raised it."""


def _turn(
    work: Step, then: Step | None, helper: Helper | None, prepared: bool, *, dropped: bool = False, idle: bool = False
) -> Generator[None, Any]:
    """Let a helper work and wait for it; then raise what was raised by the work, or meanwhile.

    If it is `prepared` it does so when it is sent the class of the exception that is being handled, or None; or
    `dropped` without that. With `idle` there is nothing to do without an exception.
    """
    block = caught = earlier = error = context = None
    is_dropped, is_finalizing = False, sys.is_finalizing  # kept here: modules are emptied at the end
    before = sys.exception()  # that of an `except` clause around it all

    def task() -> None:
        work(block)  # noqa: F821 (it is deleted when this is over)

    try:
        if prepared:
            kind = yield
            if kind is not None:
                block = sys.exception()
            elif idle:
                yield
                return
            helper = helper_of_this_thread()
        context = copy_context()
    except GeneratorExit:  # it is not called any more
        if not dropped:
            return
        is_dropped = True
        try:
            helper = None if is_finalizing() else helper_of_this_thread()
        except BaseException as raised:
            caught = raised
            try:  # without a helper the next handler would break the work off
                helper = helper_of_this_thread()
            except BaseException as raised_too:
                earlier, caught = caught, raised_too
    except BaseException as raised:
        if not prepared:
            raise
        caught = raised
        if block is None and raised.__context__ is not before:
            block = raised.__context__
    # Up to the end of the last loop no statement outside of a `try` may call anything, jump back, or allocate.
    if helper is None:
        try:
            work(block)
        except BaseException as raised:
            error = raised
    else:
        mail = helper.mail
        mail.context = context
        mail.busy, mail.over = True, False
        mail.work = task
        told = False
        while not told:  # again only for want of memory: to jump back may raise, too
            try:
                release(mail.wake)
                told = True
            except SHORT_OF_MEMORY as raised:
                caught = raised if caught is None else caught
            except BaseException as raised:
                told = True
                earlier, caught = caught, raised
        if mail.process is helper_threads.process:
            try:
                acquire(mail.done, 1)
            except SHORT_OF_MEMORY as raised:
                caught = raised if caught is None else caught
            except BaseException as raised:
                earlier, caught = caught, raised
        while not mail.over and mail.process is helper_threads.process:  # only then, too
            try:
                acquire(mail.done, 1)
            except SHORT_OF_MEMORY as raised:
                caught = raised if caught is None else caught
            except BaseException as raised:
                earlier, caught = caught, raised
        over, error = mail.over, mail.error
        mail.error, mail.busy = None, False
        del mail
        if not over:
            error = RuntimeError(
                "expected a process that goes on, got one that a signal handler forked in the middle of a verb, which "
                "is half done here; fix: end the child by os._exit, or fork elsewhere"
            )
    try:
        if caught is not None:
            if caught.__context__ is None and earlier is not caught:
                caught.__context__ = earlier
            if is_dropped and not isinstance(caught, SHORT_OF_MEMORY):
                try:
                    raised_later(caught)[0]  # what is raised here would be lost
                except BaseException as raised:  # by one more handler
                    if raised.__context__ is None:
                        raised.__context__ = caught
                    raised_later(raised)[0]
            elif error is None:
                raise caught
            else:
                raise caught from error
        if error is not None:
            raise error
        if then is not None and not is_dropped:
            then(block)
    finally:
        # An exception holds this frame, which must not hold it.
        del block, caught, earlier, error, work, task, helper, before
    if prepared and not is_dropped:
        yield


def prepared(
    work: Step, then: Step | None = None, *, dropped: bool = False, idle: bool = False
) -> Callable[[Any, Any, Any], None]:
    """A function, written in C, that does the work when it is called: once, with the arguments of an `__exit__`.

    If it is `dropped` without a call, the work is done then. `idle` says that there is none without an exception.
    """
    turn = _turn(work, then, helper_of_this_thread(), True, dropped=dropped, idle=idle)
    next(turn)
    return partial(_item, _Sending(turn))


def when_dropped(work: Callable[[], object]) -> Any:
    """An object that does the work as it is dropped: uninterrupted. What comes meanwhile is raised in this thread soon.

    So a generator that is closed, and what is raised in it lost, need only let go of it.

    >>> last = when_dropped(lambda: print("over"))
    >>> del last
    over
    """
    return prepared(lambda _: work(), dropped=True)


class Leaving:
    """An `__exit__` that calls `leave(error)` of its object, with the error of the block or None: uninterrupted.

    An `__exit__` of Python can be interrupted at its first line, and the block is left without it. This one is written
    in C: what comes as the block ends is raised when `leave` is over. If there is nothing to raise, and the object has
    it, `left(error)` follows, in the thread of the caller.

    Even a call of C fails where there is no memory for its arguments. So where `dropped(object)` is true before the
    block begins, an exit that was not called is done as it is dropped. `idle` is as in `prepared`.
    """

    def __init__(self, dropped: Callable[[Any], bool] = bool, *, idle: bool = False) -> None:
        self._dropped, self._idle = dropped, idle

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., None]:
        if owner is None:  # as ExitStack asks for it
            return self._leave
        dropped = not self._idle and self._dropped(owner)  # without a call there is no exception, either
        return prepared(owner.leave, getattr(owner, "left", None), dropped=dropped, idle=self._idle)

    def _leave(self, owner: Any, *error: Any) -> None:
        self.__get__(owner)(*error)


class Closing:
    """An `__exit__` that resumes what `closing()` of its object returned as the block began: a generator.

    It is called even if it is interrupted at once, and is not handed to a helper: for what one statement ends.
    """

    def __get__(self, owner: Any, kind: Any = None) -> Callable[..., None]:
        if owner is None:
            return self._close
        steps = owner.closing()
        next(steps)
        return partial(_resume, steps)

    def _close(self, owner: Any, *error: Any) -> None:
        self.__get__(owner)(*error)


class noted:
    """A context that adds notes to an exception of its block: what `notes(error)` yields.

    An `except` clause could be interrupted before it has added them, and they say what state things are in.
    """

    def __init__(self, notes: Callable[[BaseException], Iterable[str]]) -> None:
        self._notes, self._since = notes, moment()

    def __enter__(self) -> None:
        pass

    __exit__: Leaving = Leaving(idle=True)

    def leave(self, error: BaseException | None) -> None:
        """Add the notes."""
        if error is not None:
            add_notes(error, self._since, *self._notes(error))


def uninterrupted(work: Callable[[], T]) -> T:
    """Do the work, and return its result. Nothing is raised in the middle: what a signal handler raises comes after it.

    >>> uninterrupted(lambda: 1 + 1)
    2

    The work is done by another thread. So it is to be that of this package, and no function of the user's. If it fails,
    its error is raised here. An exception that comes meanwhile is raised when the work is over, and has a note that
    says so; without the note nothing has begun. In a thread that nothing interrupts, and while the interpreter ends,
    the work is done here.
    """
    return handed_over(work, HELD_UNTIL_FINISHED, HELD_AFTER_FAILURE)


def handed_over(work: Callable[[], T], finished: str | None = None, failure: str | None = None) -> T:
    """Do the work in the helper of this thread, and return its result; the notes are for what is raised meanwhile."""
    helper = helper_of_this_thread()
    if helper is None:
        return work()
    since = moment()
    result: list[T] = []
    failed: list[BaseException] = []

    def task(_: BaseException | None) -> None:
        try:
            result.append(work())
        except BaseException as error:
            failed.append(error)
            raise

    try:
        next(_turn(task, None, helper, False), None)
        return result[0]
    except BaseException as error:
        if error not in failed:
            note = failure if failed else finished if result else None
            add_notes(error, since, *([note] if note else []))
        raise
    finally:
        failed.clear()  # an exception holds this frame, which must not hold the exception
        result.clear()  # nor what nobody is given
