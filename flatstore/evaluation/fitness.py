"""Fitness: a population lent chunk by chunk, scored by the user's function, and the scores checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flatstore.layout import Array, Spec, as_array, is_floating, is_integer
from flatstore.store import Population


def best_first(fitness: Array) -> Array:
    """The members from best to worst: fitness is maximised, NaN is worst, equals keep their order."""
    unknown = np.isnan(fitness)
    return np.lexsort((np.where(unknown, 0, -fitness), unknown))


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype` can be fitness: real floats, integers or booleans."""
    return is_floating(dtype) or is_integer(dtype) or dtype == np.bool_


def as_fitness(fitness: Any, size: int, members: str = "") -> Array:
    """Fitness as float64, shape (size,): a copy.

    Raises `ValueError` for another shape or values that are not real, `TypeError` for masked ones.
    """
    given = as_array(fitness, "fitness")
    spec = Spec(given.shape, given.dtype)
    if spec.shape != (size,) or not is_real(spec.dtype):
        raise ValueError(
            f"expected fitness of shape ({size},), real{members}, got {spec}; "
            "fix: return one real number for each member"
        )
    scores = given.astype(np.float64)
    if is_integer(spec.dtype) and not all(int(x) == y for x, y in zip(scores, given.tolist(), strict=True)):
        raise ValueError(
            f"expected fitness that float64 holds exactly, got integers of up to {max(given.tolist(), key=abs)}; "
            "fix: subtract a constant, so that they are below 2**53"
        )
    return scores


def refuse_all_nan(scores: Array) -> None:
    """Raise `ValueError` if every number is NaN."""
    if np.isnan(scores).all():
        raise ValueError(
            f"expected fitness with a number in it for the members 0 .. {len(scores) - 1}, got only NaN; "
            "fix: make the evaluation return a number for at least one member"
        )


def chunks_of(pop: Population, chunk: int | None) -> Iterator[Population]:
    """The population, or chunks of at most `chunk` members that JAX can view."""
    return iter([pop]) if chunk is None else pop.chunks(chunk)


def refuse_unlendable(pop: Population, chunk: int | None) -> None:
    """Raise `BufferError` if JAX cannot view the population, or a chunk of it, and `LentError` if it is written now."""
    with next(chunks_of(pop, chunk)).lend():
        pass


def fitness_of(pop: Population, evaluate: Callable[[Any, int], Any], number: int, chunk: int | None) -> Array:
    """The fitness of all members, shape (size,), float64, evaluated chunk by chunk where they lie."""
    out, start = np.empty(pop.size), 0
    for part in chunks_of(pop, chunk):
        stop = start + part.size
        with part.lend() as stacked:
            out[start:stop] = as_fitness(
                evaluate(stacked, number), part.size, f", for the members {start} .. {stop - 1}"
            )
        start = stop
    refuse_all_nan(out)
    return out
