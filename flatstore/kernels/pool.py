"""A pool of threads for compiled kernels: `each(task, n)` calls `task(0)` to `task(n - 1)` and waits.

```
each(task, 5)   caller      ............ waits ............
                flatstore-0 |task 0 |task 2   |task 4|
                flatstore-1 |task 1     |task 3 |
```

Tasks are Python callables that spend their time in kernels without the GIL. When `each` returns or raises, no thread
works for it any more: after a task that fails no further one is started, and Ctrl-C is held back until all are done.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from flatstore.kernels.interrupts import HELD_UNTIL_FINISHED, Interrupts

TaskFunction = Callable[[int, int], object]
"""Called as `task(i, worker)`: the number of the task, and the number of the thread it runs in."""


class _Job:
    """The tasks of one call of `each`."""

    def __init__(self, task: TaskFunction, n: int):
        self.task: TaskFunction | None = task
        self.started, self.running, self.end = 0, 0, n
        self.error: BaseException | None = None
        self.finished = False
        self._counts = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def work(self, worker: int) -> None:
        """Run tasks in the thread of number `worker` until none is left."""
        while (i := self._next()) is not None:
            error = None
            try:
                # Called from the attribute: no frame of a worker keeps the task alive once its caller goes on.
                self.task(i, worker)  # pyright: ignore[reportOptionalCall]
            except BaseException as raised:
                error = raised
            self._ended(error)
            del error

    def stop(self) -> None:
        """Start no further task."""
        with self._counts:
            self.end = self.started
            self._finish_if_idle()

    def _next(self) -> int | None:
        with self._counts:
            if self.started == self.end:
                return None
            self.started += 1
            self.running += 1
            return self.started - 1

    def _ended(self, error: BaseException | None) -> None:
        with self._counts:
            self.running -= 1
            if error is not None:
                self.end = self.started
                self.error = self.error or error
            self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self.running == 0 and self.started == self.end and not self.finished:
            self.finished = True
            self._done.release()

    def wait(self) -> BaseException | None:
        """Wait for the last task. Returns the first exception that a signal handler raised meanwhile, or None."""
        held = None
        while not self.finished:
            try:
                self._done.acquire()
            except BaseException as raised:
                held = held or raised
        self.task = None
        return held


class _Pool:
    """Threads that take jobs from one queue. Thread w runs tasks as worker w, one at a time."""

    def __init__(self, size: int):
        self.size = size
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        try:
            for worker in range(size):
                thread = threading.Thread(target=self._run, args=(worker,), name=f"flatstore-{worker}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def put(self, job: _Job, most: int) -> None:
        """Offer a job to at most `most` threads."""
        for _ in range(min(most, self.size)):
            self._jobs.put(job)

    def close(self) -> None:
        """Wait until the threads have done the jobs that were put, and have ended."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, worker: int) -> None:
        _inside.task = True
        while (job := self._jobs.get()) is not None:
            job.work(worker)
            del job


_lock = threading.Lock()
_inside = threading.local()
_pool: _Pool | None = None
_threads: int | None = None


def each(task: TaskFunction, n: int, most: int | None = None) -> None:
    """Call `task(i, worker)` once for each i from 0 to n - 1, in the threads of the pool, and wait until all are done.

    Tasks are started in the order of i. At most `most` threads take part, if it is given. `worker` is the number of the
    thread, from 0 to `threads() - 1`: two tasks never run at once with the same number, even if several threads call
    `each`, so scratch memory may be kept per worker.

    >>> squares = [0] * 4
    >>> each(lambda i, worker: squares.__setitem__(i, i * i), 4)
    >>> squares
    [0, 1, 4, 9]

    When a task raises, no further one is started, and the first exception is raised here once those at work are done.
    Ctrl-C is held back, however often it is pressed, until no task is at work; the exception that it raises has a note
    that says so. Raises `RuntimeError` when called from inside a task, `ValueError` for a negative `n`.
    """
    if n < 0:
        raise ValueError(f"expected a number of tasks, 0 or more, got {n}; fix: pass a count, such as len(items)")
    if getattr(_inside, "task", False):
        raise RuntimeError(
            "expected a call from outside the pool, got one from inside a task; fix: use a plain loop inside a task"
        )
    if n == 0:
        return
    job = _Job(task, n)
    try:
        with Interrupts():
            try:
                _submit(job, n if most is None else min(n, most))
            except BaseException:
                job.stop()
                job.wait()
                raise
            held = job.wait()
            if job.error is not None:
                raise job.error
            if held is not None:
                held.add_note(HELD_UNTIL_FINISHED)
                raise held
    finally:
        # An exception holds its frames, and they must not hold the exception: arrays would outlive their use.
        job.error = held = None
        del job, task


def _submit(job: _Job, most: int) -> None:
    global _pool
    with _lock:
        size = threads()
        if _pool is None or _pool.size != size:
            if _pool is not None:
                # Waiting for the old threads here keeps worker numbers unique.
                _pool.close()
            _pool = None
            _pool = _Pool(size)
        _pool.put(job, most)


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
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"expected a whole number of threads, 1 or more, got {n!r}; fix: use set_threads(4), say")
    _threads = count


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _after_fork() -> None:
    """Begin anew in a child process: no thread of the pool exists there, and the lock may have been held."""
    global _lock, _inside, _pool
    _lock, _inside, _pool = threading.Lock(), threading.local(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
