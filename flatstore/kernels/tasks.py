"""Loops over tasks: which scratch memory each uses, how far each came, and what happens when one fails.

A task is a range of parameters that one thread goes through. It returns the index that it reached, so that after a
failure it is known what was written, and can be undone:

```
task 0   |=====================|  reached its end
task 1   |==========x             stopped: no task is begun after one that stops or raises
task 2   |=====================|  reached its end
task 3                            not begun
```
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from flatstore.kernels.pool import each, threads


class Task(NamedTuple):
    """Parameters that a thread goes through, by their index."""

    group: Any
    """What the parameters belong to, such as the leaves of one dtype."""
    start: int
    """The first index."""
    stop: int
    """The index after the last one."""


Scratch = TypeVar("Scratch")


class StoppedAt(Exception):
    """Raised by a task, from the error that stopped it, to say that everything before an index is done."""

    def __init__(self, index: int) -> None:
        super().__init__(f"stopped at index {index}")
        self.index = index


def run_tasks(
    tasks: Sequence[Task],
    work: Callable[[Task, Scratch], int],
    scratch: Callable[[], Scratch],
    undo: Callable[[Task, int, Scratch], object] | None = None,
    *,
    most: int | None = None,
    reached: dict[int, int] | None = None,
) -> tuple[Task, int] | None:
    """Call `work(task, scratch)` for every task over the threads of the pool, and wait until all are done.

    `work` returns the index that it reached: the end of the task, or less if it stopped. It may raise an error if it
    has written nothing; otherwise it raises `StoppedAt` from the error. Once a task stops or raises, no further one is
    begun, and `undo(task, end, scratch)` is called for each that was begun, with the index `end` that it reached.

    Each thread that takes part (at most `most`, if given) works in memory of its own, which `scratch()` makes. All of
    it is made before the first task begins, so that running out of memory is an error before anything is written.

    Returns the first task that stopped and the index that it reached, or None if all reached their end. Raises the
    error of a task, or the exception that a signal handler raised meanwhile. `reached` is filled with the index that
    each task reached, by the number of the task: for a caller that reports what is left instead of undoing it.
    """
    free_scratch = [scratch() for _ in range(min(len(tasks), threads(), most or len(tasks)))]
    ends: dict[int, int] = {} if reached is None else reached
    stopped: list[int] = []

    def run(i: int, _worker: int) -> None:
        if stopped:
            return
        mine, ends[i] = free_scratch.pop(), tasks[i].start
        error: BaseException | None = None
        try:
            ends[i] = work(tasks[i], mine)
        except StoppedAt as failure:
            ends[i], error = failure.index, failure.__cause__ or failure
        finally:
            free_scratch.append(mine)
            if ends[i] < tasks[i].stop:
                stopped.append(i)
        if error:
            raise error

    def undo_all() -> None:
        begun = list(ends.items())

        def undo_one(j: int, _worker: int) -> None:
            mine, (i, end) = free_scratch.pop(), begun[j]
            if undo is not None:
                undo(tasks[i], end, mine)
            free_scratch.append(mine)

        each(undo_one, len(begun), len(free_scratch))

    try:
        each(run, len(tasks), len(free_scratch))
    except BaseException:
        undo_all()
        raise
    if not stopped:
        return None
    undo_all()
    return tasks[min(stopped)], ends[min(stopped)]
