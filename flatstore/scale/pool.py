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
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flatstore.checks import real
from flatstore.es import Move
from flatstore.evaluation import MOST_DEATHS, WorkerError
from flatstore.extras import require
from flatstore.layout import Array
from flatstore.scale.replica import Held, Job, Replica, State, Told, arriving, cause_of, end, told
from flatstore.scale.tally import Counts, Tally

KEPT = 500
"""Moves that the driver keeps: a worker that is further behind is given a snapshot of the driver's centre first."""

PATIENCE = 60.0
"""Seconds in which a worker has to say, at the end, which bits it has."""

Asked = tuple[Sequence[Told], int, Sequence[int], bool]
"""Moves to make, the generation that they lead to, which of its members to evaluate, and whether to say the digest."""

Answer = tuple[bytes | None, int | None]
"""Their fitness, float64, and the digest; None for a centre that cannot make the moves."""


class Worker:
    """What runs in a worker. It makes its centre when first asked, so that errors of `make` arrive as they are."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._replica: Replica | None = None

    def place(self) -> str:
        """Where it is; an answer says that it has started."""
        return f"pid {os.getpid()} on {socket.gethostname()}"

    @arriving
    def evaluate(self, state: State | None, asked: Asked) -> Answer:
        """Catch up with a generation, and return the fitness of members and the digest of the centre."""
        moves, number, members, with_digest = asked
        if self._replica is None:
            self._replica = Replica(self._job)
        replica = self._replica
        if state is not None:
            replica.restore(state)
        try:
            replica.follow(moves)
        except ValueError:  # a bit has flipped: the driver has made these moves
            return None, None
        assert replica.number == number, (replica.number, number)
        fitness = replica.fitness(members)
        return fitness.tobytes(), replica.digest() if with_digest else None


class _Handle:
    """A worker, as the driver sees it."""

    def __init__(self, name: str, actor: Any, died_before: int) -> None:
        self.name, self.actor, self.died_before = name, actor, died_before
        self.is_ready, self.is_busy = False, False
        self.at = 0
        self.members: Sequence[int] = ()


class Pool:
    """The workers of one run."""

    def __init__(
        self,
        job: Job,
        held: Held,
        generations: int | None,
        options: Mapping[str, Any],
        *,
        workers: int | None,
        batch: int,
        verify: int,
        min_fraction: float,
    ) -> None:
        self._ray = require("ray", "ray")
        self._job, self._held, self._generations, self._wanted = job, held, generations, workers
        self._batch, self._verify, self._min_fraction = batch, verify, min_fraction
        default, fixed = {"num_cpus": 1, "enable_task_events": False}, {"max_restarts": 0, "max_task_retries": 0}
        self._options: dict[str, Any] = {**default, **options, **fixed}
        if workers is None and not real(self._options["num_cpus"]) > 0:
            raise ValueError(
                f"expected num_cpus > 0, by which workers are counted, got {self._options['num_cpus']!r}; "
                "fix: pass workers="
            )
        self.counts: Counts = Counts()
        self._workers: list[_Handle] = []
        self._tally = Tally(-1, 0, self.counts)
        self._moves: deque[Told] = deque(maxlen=KEPT)
        self._snapshot: tuple[int, Any] = -1, None
        self._running: dict[Any, _Handle] = {}
        self._made, self._differ = 0, 0
        self._deaths: dict[int | None, int] = {}

    # -- what the loop calls

    def score(self, number: int, keys: Array) -> tuple[Array, Array]:
        """The fitness of the members of a generation, and which of them were not waited for."""
        if number != self._tally.number:
            self._open(number)
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
            self._open(move.number + 1)
            self._hand_out(stands_still=False)

    def check(self, number: int) -> None:
        """Compare the bits of all who have evaluated and are idle after the last move; stop those that differ."""
        truth = self._held.digest()
        self._tally = Tally(number, 0, self.counts)
        asked = [worker for worker in self._workers if worker.members and not worker.is_busy]
        for worker in asked:
            self._ask(worker, ())
        while any(worker.is_busy for worker in asked if worker in self._workers):
            if not self._take(truth, PATIENCE):
                break

    def close(self) -> None:
        """End all workers."""
        while self._workers:
            end(self._ray, self._workers.pop().actor)

    # -- what workers are asked

    def _open(self, number: int) -> None:
        self._tally, self._deaths = Tally(number, self._job.members, self.counts), {}
        self._grow()

    def _grow(self) -> None:
        """Start workers where there were some, and on nodes that have joined."""
        wanted = self._wanted
        if not (self._made or self._ray.is_initialized()):
            self._ray.init()
        if wanted is None:
            wanted = int(self._ray.cluster_resources().get("CPU", 0) // self._options["num_cpus"])
            if not wanted and not self._made:
                raise ValueError(
                    "expected a cluster with CPUs for workers, got none; fix: add a node, or pass workers="
                )
        while len(self._workers) < wanted:
            self._made += 1
            actor = self._ray.remote(Worker).options(**self._options).remote(self._job)
            worker = _Handle(f"worker {self._made}", actor, self._deaths.get(None, 0))
            self._workers.append(worker)
            self._running[actor.place.remote()] = worker

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
        self._running[worker.actor.evaluate.remote(state, (moves, number, members, with_digest))] = worker

    # -- what they answer

    def _take(self, truth: int | None, seconds: float = 1.0) -> bool:
        """Take the next answer, if one comes in time."""
        ready: list[Any] = []
        if self._running:
            ready, _ = self._ray.wait([*self._running], timeout=seconds)
        else:
            time.sleep(seconds)  # all nodes have left
        if not ready:
            self._grow()
            return False
        worker = self._running.pop(ready[0])
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            raise cause_of(error) from WorkerError(str(error))
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

    def _answered(self, worker: _Handle, answer: Answer, truth: int | None) -> None:
        fitness, digest = answer
        worker.is_busy = False
        is_compared = worker.at == self._tally.number and truth is not None
        if fitness is None or (is_compared and digest != truth):
            self._stop(worker)
            return
        if is_compared:
            self._differ = 0
        self._tally.take(worker.at, worker.members, np.frombuffer(fitness))

    def _stop(self, worker: _Handle) -> None:
        """End a worker whose centre is not that of the driver. What it has evaluated does not count."""
        what = f"{worker.name}: its centre has other bits than the driver's in generation {worker.at}"
        self.counts.stopped.append(what)
        end(self._ray, worker.actor)
        self._replace(worker)
        self._differ += 1
        if self._differ >= MOST_DEATHS:
            raise RuntimeError(
                f"expected workers with the driver's bits, got {self._differ} in a row with others, the last {what}; "
                "fix: make() has to return the same centre in every process; if it does, the driver's has changed"
            )
        warnings.warn(f"stopped {what}", RuntimeWarning, stacklevel=2)

    def _died(self, worker: _Handle, error: BaseException) -> None:
        """Raises `RuntimeError` if too many have died of the same member, or as they start, one after the other.

        Those that start together and die together, such as on a node that goes, count as one.
        """
        self.counts.deaths += 1
        end(self._ray, worker.actor)  # who cannot be reached may be alive
        blamed = worker.members[0] if len(worker.members) == 1 and worker.at == self._tally.number else None
        if blamed is not None or (not worker.is_ready and worker.died_before == self._deaths.get(None, 0)):
            self._deaths[blamed] = self._deaths.get(blamed, 0) + 1
            if self._deaths[blamed] >= MOST_DEATHS:
                what = f"of member {blamed} of generation {worker.at}; fix: evaluate it in a process of your own"
                if blamed is None:
                    what = "as they start; fix: see the cause: what make needs has to be on every node"
                raise RuntimeError(f"expected workers that go on, got {MOST_DEATHS} that died {what}") from error
        self._replace(worker)

    def _replace(self, worker: _Handle) -> None:
        self._workers.remove(worker)
        self.counts.workers -= worker.is_ready
        if worker.at == self._tally.number:
            self._tally.put_back(worker.members)
        self._grow()
