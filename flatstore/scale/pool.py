"""Workers on Ray, each with the centre: members go to whoever is free, and what a dead worker had goes to others.

```
driver      move n on the disk | members of n + 1 go out | move n | takes fitness, checks digests ... | move n + 1 ...
worker 1                          | move n | member 0 | member 3 |
worker 2                          | move n | member 1   (killed)
worker 3                             starts | snapshot, moves | member 1 |
```

Queues, placement and transport are Ray's. A worker is an actor that is never restarted: another one takes its place,
and is handed members when it has said that it is there. So none wait for a node that has gone.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from flatstore.es import Move
from flatstore.evaluation import MOST_DEATHS
from flatstore.extras import require
from flatstore.layout import Array
from flatstore.scale.replica import Held, Job, Replica, State, Told, cause_of, told
from flatstore.scale.tally import Counts, Tally

KEPT = 500
"""Moves that the driver keeps: a worker that is further behind is given a snapshot of the driver's centre first."""

PATIENCE = 60.0
"""Seconds in which a worker has to say, at the end, which bits it has."""


class Worker:
    """What runs in a worker. It makes its centre when first asked, so that errors of `make` arrive as they are."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._replica: Replica | None = None

    def place(self) -> str:
        """Where it is; an answer says that it has started."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    def evaluate(
        self, state: State | None, moves: Sequence[Told], number: int, members: Sequence[int], with_digest: bool
    ) -> tuple[bytes, int | None]:
        """Catch up with generation `number`, and return the fitness of members and the digest of the centre."""
        if self._replica is None:
            self._replica = Replica(self._job)
        replica = self._replica
        if state is not None:
            replica.restore(state)
        replica.follow(moves)
        assert replica.number == number, (replica.number, number)
        fitness = replica.fitness(members)
        return fitness.tobytes(), replica.digest() if with_digest else None


class _Handle:
    """A worker, as the driver sees it."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name, self.actor = name, actor
        self.is_ready, self.is_busy = False, False
        self.at = 0
        self.members: Sequence[int] = ()


class Pool:
    """The workers of one run."""

    def __init__(
        self,
        job: Job,
        held: Held,
        *,
        workers: int | None,
        batch: int,
        min_fraction: float,
        verify: int,
        generations: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self._ray = require("ray", "ray")
        self._job, self._held, self._wanted, self._batch = job, held, workers, batch
        self._min_fraction, self._verify, self._generations = min_fraction, verify, generations
        self._options = {"num_cpus": 1, **options, "max_restarts": 0, "max_task_retries": 0}
        self.counts = Counts()
        self._workers: list[_Handle] = []
        self._tally = Tally(-1, 0, self.counts)
        self._moves: deque[Told] = deque(maxlen=KEPT)
        self._snapshot: tuple[int, Any] = -1, None
        self._answers: SimpleQueue[tuple[_Handle, Any]] = SimpleQueue()
        self._made, self._differ = 0, 0
        self._deaths: dict[int | None, int] = {}

    # -- what the loop calls

    def score(self, number: int, keys: Array) -> tuple[Array, Array]:
        """The fitness of the members of a generation, and which of them were not waited for."""
        if number != self._tally.number:
            self._open(number, self._job.members)
        truth = self._held.digest() if number % self._verify == 0 else None
        self._hand_out()
        while not self._tally.is_enough(self._min_fraction):
            self._take(truth)
            self._hand_out()
        missing = ~self._tally.has_come
        self.counts.missing += int(missing.sum())
        return self._tally.fitness, missing

    def told(self, move: Move) -> None:
        """Have the workers make a move and begin with the next generation, while the driver makes it, too."""
        self._moves.append(told(move))
        if self._generations is None or move.number + 1 < self._generations:
            self._open(move.number + 1, self._job.members)
            self._hand_out(stands_still=False)

    def check(self, number: int) -> None:
        """Compare the bits of all workers that are idle after the last move. Those that differ are stopped."""
        truth = self._held.digest()
        self._tally = Tally(number, 0, self.counts)
        asked = [worker for worker in self._workers if worker.is_ready and not worker.is_busy]
        for worker in asked:
            self._ask(worker, ())
        while any(worker.is_busy for worker in asked if worker in self._workers):
            if not self._take(truth, PATIENCE):
                break

    def close(self) -> None:
        """End all workers."""
        while self._workers:
            self._ray.kill(self._workers.pop().actor)

    # -- what workers are asked

    def _open(self, number: int, members: int) -> None:
        self._tally, self._deaths = Tally(number, members, self.counts), {}
        self._grow()

    def _grow(self) -> None:
        """Start workers where there were some, and on nodes that have joined."""
        wanted = self._wanted
        if wanted is None:
            wanted = int(self._ray.cluster_resources().get("CPU", 0) // self._options["num_cpus"])
            if not wanted and not self._made:
                raise ValueError(
                    "expected a cluster with CPUs for workers, got none; fix: add a node, or pass workers="
                )
        while len(self._workers) < wanted:
            self._made += 1
            actor = self._ray.remote(Worker).options(**self._options).remote(self._job)
            worker = _Handle(f"worker {self._made}", actor)
            self._workers.append(worker)
            self._when_done(worker, actor.place.remote())

    def _hand_out(self, *, stands_still: bool = True) -> None:
        """Hand members to all who are free; who needs a snapshot has to wait until the centre stands still."""
        for worker in self._workers:
            if worker.is_ready and not worker.is_busy and (stands_still or self._leads_on(worker.at)):
                if members := self._tally.next(self._batch):
                    self._ask(worker, members)

    def _leads_on(self, at: int) -> bool:
        """Whether the moves that are kept lead from there to this generation."""
        return at == self._tally.number or (bool(self._moves) and self._moves[0][0] <= at)

    def _ask(self, worker: _Handle, members: Sequence[int]) -> None:
        number, state = self._tally.number, None
        if not self._leads_on(worker.at):
            if not self._leads_on(self._snapshot[0]):
                self._snapshot = number, self._ray.put(self._held.state(number))
            worker.at, state = self._snapshot
        moves = [move for move in self._moves if move[0] >= worker.at]
        worker.at, worker.members, worker.is_busy = number, members, True
        with_digest = number % self._verify == 0 or not members
        self._when_done(worker, worker.actor.evaluate.remote(state, moves, number, members, with_digest))

    def _when_done(self, worker: _Handle, answer: Any) -> None:
        answer.future().add_done_callback(partial(self._put, worker))  # in a thread of Ray's

    def _put(self, worker: _Handle, done: Any) -> None:
        self._answers.put((worker, done))

    # -- what they answer

    def _take(self, truth: int | None, seconds: float = 1.0) -> bool:
        """Take the next answer, if one comes in time."""
        try:
            worker, done = self._answers.get(timeout=seconds)
        except Empty:
            self._grow()
            return False
        if worker not in self._workers:
            return True
        try:
            answer = done.result()
        except self._ray.exceptions.RayTaskError as error:
            raised = cause_of(error)
            raise raised from raised.__cause__
        except self._ray.exceptions.RayError as error:
            self._died(worker, error)
            return True
        if worker.is_ready:
            self._answered(worker, answer, truth)
        else:
            worker.is_ready, worker.name = True, f"{worker.name} ({answer})"
            self.counts.workers += 1
            self._deaths.pop(None, None)
        return True

    def _answered(self, worker: _Handle, answer: tuple[bytes, int | None], truth: int | None) -> None:
        fitness, digest = answer
        worker.is_busy = False
        if worker.at == self._tally.number and truth is not None:
            if digest != truth:
                self._stop(worker)
                return
            self._differ = 0
        self._tally.take(worker.at, worker.members, np.frombuffer(fitness))

    def _stop(self, worker: _Handle) -> None:
        """End a worker whose centre is not that of the driver. What it has evaluated does not count."""
        what = f"{worker.name}: its centre has other bits than the driver's in generation {worker.at}"
        self.counts.stopped.append(what)
        self._ray.kill(worker.actor)
        self._replace(worker)
        self._differ += 1
        if self._differ >= MOST_DEATHS:
            raise RuntimeError(
                f"expected workers with the driver's bits, got {self._differ} in a row with others, the last {what}; "
                "fix: make() has to return the same centre in every process; if it does, the driver's has changed"
            )
        warnings.warn(f"stopped {what}", RuntimeWarning, stacklevel=2)

    def _died(self, worker: _Handle, error: BaseException) -> None:
        """Raises `RuntimeError` if too many have died of the same member, or as they start."""
        self.counts.deaths += 1
        self._ray.kill(worker.actor)  # who cannot be reached may be alive
        blamed = worker.members[0] if len(worker.members) == 1 and worker.at == self._tally.number else None
        if blamed is not None or not worker.is_ready:
            self._deaths[blamed] = self._deaths.get(blamed, 0) + 1
            if self._deaths[blamed] >= MOST_DEATHS:
                what = "as they start" if blamed is None else f"of member {blamed} of generation {worker.at}"
                raise RuntimeError(
                    f"expected workers that go on, got {MOST_DEATHS} that died {what}; "
                    "fix: see what they printed, and evaluate this member in a process of your own"
                ) from error
        self._replace(worker)

    def _replace(self, worker: _Handle) -> None:
        self._workers.remove(worker)
        self.counts.workers -= worker.is_ready
        if worker.at == self._tally.number:
            self._tally.put_back(worker.members)
        self._grow()
