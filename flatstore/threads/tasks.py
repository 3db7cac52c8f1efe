"""Loops over tasks: which scratch memory each uses, how far each came, and what happens when one fails.

A task is a range of parameters that one thread goes through. The compiled loop notes the index that it has reached in
an array, and not in what it returns: so that, whatever fails after it, it is known what was written, and can be undone:

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

import numpy as np

from flatstore.threads.pool import each, threads

REACHED, BEGUN, READ = range(3)
"""What is noted of a task: the index before which all is done; if it was begun; one more than the index at which the
block begins that was read last."""


class Task(NamedTuple):
    """Parameters that a thread goes through, by their index."""

    group: Any
    """What the parameters belong to, such as the leaves of one dtype."""
    start: int
    """The first index."""
    stop: int
    """The index after the last one."""


Scratch = TypeVar("Scratch")


def progress_of(tasks: Sequence[Task]) -> Any:
    """A row of notes for each task, none of which has begun: int64."""
    progress = np.zeros((len(tasks), 3), np.int64)
    progress[:, REACHED] = [task.start for task in tasks]
    return progress


def run_tasks(
    tasks: Sequence[Task],
    work: Callable[[Task, Scratch, Any], object],
    scratch: Callable[[], Scratch],
    undo: Sequence[Callable[[Task, int, Scratch], object]] = (),
    *,
    finish: type[BaseException] | tuple[()] = (),
    most: int | None = None,
    progress: Any = None,
) -> tuple[Task, int] | None:
    """Call `work(task, scratch, notes)` for every task over the threads of the pool, and wait until all are done.

    `work` notes the index that it has reached, `notes[REACHED]`: the end of the task, or less if it stops. Once a task
    stops or raises, no further one is begun. Then each step of `undo` is called as `undo(task, end, scratch)` for each
    task that was begun, with the index `end` that it reached. Where there is no way back, `finish` says after which
    errors the rest of what was begun is to be tried again: after a lack of memory, for a moment, it can be finished.

    Each thread that takes part (at most `most`, if given) works in memory of its own, which `scratch()` makes. All of
    it is made before the first task begins, so that running out of memory is an error before anything is written.

    Returns the first task that stopped and the index that it reached, or None if all reached their end. Raises the
    error of a task. `progress` is what `progress_of` returns, for a caller that reports what is left.
    """
    free_scratch = [scratch() for _ in range(min(len(tasks), threads(), most or len(tasks)))]
    notes = list(progress_of(tasks) if progress is None else progress)
    undone = [0] * len(tasks)
    stopped = False

    def run(i: int) -> None:
        nonlocal stopped
        task, note = tasks[i], notes[i]
        if stopped or note[REACHED] == task.stop:
            return
        note[BEGUN], mine = 1, free_scratch.pop()
        try:
            work(task._replace(start=int(note[REACHED])), mine, note)
        finally:
            _put(free_scratch, mine)
            if note[REACHED] < task.stop:
                stopped = True

    def run_rest() -> None:
        nonlocal stopped
        stopped = False
        each(run, len(tasks), len(free_scratch))

    def take_back(i: int) -> None:
        mine = free_scratch.pop()
        try:
            while notes[i][BEGUN] and undone[i] < len(undo):
                undo[undone[i]](tasks[i], int(notes[i][REACHED]), mine)
                undone[i] += 1
        finally:
            _put(free_scratch, mine)

    def take_all_back() -> None:
        each(take_back, len(tasks), len(free_scratch))

    try:
        run_rest()
    except BaseException as error:
        if undo:
            _twice(take_all_back, error)
        elif isinstance(error, finish) and any(note[REACHED] > x.start for x, note in zip(tasks, notes, strict=True)):
            _twice(run_rest, error)
            return None
        raise
    if not stopped:
        return None
    take_all_back()
    first = next(i for i, note in enumerate(notes) if note[BEGUN] and note[REACHED] < tasks[i].stop)
    return tasks[first], int(notes[first][REACHED])


def _put(free: list[Any], mine: Any) -> None:
    """Put scratch back, at the second try if memory was short for a moment."""
    try:
        free.append(mine)
    except MemoryError:
        free.append(mine)


def _twice(mend: Callable[[], None], error: BaseException) -> None:
    """Call `mend`, and once more if memory was short; note it on the error if that does not help."""
    try:
        try:
            mend()
        except MemoryError:
            mend()
    except BaseException:
        error.add_note(
            "flatstore could neither finish what was begun nor take it back: the parameters are half written"
        )
        raise error from None
