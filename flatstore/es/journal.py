"""Journals: the seeds and weights that moved a centre are enough to move another one to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatstore.checks import real
from flatstore.es.groups import on_host, refuse_not_finite, trainable_groups, zeros_beside
from flatstore.es.optimisers import Adam, Compiled, Momentum, Optimiser
from flatstore.es.perturbing import as_one
from flatstore.es.updating import update
from flatstore.es.weights import fixed_point, refuse_infinite
from flatstore.evaluation import as_fitness
from flatstore.layout import Array, as_array
from flatstore.memory import write
from flatstore.noise import Noise, as_keys
from flatstore.store import AnyStore, moves_of
from flatstore.threads import noted


@dataclass(frozen=True, eq=False, repr=False)
class Move:
    """The record of one move of a centre: a generation of `evolve` or a step of `mezo`.

    Its arrays are read-only, and it can be pickled. `entry` is the part that a journal needs, as lists and numbers.
    Raises `ValueError` for a fitness that is no vector of real numbers, or that float64 would round, and for weights
    that are not finite.
    """

    number: int
    """The number of the generation or step, counted from 0."""
    fitness: Array
    """The fitness of each member, shape (members,), float64; for `mezo` that of the two sides, shape (2,)."""
    seeds: Array
    """The seeds of the noise that was added, shape (n,), uint64."""
    weights: Array
    """The weight of each seed, shape (n,), float64, in the move of the centre or in the optimiser's gradient."""
    rate: float | None = None
    """The rate that the optimiser was given; None without one."""
    missing: Array | None = None
    """Which members' fitness did not come, shape (members,), bool; it is NaN, and their pairs have no weight. None if
    all came."""

    def __post_init__(self) -> None:
        weights = np.array(self.weights, np.float64)
        refuse_infinite(weights)
        for name, array in (
            ("fitness", as_fitness(self.fitness)),
            ("seeds", as_keys(self.seeds)),
            ("weights", weights),
            ("missing", None if self.missing is None else np.array(self.missing, np.bool_)),
        ):
            if array is not None:
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    def __reduce__(self) -> Any:
        values = self.number, self.fitness, self.seeds, self.weights, self.rate, self.missing
        return Move, values  # an array unpickles writeable

    @property
    def entry(self) -> list[Any]:
        """[seeds, weights], and the rate if there is one: plain lists and numbers."""
        return [self.seeds.tolist(), self.weights.tolist(), *([] if self.rate is None else [self.rate])]

    @property
    def max(self) -> float:
        """The highest fitness."""
        return float(np.nanmax(self.fitness))

    @property
    def mean(self) -> float:
        """The mean fitness, without NaN."""
        with np.errstate(invalid="ignore"):  # of opposite infinities
            return float(np.nanmean(self.fitness))

    def __repr__(self) -> str:
        """One line, as for a log."""
        return f"move {self.number}: best {self.max:.6g}, mean {self.mean:.6g}, {len(self.seeds)} seeds"


def replay(store: AnyStore, noise: Noise, journal: Iterable[Any], *, optimiser: Optimiser | None = None) -> None:
    """Repeat the moves of a journal on a store, in place: from a run's first centre to its last, to the bit.

    Nothing is evaluated. A journal may be kept or sent: every process that has the same centre and receives the same
    seeds and weights holds the same centre from then on.

    >>> import json, flatstore as fs
    >>> from flatstore import es
    >>> noise = fs.Normal(0.1)
    >>> one, other = (fs.Store.from_tree({"w": np.zeros(4, "f4")}) for _ in range(2))
    >>> moves = es.mezo(one, lambda params, n: -abs(params["w"] - 1).sum(), seed=3, noise=noise, rate=1.0, steps=20)
    >>> journal = json.dumps([move.entry for move in moves])
    >>> es.replay(other, noise, json.loads(journal))
    >>> one.flat.tobytes() == other.flat.tobytes()
    True

    Args:
        store: the centre as it was before the first move of the journal.
        noise: the noise of the run.
        journal: the records that `evolve` or `mezo` yielded, or `(seeds, weights)` for each of them, or
            `(seeds, weights, rate)` if there is an optimiser. A single seed and weight may be plain numbers.
        optimiser: the run's optimiser, over this store, in the state that it had before the first move.

    Raises `ValueError` for a malformed entry, before anything is written, and whatever `es.update` and the optimiser
    raise.
    """
    entries = [_entry(noise, i, entry, optimiser is not None) for i, entry in enumerate(journal)]
    done = 0

    def count() -> None:
        nonlocal done
        done += 1

    def state(error: BaseException) -> Iterator[str]:
        unknown = "" if is_whole(optimiser) else ", and the optimiser's step may have moved the store in the next"
        yield f"{done} of {len(entries)} entries were replayed{unknown}"

    with noted(state):
        move = move_of(store, noise, optimiser)
        for entry in entries:
            move(*entry, count)


def is_whole(optimiser: Optimiser | None) -> bool:
    """Whether a move that fails has not begun: not known if the optimiser, or its `step`, is the user's own."""
    return optimiser is None or type(optimiser) in (Adam, Momentum)


def move_of(
    store: AnyStore, noise: Noise, optimiser: Optimiser | None
) -> Callable[[Any, Any, Any, Callable[[], object]], None]:
    """A function of seeds, weights and a rate that moves a store. The store and the optimiser are checked at once.

    It takes a function, too, that is called when the store has moved: uninterrupted, so that it is always known.
    """
    nothing = np.zeros(0, np.uint64)
    if (kind := moves_of(store)) is not None:
        kind.check(store, noise)
        kind.check_values(store, noise if optimiser is None else None)
    else:
        host = on_host(store)
        groups = host.cached("trainable", lambda: trainable_groups([host]))
        write([host.memory], lambda: refuse_not_finite(host, groups, "numbers in a centre"))
    if optimiser is None:
        if kind is None:
            update(store, noise, nothing, [])

        def move(seeds: Any, weights: Any, rate: Any, then: Callable[[], object]) -> None:
            as_one(store, lambda: (update(store, noise, seeds, weights), then()))

        return move
    if getattr(optimiser, "store", None) is not store or not callable(getattr(optimiser, "step", None)):
        raise ValueError(
            f"expected an optimiser of this store, got {optimiser!r}; fix: pass one made for it, such as es.Adam(store)"
        )
    gradient = zeros_beside(store)
    if kind is None:
        update(gradient, noise, nothing, [], exact=False)

    def move_by_optimiser(seeds: Any, weights: Any, rate: Any, then: Callable[[], object]) -> None:
        gradient.clear()
        update(gradient, noise, seeds, weights, exact=False)
        if isinstance(optimiser, Compiled):
            write([store.memory], lambda: (optimiser.step(gradient, rate), then()))
        else:  # the user's code, which expects to run in the user's thread
            optimiser.step(gradient, rate)
            then()

    return move_by_optimiser


def _entry(noise: Noise, number: int, entry: Any, optimised: bool) -> tuple[Array, Array, float | None]:
    """The seeds, weights and rate of an entry, checked."""
    parts: Any = (entry.seeds, entry.weights, entry.rate) if isinstance(entry, Move) else entry
    if not isinstance(parts, (tuple, list)) or len(parts) not in (2, 3):  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(
            f"entry {number}: expected (seeds, weights) or a record, got {entry!r}; fix: pass one of these per move"
        )
    entries: Any = (*parts, None)
    seeds, weights, found = entries[:3]
    if not math.isfinite(real(found)) if optimised else found is not None:
        want = "a finite rate beside its seeds and weights" if optimised else "seeds and weights alone"
        fix = "pass a journal that was made with an optimiser" if optimised else "pass optimiser=, the one of the run"
        raise ValueError(f"entry {number}: expected {want}, got the rate {found!r}; fix: {fix}")
    try:
        keys, values = as_keys(seeds if np.ndim(seeds) else [seeds]), np.atleast_1d(as_array(weights, "weights"))
        fixed_point(noise, keys, values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"entry {number}: {error}") from None
    return keys, values, found
