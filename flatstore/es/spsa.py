"""MeZO: one model, perturbed to both sides by one seed, and moved by the difference of its fitness there."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from flatstore.es.groups import noisy_groups
from flatstore.es.journal import Move, mover
from flatstore.es.perturbing import perturb, take_back
from flatstore.es.updating import update
from flatstore.evaluation import Rate, check_run, hand_over, is_real, rate_at, resumed_number
from flatstore.kernels import Interrupts
from flatstore.layout import Spec
from flatstore.noise import Noise, Seed, seeds
from flatstore.store import Store


def mezo(
    store: Store,
    evaluate: Callable[[Any, int], Any],
    *,
    seed: Seed,
    noise: Noise,
    rate: Rate,
    steps: int | None = None,
    resume: Move | int | None = None,
) -> Generator[Move]:
    """Climb in place by simultaneous perturbation, with no memory beside the model: a generator of its moves.

    A step perturbs the store by a seed, evaluates it, goes over to the other side in one pass, evaluates it there, and
    takes it back and moves it in one more. Then it is yielded, as a record of the move.

        >>> import jax, jax.numpy as jnp, flatstore as fs
        >>> fitness = jax.jit(lambda params, step: -jnp.square(params["w"] - 3).sum())
        >>> store = fs.Store.from_tree({"w": np.zeros(8, "f4")})
        >>> for move in mezo(store, fitness, seed=0, noise=fs.Rademacher(0.1), rate=5.0, steps=200):
        ...     pass
        >>> bool(abs(store["w"] - 3).max() < 0.1)
        True

    With d the noise of the seed and f the fitness, the store moves by

        rate * (f(store + d) - f(store - d)) / 2 * d

    which is the gradient along d, times `rate * scale ** 2` leaf by leaf. So for one scale sigma of all leaves a
    learning rate of r in the papers is `rate = r / sigma ** 2` here. It is rounded once, to the grid, without a loss in
    the mean; the perturbation is taken back to the bit.

    Step n draws from the seed (*seed, n) and from nothing else. The records are a journal: `replay` moves another store
    to the same bits. A run can be taken up again from a record, or the number of the next step, and the store as it was
    then.

    Args:
        store: the parameters, float32 or float64, on the grid of the noise (`snap`).
        evaluate: `(params, step) -> fitness`: the lent tree and the number of the step, to a real number, finite and
            maximised. It is called twice with each number; to compare the sides it should look at the same data.
        seed: an integer or several.
        noise: the perturbation.
        rate: of learning; or a function of the step's number, as for one that fades.
        steps: how many there are in all, those before `resume` included; None: until somebody stops.
        resume: the last record, or the number of the step to go on with.

    Raises, before anything runs, what `evolve` does; `ValueError` for 16-bit leaves, which cannot be taken back.

    Raises on the way `ValueError` for a fitness that is no finite real number; what `evaluate` and `es.update` raise,
    and Ctrl-C. The store is then taken back, to the bit, and a note says how to go on. What still holds a NumPy view of
    a lent leaf would keep it from being written: the local variables of `evaluate` are let go of for that.

    Source: Spall, *Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation*,
    1992; Malladi et al., *Fine-Tuning Language Models with Just Forward Passes*, 2023.
    """
    start = resume.number + 1 if isinstance(resume, Move) else resumed_number(resume)
    run = check_run(evaluate, seed, start, steps, "steps")
    rate_at(rate, start)
    narrow = [group.dtype for group in noisy_groups(store, noise) if not group.grid]
    if narrow:
        raise ValueError(
            f"expected float32 or float64 leaves, which have a grid for exact undo, got {', '.join(narrow)}; "
            "fix: es.evolve(..., members=2), which samples beside the store"
        )
    mover(store, noise, None)
    with store.lend():
        pass

    def measured(n: int, side: int) -> float:
        with store.lend(patience=1.0) as params:
            given = np.asarray(evaluate(params, n))
        real = is_real(given.dtype)
        value = float(given) if real and given.shape == () else math.nan
        if not math.isfinite(value):
            got = given.item() if real and given.shape == () else Spec(given.shape, given.dtype)
            raise ValueError(
                f"expected one finite number as the fitness of step {n} at {side:+d} times the noise, got {got}; "
                f"fix: clip it in evaluate; mezo(..., resume={n + 1}) leaves this step out"
            )
        return value

    def loop() -> Generator[Move]:
        n = start
        while steps is None or n < steps:
            key, step = int(seeds((*run, n), 1)[0]), rate_at(rate, n)
            at, done, held = 0, None, None
            try:
                with Interrupts():  # what is raised by Ctrl-C finds it known where the store stands
                    perturb(store, noise, key)
                    at = 1
                plus = measured(n, 1)
                with Interrupts():
                    perturb(store, noise, key, sign=-2)
                    at = -1
                minus = measured(n, -1)
                move = Move(
                    n, np.array([plus, minus]), np.array([key], np.uint64), np.array([step * (plus - minus) / 2])
                )
                with Interrupts():
                    update(store, noise, move.seeds, move.weights, perturbed=-1)
                    at, done = 0, move
            except BaseException as error:
                if done is None:
                    with Interrupts():
                        if take_back(store, noise, key, at, error):
                            error.add_note("the store is as the step found it")
                    error.add_note(f"fix: mezo(..., resume={n}) goes on")
                    raise
                held = error
            yield from hand_over(done, held, f"step {n} has moved the store; fix: mezo(..., resume={n + 1}) goes on")
            n += 1

    return loop()
