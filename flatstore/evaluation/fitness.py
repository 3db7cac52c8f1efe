"""Fitness: a population lent chunk by chunk, scored by the user's function, and the scores checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flatstore.layout import Array, Spec, as_array, as_numpy, is_floating, is_integer
from flatstore.store import AnyPopulation
from flatstore.threads import refuse_waiting_at_the_end, rounded_to_nearest


@rounded_to_nearest  # where small numbers are zero, they are equal
def best_first(fitness: Array) -> Array:
    """The members from best to worst: fitness is maximised, NaN is worst, equals keep their order."""
    unknown = np.isnan(fitness)
    return np.lexsort((np.where(unknown, 0, -fitness), unknown))


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype` can be fitness: real floats, integers or booleans."""
    return is_floating(dtype) or is_integer(dtype) or dtype == np.bool_


def as_fitness(fitness: Any, size: int | None = None, members: str = "") -> Array:
    """Fitness as float64, shape (size,), or a vector of any size: a copy.

    Raises `ValueError` for another shape, for values that are not real and for numbers that float64 would round;
    `TypeError` for masked ones.
    """
    refuse_waiting_at_the_end()
    given = as_numpy(fitness, "fitness") if hasattr(fitness, "shape") else as_array(fitness, "fitness")
    spec, expected = Spec(given.shape, given.dtype), max(1, given.size) if size is None else size
    if spec.shape != (expected,) or not is_real(spec.dtype):
        raise ValueError(
            f"expected fitness of shape ({expected},), real{members}, got {spec}; "
            "fix: return one real number for each member"
        )
    refuse_rounded([given] if hasattr(fitness, "shape") else fitness)
    return given.astype(np.float64)


def refuse_rounded(fitness: Iterable[Any]) -> None:
    """Raise `ValueError` if float64 would round any of these numbers or arrays: members that differ would be equals."""
    arrays = map(np.asarray, fitness)  # one by one, since NumPy makes floats of integers that stand beside floats
    wide = [array for array in arrays if array.dtype.kind in "iu" or array.dtype.char in "gG"]
    rounded = [x for array in wide for x in array.ravel().tolist() if x == x and x != float(x)]
    if rounded:
        if isinstance(rounded[0], int):
            got = f"integers of up to {max(rounded, key=abs)}"
            fix = "subtract a constant, so that they are below 2**53"
        else:
            got = f"longer floats such as {rounded[0]!r}"
            fix = "round them by .astype(np.float64), which may make some of them equal"
        raise ValueError(f"expected fitness that float64 holds exactly, got {got}; fix: {fix}")


def refuse_all_nan(scores: Array) -> None:
    """Raise `ValueError` if every number is NaN."""
    if np.isnan(scores).all():
        raise ValueError(
            f"expected fitness with a number in it for the members 0 .. {len(scores) - 1}, got only NaN; "
            "fix: make the evaluation return a number for at least one member"
        )


def refuse_unlendable(pop: AnyPopulation, chunk: int | None) -> None:
    """Raise `BufferError` if JAX cannot view the population, or a chunk of it, and `LentError` if it is written now."""
    with next(pop.chunks(chunk)).lend():
        pass


def fitness_of(pop: AnyPopulation, evaluate: Callable[[Any, int], Any], number: int, chunk: int | None) -> Array:
    """The fitness of all members, shape (size,), float64, evaluated chunk by chunk where they lie."""
    out, start = np.empty(len(pop)), 0
    for part in pop.chunks(chunk):
        stop = start + part.size
        with part.lend() as stacked:
            out[start:stop] = as_fitness(
                evaluate(stacked, number), part.size, f", for the members {start} .. {stop - 1}"
            )
        start = stop
    refuse_all_nan(out)
    return out
