"""What crossover and mutation have in common: a compiled loop with its data, and functions of one's own."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flatstore.checks import whole
from flatstore.kernels import compiled
from flatstore.kernels.cpu import NUMBERS, TABLE
from flatstore.layout import Array, as_array, is_numeric, refuse_mask
from flatstore.threads import rounded_to_nearest
from flatstore.trees import in_words


class Operator(NamedTuple):
    """What the loop of a generation needs of a crossover or a mutation."""

    loop: Any
    """A compiled function, as `flatstore.kernels.cpu.crossover` and `flatstore.kernels.cpu.mutation` describe it."""
    data: Any
    """Numbers and arrays that the loop is called with."""


@dataclass(frozen=True, eq=False)
class GeneFunction:
    """A function of two numbers and a draw, compiled into the loop of a generation. The base of `PerGene` and `Mutate`.

    Raises `ValueError` unless `bits` is 1, 8 or 16 (0 for no draw, 32 without a table) and the table has 2 ** bits
    numbers; `TypeError` unless the function takes three arguments and can be compiled, as no method, object or
    `functools.partial` can, and for a masked table.
    """

    function: Callable[[Any, Any, Any], Any]
    bits: int = 16
    table: Any = field(default=None, repr=False)

    arguments: ClassVar[str]
    """The names of the function's arguments, for messages."""

    def __post_init__(self) -> None:
        inner = getattr(self.function, "py_func", self.function)
        if not (inspect.isfunction(inner) or inspect.isbuiltin(inner)):
            raise TypeError(
                f"expected a function of ({self.arguments}) that can be compiled, got {self.function!r}; "
                "fix: define a function of three arguments; it may call others that kernels.compiled has made"
            )
        if inspect.isfunction(inner) and not _takes_three(inner):
            raise TypeError(
                f"expected a function of ({self.arguments}), got {self.function!r}; fix: take three arguments"
            )
        if whole(self.bits) not in (0, 1, 8, 16, 32):
            raise ValueError(
                f"expected 0, 1, 8, 16 or 32 random bits per gene, got {self.bits}; fix: pass 16, which suits most"
            )
        if self.table is None:
            return
        values = _real_numbers(self.table)
        if self.bits not in (1, 8, 16) or values.shape != (1 << self.bits,):
            raise ValueError(
                f"expected a table of 2 ** bits numbers for 1, 8 or 16 bits, got shape {values.shape} for {self.bits}; "
                "fix: pass one number for each value of the draw, in order"
            )

    def within(self, loop: Callable[[Any, int], Any], dtype: Any) -> tuple[Any, Array]:
        """The function compiled into a loop, made by `loop(function, source of draws)`, and its table in a dtype."""
        source = NUMBERS if self.table is None else TABLE
        return loop(_compiled(self.function), source), self.table_in(dtype)

    @rounded_to_nearest
    def table_in(self, dtype: Any) -> Array:
        """The table in the dtype that is computed with; empty if there is none. Raises `ValueError` as `finite`."""
        values = _real_numbers([] if self.table is None else self.table)
        return finite(values, dtype, "numbers in a table")


def _takes_three(function: Callable[..., Any]) -> bool:
    """Whether a function has three parameters and can be called with three arguments by position."""
    signature = inspect.signature(function)
    try:
        signature.bind(0, 0, 0)
    except TypeError:
        return False
    return len(signature.parameters) == 3


def _real_numbers(table: Any) -> Array:
    """A table as float64: a copy. Raises `ValueError` unless its entries are real numbers, `TypeError` for a mask."""
    refuse_mask(table, "table")
    try:
        given = as_array(table, "table")
        is_real = is_numeric(given.dtype) and given.dtype.kind != "c"
        if is_real or given.dtype == object and all(isinstance(x, numbers.Real) for x in given.flat):
            return given.astype(np.float64)
        got, reason = str(given.dtype), None
    except (TypeError, ValueError, OverflowError) as error:  # rows of several lengths, or objects of other kinds
        got, reason = in_words(error), error
    raise ValueError(f"expected a table of real numbers, got {got}; fix: pass an array of floats") from reason


@cache
def _compiled(function: Any) -> Any:
    if not inspect.isbuiltin(function):
        return function if hasattr(function, "py_func") else compiled(function)

    def call(one: Any, other: Any, draw: Any) -> Any:
        return function(one, other, draw)

    return compiled(call)


def finite(values: Array, dtype: Any, what: str) -> Array:
    """The values in the dtype that is computed with. Raises `ValueError` if one is not finite there."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise ValueError(f"expected {what} that are finite in {np.dtype(dtype)}, got others; fix: pass smaller numbers")
    return cast
