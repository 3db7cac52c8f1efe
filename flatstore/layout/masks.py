"""Masked arrays, which are refused: NumPy drops a mask without a word, and what it hides becomes numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def refuse_mask(value: Any, path: str) -> None:
    """Raise `TypeError` for a masked array of NumPy or torch, and for a list in which there is one."""
    cls: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    if issubclass(cls, np.ma.MaskedArray) or hasattr(cls, "get_mask"):  # the latter is torch's
        raise TypeError(
            f"{path!r}: expected an array without a mask, got a {cls.__name__}; "
            "fix: pass x.filled(value), or x.to_tensor(value) of torch"
        )
    if issubclass(cls, (list, tuple)):
        plain = (int, float)
        for part in value:
            if type(part) not in plain:
                refuse_mask(part, path)


def as_array(value: Any, path: str) -> Array:
    """What `np.asarray` makes of a value: a view where it can be one. Raises `TypeError` for a mask.

    >>> as_array([1, 2], "fitness").tolist()
    [1, 2]
    """
    refuse_mask(value, path)
    array = np.asanyarray(value)
    refuse_mask(array, path)  # that of what an object gives as an array
    return np.asarray(array)
