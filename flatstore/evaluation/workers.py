"""Workers: processes that evaluate the members of a shared population where they lie. No parameter is sent.

```
this process    hands out numbers of members ... | collects fitness | moves the population
worker 1        | member 0 | member 1 | member 4 |
worker 2        | member 2 | member 3   (killed)
worker 3                     starts | member 3   |
```

A worker that dies is replaced, and what it had not answered is evaluated again: by itself, so that a member that kills
its worker is known after a few times.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from flatstore.checks import raise_unless_of_system, whole
from flatstore.evaluation.fitness import fitness_of, refuse_all_nan, refuse_unlendable
from flatstore.evaluation.serving import READY, Evaluate, Failure, serve
from flatstore.layout import Array
from flatstore.store import AnyPopulation, Population
from flatstore.threads import uninterrupted

MOST_DEATHS = 3
"""How many workers may die of one member, or as they start, one after the other."""

_PATIENCE = 1.0  # seconds for workers to leave by themselves


@dataclass(frozen=True)
class Workers:
    """How many processes evaluate members, and how they start. A number stands for as many that are spawned.

    Those that are spawned are new, and import the function that they call. Forked ones begin as copies of this process,
    at once, whatever the function is. But JAX does not support forks: they are for programs that have not used it yet,
    or whose functions do not.

    Raises `ValueError` for a number below 1, and for a way to start that the system does not have.
    """

    count: int
    start: str = "spawn"

    def __post_init__(self) -> None:
        """Check them."""
        if not whole(self.count) >= 1:
            raise ValueError(f"expected workers >= 1, got {self.count!r}; fix: pass how many processes, or None")
        ways = multiprocessing.get_all_start_methods()
        if self.start not in ways:
            raise ValueError(f"start: expected one of {', '.join(ways)}, got {self.start!r}; fix: pass 'spawn'")


def scorer(
    pop: AnyPopulation, evaluate: Callable[..., Any], chunk: int | None, workers: Workers | int | None
) -> Callable[[int], Array]:
    """What evaluates generation n of a population, as `ga.evolve` and `es.evolve` do: n -> fitness, shape (size,).

    Raises, before anything runs, `ValueError` and `TypeError` for arguments that do not fit, and `BufferError` for what
    JAX cannot view or other processes cannot attach to.
    """
    if workers is None:
        refuse_unlendable(pop, chunk)
        return lambda number: fitness_of(pop, evaluate, number, chunk)
    chosen = workers if isinstance(workers, Workers) else Workers(workers)
    if chunk is not None:
        raise ValueError(f"expected no chunk with workers, got {chunk}; fix: leave it out: members come one by one")
    if pop.segment is None or not isinstance(pop, Population):
        raise BufferError(
            "expected a population that other processes can attach to, got one in memory of this process alone; "
            "fix: pop = pop.share(), before the run"
        )
    return _Pool(pop, evaluate, chosen).fitness


class WorkerError(Exception):
    """The traceback of an exception that was raised in a worker: the cause of that exception here."""

    def __str__(self) -> str:
        """The text of the traceback."""
        return "\n" + self.args[0]


class _Worker:
    """A worker, and what it is doing."""

    def __init__(self, context: Any, arguments: tuple[str, Evaluate]) -> None:
        self.connection, self._other = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=serve, args=(*arguments, self._other), name="flatstore worker"
        )
        self.is_ready = False
        self.members: list[int] = []

    def start(self) -> None:
        """Start the process, with Ctrl-C held back there until it serves."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._other.close()

    def begin(self, number: int, members: list[int]) -> None:
        """Have it evaluate members."""
        self.members = members
        try:
            self.connection.send((number, members))
        except (BrokenPipeError, ConnectionResetError) as error:  # it has died: so says what it answers
            raise_unless_of_system(error)

    def answer(self) -> Any:
        """What it says; None if it has died."""

        def received() -> Any:
            try:
                return self.connection.recv()
            except (EOFError, OSError):
                return None

        return uninterrupted(received)


class _Pool:
    """Processes that evaluate the members of one shared population. They start as they are needed.

    They end when this is not used any more, and when an evaluation fails or is interrupted.
    """

    def __init__(self, pop: Population, evaluate: Evaluate, chosen: Workers) -> None:
        self._pop, self._count = pop, int(chosen.count)
        self._context: Any = multiprocessing.get_context(chosen.start)
        if chosen.start != "fork":
            _refuse_unpicklable(evaluate)
            resource_tracker.ensure_running()  # it has nothing to track; but as it starts it unblocks signals
        self._arguments = str(pop.segment), evaluate
        self._workers: list[_Worker] = []
        multiprocessing.util.Finalize(self, _end, (self._workers,), exitpriority=10)

    def fitness(self, number: int) -> Array:
        """The fitness of all members, shape (size,), float64."""
        out = np.empty(self._pop.size)
        try:
            with self._pop.reading():
                _Generation(self._workers, self._new_worker, number, out).run(self._count)
        except BaseException:
            _end(self._workers, now=True)
            raise
        refuse_all_nan(out)
        return out

    def _new_worker(self) -> _Worker:
        return _Worker(self._context, self._arguments)


class _Generation:
    """The evaluation of one generation."""

    def __init__(self, workers: list[_Worker], new_worker: Callable[[], _Worker], number: int, out: Array) -> None:
        self.workers, self.new_worker, self.number, self.out = workers, new_worker, number, out
        self.next, self.left = 0, len(out)
        self.again: list[int] = []
        """Members whose worker has died."""
        self.deaths: dict[int | None, int] = {}
        """How many workers have died of a member; by None, how many as they started, since one has."""

    def run(self, count: int) -> None:
        """Evaluate all members, by up to `count` workers."""
        while len(self.workers) < min(count, len(self.out)):
            self.workers.append(self.new_worker())
            uninterrupted(self.workers[-1].start)  # so it is started, or not; and what forks call would swallow Ctrl-C
        for worker in self.workers:
            self._hand_out(worker)
        while self.left:
            there = wait([worker.connection for worker in self.workers], _PATIENCE)
            for worker in [*self.workers]:
                if worker.connection in there:
                    self._take(worker, worker.answer())
                elif not there and not worker.process.is_alive():  # what it has started keeps its end open
                    self._take(worker, None)

    def _hand_out(self, worker: _Worker) -> None:
        if not worker.is_ready:
            return
        if self.again:
            worker.begin(self.number, [self.again.pop()])
            return
        rest = len(self.out) - self.next
        members = [*range(self.next, self.next + -(-rest // (4 * len(self.workers))))]
        self.next += len(members)
        if members:
            worker.begin(self.number, members)

    def _take(self, worker: _Worker, answer: Any) -> None:
        if answer is None:
            self._replace(worker)
            return
        if answer == READY:
            worker.is_ready = True
            self.deaths.pop(None, None)
        elif isinstance(answer, Failure):
            raise _raised(answer, self.number)
        else:
            self.out[worker.members] = answer
            self.left -= len(worker.members)
            worker.members = []
        self._hand_out(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start another worker in the place of one that has died. Raises `RuntimeError` if too many have."""
        _end([worker], now=True)
        blamed = worker.members[0] if len(worker.members) == 1 else None
        if blamed is not None or not worker.is_ready:
            self.deaths[blamed] = self.deaths.get(blamed, 0) + 1
            if self.deaths[blamed] >= MOST_DEATHS:
                raise _died(worker.process.exitcode, blamed, self.number)
        self.again += worker.members
        place = self.workers.index(worker)
        self.workers[place] = self.new_worker()
        uninterrupted(self.workers[place].start)
        for other in self.workers:
            if not other.members and self.again:
                self._hand_out(other)


def _end(workers: list[_Worker], now: bool = False) -> None:
    """Have workers end: idle ones by themselves, unless it is to be `now`."""

    def end() -> None:
        ended, workers[:] = [*workers], []
        for worker in ended:
            worker.connection.close()
        ended = [worker for worker in ended if worker.process.pid is not None]  # it was interrupted before it started
        for worker in ended:
            if now or worker.members or not worker.is_ready:
                worker.process.kill()
        deadline = time.monotonic() + _PATIENCE
        for worker in ended:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    uninterrupted(end)


def _raised(failure: Failure, number: int) -> BaseException:
    """What evaluating a member has raised, with the worker's traceback as its cause."""
    error: BaseException | None = None if failure.pickled is None else pickle.loads(failure.pickled)
    if not isinstance(error, Exception):  # an exit of the worker is not one of this process
        error = RuntimeError(failure.described)
    error.__cause__ = WorkerError(failure.trace)
    error.add_note(f"it was raised in a worker, as it evaluated member {failure.member} of generation {number}")
    return error


def _died(status: int | None, member: int | None, number: int) -> RuntimeError:
    if member is None:
        return RuntimeError(
            f"expected workers that start, got {MOST_DEATHS} that ended with status {status}; fix: see what they "
            "printed; they import the function, and the program: start that under if __name__ == '__main__'"
        )
    return RuntimeError(
        f"expected a function that returns, got one whose worker died {MOST_DEATHS} times (status {status}) of member "
        f"{member} of generation {number}; fix: evaluate this member by itself, evaluate(pop[{member}], {number})"
    )


def _refuse_unpicklable(evaluate: Evaluate) -> None:
    """Raise `TypeError` unless other processes can import a function."""
    try:
        ForkingPickler.dumps(evaluate)
    except Exception as error:
        raise TypeError(
            f"expected a function that other processes can import, got {evaluate!r} ({error}); fix: define it at the "
            "top of a module, or fork the workers: fs.Workers(2, start='fork')"
        ) from error
