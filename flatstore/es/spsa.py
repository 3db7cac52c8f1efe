"""MeZO: one model, perturbed to both sides by one seed, and moved by the difference of the two fitnesses."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from flatstore.es.contexts import Perturbation
from flatstore.es.groups import check_movable
from flatstore.es.journal import Move, move_of
from flatstore.es.kept_runs import KeptRun
from flatstore.evaluation import (
    Rate,
    check_run,
    handed_out,
    is_real,
    rate_at,
    refuse_rounded,
    refuse_two_starts,
    resumed_number,
    way_on,
)
from flatstore.layout import Spec, as_array
from flatstore.noise import Noise, Seed, seeds
from flatstore.recording import RunPath
from flatstore.store import AnyStore
from flatstore.threads import rounded_to_nearest


def mezo(
    store: AnyStore,
    evaluate: Callable[[Any, int], Any],
    *,
    seed: Seed,
    noise: Noise,
    rate: Rate,
    steps: int | None = None,
    resume: Move | int | None = None,
    run: RunPath | None = None,
) -> Generator[Move]:
    """Climb in place by simultaneous perturbation, with no second model: a generator of its moves.

    A step perturbs the store by a seed and evaluates it, goes to the other side in one pass and evaluates it there, and
    takes the noise back and moves the store in a third pass. Then a record of the move is yielded.

        >>> import jax, jax.numpy as jnp, flatstore as fs
        >>> fitness = jax.jit(lambda params, step: -jnp.square(params["w"] - 3).sum())
        >>> store = fs.Store.from_tree({"w": np.zeros(8, "f4")})
        >>> for move in mezo(store, fitness, seed=0, noise=fs.Rademacher(0.1), rate=5.0, steps=200):
        ...     pass
        >>> bool(abs(store["w"] - 3).max() < 0.1)
        True

    With d the noise of the seed and f the fitness, the store moves by

        rate * (f(store + d) - f(store - d)) / 2 * d

    which is the gradient along d, times `rate * scale ** 2` leaf by leaf. So if all leaves have the scale sigma, a
    learning rate of r in the papers is `rate = r / sigma ** 2` here. The move is rounded once, to the grid, without a
    loss in the mean; the perturbation is taken back to the bit. 16-bit leaves have no grid: their move is rounded to
    the dtype, and while they are perturbed what rounding lost is kept, a few per cent of their bytes (`UndoLog`).

    Step n draws from the seed (*seed, n) and from nothing else. The records are a journal: `replay` moves another store
    to the same bits. A run can be resumed from a record, or from the number of the next step, with the store as it was
    then.

    Args:
        store: the parameters; those of float32 and float64 on the grid of the noise (`snap`).
        evaluate: `(params, step) -> fitness`. It is given the lent tree and the number of the step, and returns a
            finite real number, to be maximised. It is called twice in each step, and should use the same data both
            times.
        seed: a non-negative integer or several.
        noise: the perturbation.
        rate: the learning rate, or a function of the step's number that returns it.
        steps: the total number, including those before `resume`; None to go on until the caller stops.
        resume: the last record, or the number of the step to continue with.
        run: a folder that keeps the run, as in `evolve`; if it has one, the store becomes what its last move has left.

    Raises the errors of `evolve` before anything runs.

    Raises in a step `ValueError` unless the fitness is a finite real number, whatever `evaluate` and `es.update` raise,
    and KeyboardInterrupt. The store is then taken back, to the bit, and a note says how to continue. A NumPy view of a
    lent leaf would keep the store from being written, so the local variables of a failed `evaluate` are cleared.

    Source: Spall, *Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation*,
    1992; Malladi et al., *Fine-Tuning Language Models with Just Forward Passes*, 2023.
    """
    start = resume.number + 1 if isinstance(resume, Move) else resumed_number(resume)
    refuse_two_starts(run, resume)
    seed = check_run(evaluate, seed, steps, "steps")
    rate_at(rate, start)
    check_movable(store, noise)
    move = move_of(store, noise, None)
    with store.lend():
        pass
    kept = KeptRun(run, store, None, dict(algorithm="es.mezo", seed=seed, noise=noise, members=2, rate=rate))

    def measured(n: int, side: int) -> float:
        with store.lend(patience=1.0) as params:
            given = as_array(evaluate(params, n), "fitness")
        real = is_real(given.dtype)
        value = float(given) if real and given.shape == () else math.nan
        if not math.isfinite(value):
            got = given.item() if real and given.shape == () else Spec(given.shape, given.dtype)
            raise ValueError(
                f"expected one finite number as the fitness of step {n} at {side:+d} times the noise, got {got}; "
                f"fix: clip it in evaluate{'' if run else f', or skip this step by mezo(..., resume={n + 1})'}"
            )
        refuse_rounded([given])
        return value

    side: Perturbation | None = None

    def move_store(n: int, hand_in: Callable[[Move], None]) -> None:
        nonlocal side
        kept.snapshot()
        key, step = int(seeds((*seed, n), 1)[0]), rate_at(rate, n)
        side = Perturbation(store, noise, key)
        with side:
            side.go(1)
            plus = measured(n, 1)
            side.go(-1)
            minus = measured(n, -1)
            weight = _weight(step, plus, minus)
            record = Move(n, np.array([plus, minus]), np.array([key], np.uint64), np.array([weight]))
            kept.make(record, partial(side.update, record.weights), hand_in)

    def unmoved(n: int, error: BaseException) -> Iterator[str]:
        if side is None or side.at == 0:
            yield "the store is as the step found it"
        yield f"fix: mezo(..., {way_on(run, n)}) goes on"

    def moved(n: int) -> str:
        return f"step {n} has moved the store; fix: mezo(..., {way_on(run, n + 1)}) goes on"

    with kept:
        last = kept.restored(bool, move, steps)
        start = start if last is None else last.number + 1
        return handed_out(start, steps, move_store, unmoved, moved, again=last, until=kept.until_dropped())


@rounded_to_nearest
def _weight(rate: float, plus: float, minus: float) -> float:
    """The weight of the noise in a move, by the fitness at both of its sides."""
    return rate * (plus - minus) / 2
