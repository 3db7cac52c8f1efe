"""The loop around `step`: a population is evaluated where it lies, yielded, and replaced by its children."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

from flatstore.evaluation import (
    Workers,
    check_run,
    handed_out,
    refuse_two_starts,
    resumed_number,
    scorer,
    way_on,
)
from flatstore.ga.bounds import Bounds
from flatstore.ga.breeding import check_elite, check_operators, check_suitable, plan_step
from flatstore.ga.crossover import Crossover, Uniform
from flatstore.ga.generation import Operators, UnfinishedError
from flatstore.ga.generation_records import Generation
from flatstore.ga.kept_generations import KeptGenerations
from flatstore.ga.mutation import Mutation
from flatstore.ga.selection import Tournament
from flatstore.noise import Seed
from flatstore.recording import RunPath
from flatstore.store import AnyPopulation, Step


def evolve(
    pop: AnyPopulation,
    evaluate: Callable[[Any, int], Any],
    *,
    seed: Seed,
    mutate: Mutation | None | Callable[[int], Mutation | None],
    select: Any = Tournament(),  # noqa: B008 (a frozen value)
    crossover: Crossover | None = Uniform(),  # noqa: B008 (a frozen value)
    bounds: Bounds | None = None,
    elite: int = 1,
    generations: int | None = None,
    chunk: int | None = None,
    workers: Workers | int | None = None,
    resume: Generation | int | None = None,
    run: RunPath | None = None,
) -> Generator[Generation]:
    """Evolve a population in its own memory: a generator of its generations.

    Each is evaluated, then yielded as a record while it stands in the population; the next `next()` replaces it.
    `break` therefore leaves the population as the last record describes it.

        >>> import jax, jax.numpy as jnp, numpy as np, flatstore as fs
        >>> def score(params):
        ...     return -jnp.square(params["w"] - 3).sum()
        >>> pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 64)
        >>> evaluate = jax.jit(lambda stacked, generation: jax.vmap(score)(stacked))
        >>> for record in evolve(pop, evaluate, seed=0, mutate=fs.Normal(0.3), generations=100):
        ...     if record.max > -0.5:
        ...         break
        >>> bool(abs(pop[record.best]["w"] - 3).max() < 0.75)
        True

    Generation n draws from the seed (*seed, n) and from nothing else. So a run can be resumed, to the bit: from a
    record and the population as it was when the record was yielded (`pop.buffer` is its memory), or from the number
    of a generation and the population that holds it, not yet evaluated. With `run=` a folder keeps it, and the same
    call goes on from there.

    Args:
        pop: the population, in an order that JAX can take; or one on a device.
        evaluate: `(stacked, generation) -> fitness`. It is given a lent tree, whose leaves have an axis of members in
            front, and the number of the generation; it returns real numbers of shape (members,). Usually a jitted
            `jax.vmap`.
        seed: a non-negative integer or several.
        mutate: as in `step`, or a function of the generation's number that returns it, for instance noise that fades.
        select: as in `step`.
        crossover: as in `step`.
        bounds: as in `step`.
        elite: the number of members that are kept.
        generations: the total number, including those before `resume`; None to go on until the caller stops.
        chunk: the largest number of members to evaluate at once, as in `pop.chunks`; None for as many as fill 32 MiB,
            or 1 % of the population if that is more: what XLA copies of them is then small beside the population. If a
            member's fitness depends on the others, or on how often `evaluate` is called, pass `len(pop)`. In chunks of
            another size XLA may round fitness otherwise; by default they depend on the layout and the number of members
            alone, so that a run has the same ones each time.
        workers: how many processes evaluate a population that is shared (`pop.share()`), in the place of this one. Then
            `evaluate` is a function of one member, `(member, generation) -> float`, that they can import; the member is
            a store that shows the bytes of the population, to be read.
        resume: the record that describes the population, or the number of the generation that is to be evaluated first.
        run: a folder that keeps the run: the fitness of each generation before its record is yielded, and now and then
            the population. If it has one, the population becomes the last generation that was evaluated, whatever it
            was, and that one's record is yielded again. Only what was not evaluated yet is evaluated.

    Raises, before anything runs:
        ValueError, TypeError: an argument that is out of range or of another type.
        BufferError: leaves that JAX cannot take without a copy; with workers, a population that is not shared.

    Raises in a generation `ValueError` for a fitness of the wrong shape, not real, or NaN for all members, whatever
    `evaluate` and `step` raise, and KeyboardInterrupt. A note says so if the population holds a generation that no
    record describes, and how to continue.
    """
    if not isinstance(pop, AnyPopulation):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a Population, got {type(pop).__name__}; fix: Population.from_tree(tree, members)")
    record = resume if isinstance(resume, Generation) else None
    number = record.number if record else resumed_number(resume)
    refuse_two_starts(run, resume)
    seed = check_run(evaluate, seed, generations, "generations")
    check_elite(len(pop), elite)
    if record and record.fitness.shape != (len(pop),):
        raise ValueError(
            f"expected a record of {len(pop)} members to resume from, got one of {len(record.fitness)}; "
            "fix: restore the population that was yielded with it"
        )
    first: Any = mutate(number) if callable(mutate) and not isinstance(mutate, type) else mutate
    check_operators(first, select, crossover, bounds)
    check_suitable(pop, Operators(crossover, first, bounds))
    score = scorer(pop, evaluate, chunk, workers)

    def planned(record: Generation) -> Step:
        return plan_step(
            pop,
            record.fitness,
            seed=(*seed, record.number),
            mutate=mutate(record.number) if callable(mutate) else mutate,
            select=select,
            crossover=crossover,
            bounds=bounds,
            elite=elite,
        )

    settings = dict(
        algorithm="ga.evolve",
        seed=seed,
        mutate=mutate,
        select=select,
        crossover=crossover,
        bounds=bounds,
        elite=elite,
        chunk=chunk,
    )
    folder = KeptGenerations(run, pop, settings)
    last: Generation | None = None
    parents: Any = None
    kept: Any = None

    def is_born(step: Step) -> None:
        nonlocal parents, kept
        parents, kept = step.parents, step.kept

    def evaluated(n: int, hand_in: Callable[[Generation], None]) -> None:
        nonlocal last, parents, kept
        if last is not None:
            step = planned(last)
            step.run(partial(is_born, step))
        folder.snapshot()
        made = Generation(n, score(n), parents, kept)
        folder.note(made)
        hand_in(made)
        last, parents, kept = made, None, None

    def unevaluated(n: int, error: BaseException) -> Iterator[str]:
        if last is None or parents is not None:
            yield (
                f"the population holds generation {n}, not yet evaluated; "
                f"fix: evolve(..., {way_on(run, n)}) evaluates it and goes on"
            )
        elif isinstance(error, UnfinishedError) or isinstance(error.__cause__, UnfinishedError):
            yield f"once the step is finished, evolve(..., {way_on(run, n)}) goes on"

    def alive(n: int) -> str:
        way = "resume=record" if run is None else way_on(run, n)
        return f"the population is as the record of generation {n} says; fix: evolve(..., {way}) goes on"

    with folder:
        again = folder.restored(planned, generations)
        last = again or record
        start = number if last is None else last.number + 1
        return handed_out(start, generations, evaluated, unevaluated, alive, again=again, until=folder.until_dropped())
