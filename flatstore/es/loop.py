"""The loop of `evolve`, whoever evaluates: seeds go out, fitness comes back, and the centre moves."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, cast

import numpy as np

from flatstore.es.groups import trainable_leaves
from flatstore.es.journal import Move, is_whole, move_of
from flatstore.es.kept_runs import KeptRun
from flatstore.es.optimisers import Optimiser
from flatstore.es.ranks import centred_ranks
from flatstore.evaluation import (
    Rate,
    as_fitness,
    check_run,
    handed_out,
    rate_at,
    refuse_all_nan,
    refuse_two_starts,
    resumed_number,
    way_on,
)
from flatstore.layout import Array, as_array
from flatstore.noise import Noise, Seed, seeds
from flatstore.recording import RunPath
from flatstore.store import AnyStore
from flatstore.threads import rounded_to_nearest

Score = Callable[[int, Array], Any]
"""(number of the generation, seeds of its pairs) -> fitness, or (fitness, which members are missing)."""


def evolve_by(
    score: Score,
    centre: AnyStore,
    *,
    seed: Seed,
    noise: Noise,
    members: int,
    rate: Rate,
    optimiser: Optimiser | None = None,
    shape: Callable[[Any], Any] = centred_ranks,
    generations: int | None = None,
    resume: Move | int | None = None,
    run: RunPath | None = None,
    told: Callable[[Move], object] = bool,
) -> Generator[Move]:
    """`evolve` by fitness that comes from elsewhere, such as an engine that runs on many machines.

    There is no population here: whoever evaluates has the centre, too, and makes member 2 i of it plus the noise of
    seed i, and member 2 i + 1 minus it, as `sample` does. Seeds, moves and folders are those of `evolve`, so that a run
    that was begun by one goes on by the other.

    >>> import flatstore as fs
    >>> centre, noise = fs.Store.from_tree({"w": np.zeros(8, "f4")}), fs.Normal(0.3)
    >>> def score(number, seeds):
    ...     pop = fs.Population.like(centre, 2 * len(seeds))
    ...     fs.es.sample(pop, centre, noise, seeds, antithetic=True)
    ...     return -np.square(pop["w"] - 3).sum(axis=1)
    >>> for move in evolve_by(score, centre, seed=0, noise=noise, members=32, rate=5.0, generations=80):
    ...     pass
    >>> bool(abs(centre["w"] - 3).max() < 0.3)
    True

    Args:
        score: `(generation, seeds) -> fitness`, for seeds of shape (members / 2,), uint64: a real number for each
            member. Or `(fitness, missing)`: `missing` says which members' fitness did not come, shape (members,), bool.
            A pair of which one is missing does not count, and stands in the record; NaN is the worst fitness.
        centre: the parameters, as in `evolve`.
        seed: a non-negative integer or several.
        noise: the difference between a member and the centre.
        members: their number, even.
        rate: the learning rate, or a function of the generation's number that returns it.
        optimiser: as in `evolve`.
        shape: as in `evolve`; it is given the fitness of the pairs that count.
        generations: the total number, or None.
        resume: the last record, or the number of the generation to continue with.
        run: a folder that keeps the run.
        told: called with each record when it is on the disk, just before the centre is moved: others may move theirs.

    Raises the errors of `evolve`; `ValueError` for a fitness of the wrong shape, not real, or without a number in any
    pair that counts.
    """
    return Loop(
        centre,
        score,
        seed=seed,
        noise=noise,
        members=members,
        rate=rate,
        optimiser=optimiser,
        shape=shape,
        generations=generations,
        resume=resume,
        run=run,
    ).moves(score, told=told)


class Loop:
    """A run of `evolve` that is about to begin: its arguments, checked."""

    members: int

    def __init__(
        self,
        centre: AnyStore,
        evaluate: Any,
        *,
        seed: Seed,
        noise: Noise,
        members: int,
        rate: Rate,
        optimiser: Optimiser | None,
        shape: Callable[[Any], Any],
        generations: int | None,
        resume: Move | int | None,
        run: RunPath | None,
        chunk: int | None = None,
    ) -> None:
        self.start: int = resume.number + 1 if isinstance(resume, Move) else resumed_number(resume)
        refuse_two_starts(run, resume)
        self.seed: tuple[int, ...] = check_run(evaluate, seed, generations, "generations")
        rate_at(rate, self.start)
        if not callable(shape):
            raise TypeError(f"expected a function of fitness to shape with, got {shape!r}; fix: pass es.centred_ranks")
        whole: tuple[Any, ...] = int, np.integer
        if not isinstance(members, whole) or members < 2 or members % 2:
            raise ValueError(
                f"expected an even number of members, 2 or more, got {members}; "
                "fix: pass an even number; members are evaluated in pairs of opposite noise"
            )
        if not isinstance(centre, AnyStore):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"expected a Store as centre, got {type(centre).__name__}; fix: Store.from_tree(tree)")
        self._move = move_of(centre, noise, optimiser)
        trainable_leaves(centre)
        self.members, self._rate, self._shape, self._optimiser = int(members), rate, shape, optimiser
        self._generations, self._run = generations, run
        settings = dict(algorithm="es.evolve", seed=self.seed, noise=noise, members=members, rate=rate, shape=shape)
        self._kept = KeptRun(run, centre, optimiser, settings | {"chunk": chunk})

    def moves(
        self,
        score: Score,
        *,
        told: Callable[[Move], object] = bool,
        again: Callable[[Move], object] = bool,
        begin: Callable[[], object] = bool,
    ) -> Generator[Move]:
        """The records, one by one.

        `again` is called with the last move of the run's folder, before it is made again; `begin` before the first
        generation.
        """
        kept, run, optimiser = self._kept, self._run, self._optimiser
        moving = False

        def move(record: Move, step: float, then: Callable[[], object]) -> None:
            told(record)
            self._move(record.seeds, record.weights, step, then)

        def move_centre(n: int, hand_in: Callable[[Move], None]) -> None:
            nonlocal moving
            kept.snapshot()
            keys, step = seeds((*self.seed, n), self.members // 2), rate_at(self._rate, n)
            fitness, missing = self._checked(score(n, keys))
            weights = self._weights(fitness, missing, step if optimiser is None else 1)
            record = Move(n, fitness, keys, weights, None if optimiser is None else step, missing)
            moving = True
            kept.make(record, partial(move, record, step), hand_in)
            moving = False

        def unmoved(n: int, error: BaseException) -> Iterator[str]:
            if moving and not is_whole(optimiser):
                last = "of the last record" if run is None else "that the run began with"
                yield (
                    f"the optimiser's step in generation {n} did not end, and may have moved the centre; "
                    f"fix: go back to the centre and the optimiser {last}, and evolve(..., {way_on(run, n)})"
                )
            else:
                yield f"the centre is as generation {n} found it; fix: evolve(..., {way_on(run, n)}) goes on"

        def moved(n: int) -> str:
            return f"generation {n} has moved the centre; fix: evolve(..., {way_on(run, n + 1)}) goes on"

        with kept:
            last = kept.restored(again, self._move, self._generations)
            begin()
            start = self.start if last is None else last.number + 1
            until = kept.until_dropped()
            return handed_out(start, self._generations, move_centre, unmoved, moved, again=last, until=until)

    def _checked(self, scored: Any) -> tuple[Array, Array | None]:
        """The fitness of all members, and which are missing, if any are."""
        given, missing = cast(tuple[Any, Any], scored) if isinstance(scored, tuple) else (scored, None)
        fitness = as_fitness(given, self.members)
        if missing is None or not np.any(missing):
            return fitness, None
        marks = as_array(missing, "missing")
        if marks.shape != fitness.shape or marks.dtype != np.bool_:
            raise ValueError(
                f"expected which members are missing, bool of shape ({self.members},), got {marks.dtype} of shape "
                f"{marks.shape}; fix: return fitness, missing"
            )
        return np.where(marks, np.nan, fitness), marks

    def _weights(self, fitness: Array, missing: Array | None, rate: float) -> Array:
        """The weight of each pair in a move, shape (members / 2,): 0 where one of them is missing."""
        counts = np.ones(len(fitness) // 2, bool) if missing is None else ~(missing[0::2] | missing[1::2])
        if not counts.any():
            there = 0 if missing is None else int((~missing).sum())
            raise ValueError(
                f"expected the fitness of both members of a pair, got that of {there} members, no two of one pair; "
                "fix: wait for more of them"
            )
        scores = fitness[np.repeat(counts, 2)]
        refuse_all_nan(scores)
        return _weights(_shaped(self._shape, scores), counts, rate)


@rounded_to_nearest
def _weights(shaped: Array, counts: Array, rate: float) -> Array:
    weights = np.zeros(len(counts))
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused
        weights[counts] = (shaped[0::2] - shaped[1::2]) / len(shaped)
        return weights * rate


def _shaped(shape: Callable[[Any], Any], fitness: Array) -> Array:
    shaped = as_array(shape(fitness.copy()), "shape")
    if shaped.shape != fitness.shape or shaped.dtype.kind not in "fiu" or not np.isfinite(shaped).all():
        raise ValueError(
            f"expected {len(fitness)} finite numbers from shape, got {shaped.dtype} of shape {shaped.shape}"
            f"{' with others' if shaped.shape == fitness.shape else ''}; fix: pass a function such as es.centred_ranks"
        )
    return shaped.astype(np.float64)
