"""Runs: the numbers and seeds of the loops of `ga` and `es`, and how a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flatstore.checks import real, whole
from flatstore.noise import Seed, integers_of

Rate = float | Callable[[int], float]
"""A learning rate: a number, or a function of the number of the generation or step."""


def check_run(evaluate: Any, seed: Seed, most: int | None, unit: str) -> tuple[int, ...]:
    """The seed of a run as a tuple, to which each generation adds its own number.

    Raises `TypeError` if `evaluate` cannot be called; `ValueError` if the seed is not made of non-negative integers, or
    if `most`, the number of generations or steps (`unit`), is less than 1.
    """
    if not callable(evaluate):
        raise TypeError(
            f"expected a function to evaluate with, got {type(evaluate).__name__}; "
            "fix: pass a function (tree, number) -> fitness"
        )
    if most is not None and not whole(most) >= 1:
        raise ValueError(
            f"expected a whole number of {unit} >= 1, got {most}; fix: pass a number, or None to go on until you stop"
        )
    return tuple(integers_of(seed))


def resumed_number(resume: Any) -> int:
    """The number to begin with: 0, or `resume`. Raises `ValueError` unless it is a whole number of 0 or more."""
    if resume is None:
        return 0
    number = whole(resume)
    if not number >= 0:
        raise ValueError(f"expected resume >= 0, got {resume}; fix: pass a record, or the number of a generation")
    return int(number)


def rate_at(rate: Rate, number: int) -> float:
    """The rate of generation or step `number`. Raises `ValueError` unless it is finite."""
    value: Any = rate(number) if callable(rate) else rate
    if not math.isfinite(real(value)):
        raise ValueError(
            f"expected a finite rate, got {value}; "
            "fix: pass a number, or a function of the number of the generation or step"
        )
    return real(value)


def refuse_two_starts(run: Any, resume: Any) -> None:
    """Raise `ValueError` if a run is to go on both from its folder and from a record."""
    if run is not None and resume is not None:
        raise ValueError(f"expected run= or resume=, got both; fix: leave resume= out: {run!r} knows how far it came")


def way_on(run: Any, number: int) -> str:
    """The argument by which a loop goes on, for notes: its folder, or the number of the next generation or step.

    >>> way_on(None, 3), way_on("runs/1", 3)
    ('resume=3', "run='runs/1'")
    """
    return f"resume={number}" if run is None else f"run={str(run)!r}"
