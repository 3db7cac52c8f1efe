"""Evolution on Ray: seeds and fitness travel, and the centre is the same everywhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from flatstore import es
from flatstore.checks import real, whole
from flatstore.es import Move
from flatstore.evaluation import Rate, check_run
from flatstore.noise import Noise, Seed
from flatstore.recording import RunPath
from flatstore.scale.islands import champion as champion
from flatstore.scale.islands import islands as islands
from flatstore.scale.pool import Pool
from flatstore.scale.replica import Held, Job, Make
from flatstore.scale.tally import Counts as Counts
from flatstore.store import Store


def evolve(
    make: Make,
    *,
    seed: Seed,
    noise: Noise,
    members: int,
    rate: Rate,
    optimiser: Callable[[Store], Any] | None = None,
    shape: Callable[[Any], Any] = es.centred_ranks,
    generations: int | None = None,
    run: RunPath | None = None,
    workers: int | None = None,
    batch: int = 1,
    min_fraction: float = 1.0,
    verify: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Evolution:
    """`es.evolve` on a Ray cluster: an iterator of its moves, with the bits of `es.evolve` in one process.

    Each worker has the centre. It is told the weights of each move, makes the noise again, and moves its own; members
    are evaluated by whoever is free. So what travels in a generation is 4 bytes a member to each worker and 8 bytes a
    member back, whatever the number of parameters. A worker may die at any moment, and others may join: they are given
    a snapshot of this process's centre and the moves since. If this process has joined no cluster, `ray.init()` finds
    one, or starts one on this machine.

        def make():
            return fs.Store.from_tree(model()), lambda member, generation: episode(member)

        run = fs.scale.ray.evolve(make, seed=0, noise=fs.Normal(0.02), members=256, rate=1.0, generations=100)
        for move in run:
            print(move, run.counts)
        fs.save("champion.safetensors", run.centre)

    Args:
        make: a function that returns `(centre, evaluate)`, or its name, "module:function". It is called in each worker,
            and in this process, which evaluates nothing: what is heavy may wait for the first evaluation. The centre is
            the same wherever it is made. `evaluate(member, generation) -> float` is that of `es.evolve(workers=...)`:
            the member is a store, to be read.
        seed: as in `es.evolve`, as are the next eight: the same run comes of them.
        noise: the difference between a member and the centre.
        members: their number, even.
        rate: the learning rate, or a function of the generation's number.
        optimiser: `es.Adam` or `es.Momentum`, the class or a `functools.partial` of it; None to move along the
            gradient itself.
        shape: a function of fitness. With `shape=np.array`, fitness itself, this is MeZO with `members / 2` seeds.
        generations: the total number; None to go on until the caller stops.
        run: a folder that keeps the run, on a disk of this process. The same call goes on from there, on other machines
            too, and so does `es.evolve`.
        workers: how many; None for as many as the cluster has CPUs for, counted anew in each generation.
        batch: how many members a worker is handed at a time: more if an evaluation takes less than a few milliseconds.
        min_fraction: the share of members with which a generation is closed, once all are handed out; above 0.5. Those
            that have not come are `Move.missing`.
        verify: a worker says which bits it has in each generation whose number is a multiple of this, and at the end.
            If they are not this process's, it is stopped, and named in a warning; what it evaluated then does not
            count.
        options: options of Ray's actors, such as `{"num_gpus": 1}`; `num_cpus` is 1.

    Returns an `Evolution`. Raises the errors of `es.evolve`; ImportError without Ray; `RuntimeError` if three workers
    have died of one member, or as they start, or three in a row have other bits. What an evaluation raises is raised
    here, with the worker's traceback as its cause. The centre is then as the notes say, and the run goes on from its
    folder.
    """
    counts: dict[str, Any] = {"workers": workers, "batch": batch, "verify": verify}
    for name, value in counts.items():
        if (value is not None or name != "workers") and not whole(value) >= 1:
            raise ValueError(f"expected {name} >= 1, got {value!r}; fix: leave {name}= out, for the default")
    if not 0.5 < real(min_fraction) <= 1:
        raise ValueError(
            f"expected min_fraction above 0.5, up to 1, got {min_fraction!r}; "
            "fix: wait for more than half of the members: then both of some pair are there"
        )
    job = Job(make, noise, optimiser, check_run(bool, seed, generations, "generations"), members)
    held = Held(job)
    pool = Pool(job, held, generations, options or {}, **counts, min_fraction=min_fraction)
    asked: dict[str, Any] = dict(seed=seed, noise=noise, members=members, rate=rate, shape=shape, run=run)
    asked |= dict(generations=generations, optimiser=held.optimiser, told=pool.told)
    return Evolution(held, pool, es.evolve_by(pool.score, held.centre, **asked))


class Evolution(Iterator[Move], AbstractContextManager["Evolution"]):
    """A run on Ray: an iterator of its moves. Its workers end when it is over, closed, or not used any more."""

    def __init__(self, held: Held, pool: Pool, moves: Any) -> None:
        self._held, self._pool, self._moves = held, pool, moves
        self._next: int | None = None
        weakref.finalize(self, pool.close).atexit = False  # then Ray ends them

    @property
    def centre(self) -> Store:
        """The centre, as the last move has left it."""
        return self._held.centre

    @property
    def optimiser(self) -> Any:
        """The optimiser, or None."""
        return self._held.optimiser

    @property
    def counts(self) -> Counts:
        """What has become of workers and results so far."""
        return self._pool.counts

    def close(self) -> None:
        """End the workers, and let others go on with the run's folder."""
        self._moves.close()
        self._pool.close()

    def __next__(self) -> Move:
        try:
            move = next(self._moves)
        except StopIteration:
            try:
                if self._next is not None:
                    self._pool.check(self._next)
            finally:
                self.close()
            raise
        except BaseException:
            self.close()
            raise
        self._next = move.number + 1
        return move

    def __exit__(self, *error: object) -> None:
        self.close()
