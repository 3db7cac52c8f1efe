"""OpenAI's evolution strategy: antithetic pairs around a centre, which moves towards the noise that did well."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from flatstore.es.groups import trainable_leaves, zeros_beside
from flatstore.es.journal import Move, is_whole, move_of
from flatstore.es.kept_runs import KeptRun
from flatstore.es.optimisers import Optimiser
from flatstore.es.ranks import centred_ranks
from flatstore.es.sampling import refuse_other_layouts, sample
from flatstore.evaluation import (
    Rate,
    Workers,
    check_run,
    handed_out,
    rate_at,
    refuse_two_starts,
    resumed_number,
    scorer,
    way_on,
)
from flatstore.layout import Array, as_array
from flatstore.noise import Noise, Seed, seeds
from flatstore.recording import RunPath
from flatstore.store import AnyPopulation, AnyStore, moves_of


def evolve(
    centre: AnyStore,
    evaluate: Callable[[Any, int], Any],
    *,
    seed: Seed,
    noise: Noise,
    members: int | AnyPopulation,
    rate: Rate,
    optimiser: Optimiser | None = None,
    shape: Callable[[Any], Any] = centred_ranks,
    generations: int | None = None,
    chunk: int | None = None,
    workers: Workers | int | None = None,
    resume: Move | int | None = None,
    run: RunPath | None = None,
) -> Generator[Move]:
    """Evolve a centre in place by OpenAI's evolution strategy: a generator of its moves.

    A generation samples pairs of members, the centre plus and minus the same noise; evaluates them; moves the centre,
    which is the champion; and yields a record of the move, while the members still are as they were evaluated.

        >>> import jax, jax.numpy as jnp, flatstore as fs
        >>> def score(params):
        ...     return -jnp.square(params["w"] - 3).sum()
        >>> evaluate = jax.jit(lambda stacked, generation: jax.vmap(score)(stacked))
        >>> centre = fs.Store.from_tree({"w": np.zeros(8, "f4")})
        >>> for move in evolve(centre, evaluate, seed=0, noise=fs.Normal(0.3), members=32, rate=5.0, generations=80):
        ...     pass
        >>> bool(abs(centre["w"] - 3).max() < 0.3)
        True

    With n members, their shaped fitness F and their noise d (of the scale of the noise, leaf by leaf) the gradient is

        g = 1 / n * sum_i F_i d_i

    It is the natural gradient of the mean fitness over N(centre, scale ** 2): if all leaves have the scale sigma, it is
    sigma ** 2 times the estimate of Salimans et al.; otherwise leaves move in proportion to their variance. Without an
    optimiser the centre moves by `rate * g`, so that `rate` is their learning rate over sigma ** 2, a number near one.
    The sum is rounded once, to the noise's grid, without a loss in the mean. With an optimiser, `step(g, rate)` moves
    the centre, off the grid; for `Adam` the scale of g makes no difference.

    Generation n draws from the seed (*seed, n) and from nothing else. The records are a journal: `replay` moves another
    centre to the same bits. A run can be resumed from a record, or from the number of the next generation, with the
    centre and the optimiser's state as they were then. With `run=` a folder keeps it, and the same call goes on from
    there.

    Args:
        centre: the parameters; on the grid of the noise (`snap`) if there is no optimiser.
        evaluate: `(stacked, generation) -> fitness`, as in `ga.evolve`. NaN is worst.
        seed: a non-negative integer or several.
        noise: the difference between a member and the centre.
        members: their number, even; or a population of the centre's layout and kind to write them into.
        rate: the learning rate, or a function of the generation's number that returns it.
        optimiser: `Adam(centre)`, `Momentum(centre)` or your own; None to move along the gradient itself.
        shape: a function of fitness, shape (n,), that returns n finite numbers, larger for better members.
        generations: the total number, including those before `resume`; None to go on until the caller stops.
        chunk: the largest number of members to evaluate at once, as in `ga.evolve`; None for as many as fill 32 MiB,
            or 1 % of the population if that is more; the number of members for all of them.
        workers: how many processes evaluate the members, one by one, as in `ga.evolve`. A population of `members` has
            to be shared then.
        resume: the last record, or the number of the generation to continue with.
        run: a folder that keeps the run, each move before its record is yielded. If it has one, the centre, the
            optimiser and the members become what its last move has left, whatever they were, and that move's record is
            yielded again. An optimiser of your own must be as it was at first; the whole run is replayed through it.

    Raises, before anything runs:
        ValueError, TypeError: an argument that is out of range or of another type; a centre that is not finite, off the
            grid or past the bound.
        StructureError: a population of another layout.
        BufferError: leaves that JAX cannot take without a copy; with workers, members that are not shared.

    Raises in a generation whatever `evaluate` and `es.update` raise, and KeyboardInterrupt, with a note that says how
    to continue. The centre is then as the last record that was yielded left it: an interrupt during a move is raised
    after the record of that move.

    Source: Salimans, Ho, Chen, Sidor and Sutskever, *Evolution Strategies as a Scalable Alternative to Reinforcement
    Learning*, 2017; for the natural gradient, Wierstra et al., *Natural Evolution Strategies*, 2014.
    """
    start = resume.number + 1 if isinstance(resume, Move) else resumed_number(resume)
    refuse_two_starts(run, resume)
    seed = check_run(evaluate, seed, start, generations, "generations")
    rate_at(rate, start)
    if not callable(shape):
        raise TypeError(f"expected a function of fitness to shape with, got {shape!r}; fix: pass es.centred_ranks")
    given: Any = members if isinstance(members, AnyPopulation) else None
    size: Any = members if given is None else len(given)
    whole: tuple[Any, ...] = int, np.integer
    if not isinstance(size, whole) or size < 2 or size % 2:
        raise ValueError(
            f"expected an even number of members, 2 or more, got {size}; "
            "fix: pass an even number; members are evaluated in pairs of opposite noise"
        )
    if not isinstance(centre, AnyStore):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Store as centre, got {type(centre).__name__}; fix: Store.from_tree(tree)")
    move = move_of(centre, noise, optimiser)
    trainable_leaves(centre)
    pop = zeros_beside(centre, size) if given is None else given
    if workers is not None and given is None:
        pop = pop.share()
    if moves_of(pop) is not moves_of(centre):
        raise TypeError(
            f"expected members of the centre's kind, got a {type(pop).__name__} beside a {type(centre).__name__}; "
            "fix: pass a number"
        )
    refuse_other_layouts("members", pop, centre)
    if pop.memory.overlaps(centre.memory):
        raise ValueError(
            "expected members apart from the centre, got the same memory; fix: pass a number, or other members"
        )
    score = scorer(pop, evaluate, chunk, workers)
    settings = dict(algorithm="es.evolve", seed=seed, noise=noise, members=size, rate=rate, shape=shape, chunk=chunk)
    kept = KeptRun(run, centre, optimiser, settings)
    moving = False

    def move_centre(n: int, hand_in: Callable[[Move], None]) -> None:
        nonlocal moving
        kept.snapshot()
        keys, step = seeds((*seed, n), size // 2), rate_at(rate, n)
        sample(pop, centre, noise, keys, antithetic=True)
        fitness = score(n)
        shaped = _shaped(shape, fitness)
        weights = (shaped[0::2] - shaped[1::2]) / size * (step if optimiser is None else 1)
        record = Move(n, fitness, keys, weights, None if optimiser is None else step)
        moving = True
        kept.make(record, partial(move, keys, weights, step), hand_in)
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
        last = kept.restored(
            lambda record: sample(pop, centre, noise, record.seeds, antithetic=True), move, generations
        )
        for leaf in centre.layout.homes:
            if not leaf.trainable:
                pop[leaf.path] = centre[leaf.path]
        start = start if last is None else last.number + 1
        return handed_out(start, generations, move_centre, unmoved, moved, again=last, until=kept.until_dropped())


def _shaped(shape: Callable[[Any], Any], fitness: Array) -> Array:
    shaped = as_array(shape(fitness.copy()), "shape")
    if shaped.shape != fitness.shape or shaped.dtype.kind not in "fiu" or not np.isfinite(shaped).all():
        raise ValueError(
            f"expected {len(fitness)} finite numbers from shape, got {shaped.dtype} of shape {shaped.shape}"
            f"{' with others' if shaped.shape == fitness.shape else ''}; fix: pass a function such as es.centred_ranks"
        )
    return shaped.astype(np.float64)
