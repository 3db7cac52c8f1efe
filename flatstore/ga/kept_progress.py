"""How far a generation came, and the parents' genes in scratch: in memory, or in the log of a population in a file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from flatstore.files import WrittenFile, alone_in, written_file
from flatstore.ga.disk_order import ReadAhead
from flatstore.ga.generation_log import Asked, Plan, begun
from flatstore.layout import Array
from flatstore.store import Population
from flatstore.threads import Task, progress_of


class Kept(Protocol):
    """What a generation notes while it is made."""

    progress: Array
    """A row for each task, as `progress_of` returns them."""

    def rows(self, worker: int, real: Any) -> Array:
        """The scratch memory for the parents' genes of a block."""
        ...

    def begins(self, worker: int, task: Task) -> None:
        """A task is about to begin, with the scratch memory of a worker."""
        ...

    def over(self) -> None:
        """The generation is over."""
        ...

    def not_begun(self) -> None:
        """Nothing of the generation was made."""
        ...


class _InMemory:
    def __init__(self, plan: Plan) -> None:
        self._shape = plan.rows, plan.width
        self.progress = progress_of(plan.tasks)

    def rows(self, worker: int, real: Any) -> Array:
        return np.zeros(self._shape, real)

    def begins(self, worker: int, task: Task) -> None:
        pass

    def over(self) -> None:
        pass

    def not_begun(self) -> None:
        pass


class _InFile:
    def __init__(self, file: WrittenFile, ahead: ReadAhead, plan: Plan, asked: Asked, goes_on: bool) -> None:
        self._log = begun(file.path, file.number, asked, plan, goes_on)
        self.progress, self.over, self.not_begun = self._log.progress, self._log.over, self._log.not_begun
        self._ahead = ahead
        self._numbers = {(task.group, task.stop): number for number, task in enumerate(plan.tasks)}

    def rows(self, worker: int, real: Any) -> Array:
        return self._log.rows[worker][real]

    def begins(self, worker: int, task: Task) -> None:
        self._log.owners[worker] = number = self._numbers[task.group, task.stop]
        self._log.under_way()
        self._ahead.ask(number)


@contextmanager
def kept(
    pop: Population,
    plan: Plan,
    asked: Callable[[], Asked],
    runs: Mapping[Any, tuple[Array, int]],
    *,
    goes_on: bool,
) -> Generator[Kept]:
    """A context in which a generation is made, or goes on that was left half-way.

    `runs` are where the genes lie, and the bytes of one, by group.

    Raises `BlockingIOError` if somebody else is at work on the population's file, and `OSError` if no log can be
    written beside it.
    """
    file = written_file(pop.memory)
    if file is None:
        yield _InMemory(plan)
        return
    ahead = ReadAhead(pop, file, plan.tasks, runs)
    with alone_in(file.path, file.number) as is_there, ahead.in_pieces():
        # A file that was replaced is found by nobody, and beside it would be the log of the one in its place.
        yield _InFile(file, ahead, plan, asked(), goes_on) if is_there else _InMemory(plan)
