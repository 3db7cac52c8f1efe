"""OpenAI's evolution strategy: antithetic pairs around a centre, which moves towards the noise that did well."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from flatstore.es.groups import zeros_beside
from flatstore.es.journal import Move
from flatstore.es.loop import Loop
from flatstore.es.optimisers import Optimiser
from flatstore.es.ranks import centred_ranks
from flatstore.es.sampling import refuse_other_layouts, sample
from flatstore.evaluation import Rate, Workers, scorer
from flatstore.layout import Array
from flatstore.noise import Noise, Seed
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

        >>> import jax, jax.numpy as jnp, numpy as np, flatstore as fs
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
    given: Any = members if isinstance(members, AnyPopulation) else None
    size: Any = members if given is None else len(given)
    loop = Loop(
        centre,
        evaluate,
        seed=seed,
        noise=noise,
        members=size,
        rate=rate,
        optimiser=optimiser,
        shape=shape,
        generations=generations,
        resume=resume,
        run=run,
        chunk=chunk,
    )
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
    evaluated = scorer(pop, evaluate, chunk, workers)

    def write_members(seeds: Array) -> None:
        sample(pop, centre, noise, seeds, antithetic=True)

    def score(number: int, seeds: Array) -> Array:
        write_members(seeds)
        return evaluated(number)

    def shared() -> None:
        for leaf in centre.layout.homes:
            if not leaf.trainable:
                pop[leaf.path] = centre[leaf.path]

    return loop.moves(score, again=lambda record: write_members(record.seeds), begin=shared)
