"""Arrays in the place of rows, for trees that are made where there is no memory.

    >>> leaf = Leaf("w", (), (2, 3), np.dtype("f4"), True)
    >>> stand_ins([leaf])[0].shape
    (2, 3)

A tree of rows would run the constructors of the user's nodes on objects that are not arrays, which some refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flatstore.layout.leaf import Leaf
from flatstore.layout.numeric_values import Array


class _StandIn(np.ndarray[Any, np.dtype[Any]]):
    """An array of zeros, all of them in the same bytes. Pickled and copied as its shape and dtype alone."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _zeros, (self.shape, self.dtype)

    def __deepcopy__(self, memo: Any) -> _StandIn:
        return _zeros(self.shape, self.dtype)


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> _StandIn:
    return np.broadcast_to(np.zeros((), dtype), shape).view(_StandIn)


def stand_ins(rows: Iterable[Leaf]) -> list[Array]:
    """A read-only array of zeros for each row, of its shape and dtype. It takes the memory of one number."""
    return [_zeros(row.shape, row.dtype) for row in rows]
