"""Threads that share tasks: `each(task, n)` calls `task(0)` to `task(n - 1)` and waits.

```
each(task, 5)   caller      ............ waits ............
                a helper    |task 0 |task 2   |task 4|
                another     |task 1     |task 3 |
```

Tasks are Python callables that spend their time in kernels without the interpreter's lock. When `each` returns or
raises, no thread works for it any more: after a task that fails no further one is started, and nothing interrupts those
at work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from flatstore.checks import whole
from flatstore.threads.helper_threads import assisted, is_helping
from flatstore.threads.signal_safe import uninterrupted

Task = Callable[[int], object]
"""Called with the number of the task."""


class _Shared:
    """The tasks of one call of `each`, which several threads take in turn."""

    def __init__(self, task: Task, n: int) -> None:
        self.task, self.started, self.end = task, 0, n
        self.error: BaseException | None = None
        try:
            self._counts = threading.Lock()
        except RuntimeError as error:  # how it says that there is no memory
            raise MemoryError(*error.args) from None

    def work(self) -> None:
        """Run tasks until none is left, or one has failed."""
        while (i := self._next()) is not None:
            try:
                self.task(i)
            except BaseException as error:
                with self._counts:
                    self.end, self.error = self.started, self.error or error

    def _next(self) -> int | None:
        with self._counts:
            if self.started >= self.end:
                return None
            self.started += 1
            return self.started - 1


_threads: int | None = None


def each(task: Task, n: int, most: int | None = None) -> None:
    """Call `task(i)` once for each i from 0 to n - 1, in up to `threads()` threads, and wait until all are done.

    Tasks are started in the order of i. At most `most` threads take part, if it is given.

    >>> squares = [0] * 4
    >>> each(lambda i: squares.__setitem__(i, i * i), 4)
    >>> squares
    [0, 1, 4, 9]

    When a task raises, no further one is started, and the first exception is raised here once those at work are done.
    What a signal handler raises meanwhile is raised when no task is at work. Inside a task, and while the interpreter
    ends, the tasks are run one after the other, here. Raises `ValueError` for a negative `n`.
    """
    if n < 0:
        raise ValueError(f"expected a number of tasks, 0 or more, got {n}; fix: pass a count, such as len(items)")
    if n:
        uninterrupted(lambda: _share(task, min(n, threads(), most or n), n))


def _share(task: Task, sharers: int, n: int) -> None:
    shared = _Shared(task, n)
    if is_helping():
        assisted(shared.work, sharers - 1)
    else:  # the interpreter ends, or a finaliser holds the lock: no other thread goes on
        shared.work()
    error, shared.error = shared.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # an exception holds its frames, and they must not hold the exception


def threads() -> int:
    """Return the number of threads that `each` uses.

    It is the number that `set_threads` was given, else `FLATSTORE_NUM_THREADS`, else that of the CPUs that this process
    may run on. Raises `ValueError` if the environment variable is set to anything but a whole number of 1 or more.
    """
    global _threads
    if _threads is None:
        text = os.environ.get("FLATSTORE_NUM_THREADS", "")
        if text and not (text.isdecimal() and int(text) >= 1):
            raise ValueError(
                f"expected FLATSTORE_NUM_THREADS to be a whole number, 1 or more, got {text!r}; fix: unset it or use 4"
            )
        _threads = int(text) if text else _cpus()
    return _threads


def set_threads(n: int) -> None:
    """Set the number of threads that later calls of `each` use. Calls in progress keep theirs.

    Raises `ValueError` unless n is a whole number of 1 or more.
    """
    global _threads
    count = whole(n)
    if not count >= 1:
        raise ValueError(f"expected a whole number of threads, 1 or more, got {n!r}; fix: use set_threads(4), say")
    _threads = int(count)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
