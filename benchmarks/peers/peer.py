"""The base of all that is compared, and the trees that they hold."""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import numpy as np

import flatstore as fs

SCALE = 0.02
"""The standard deviation of noise and mutations."""


class Peer:
    """One way to do a piece of work. It is made of a size; its methods do the work, and are over when it is done.

    What a peer does not have, and a library that is not installed, raise `NotImplementedError`: asv takes that for
    n/a in a benchmark's `setup`, and `found` leaves such peers out of a table.
    """

    library = "numpy"

    def __init__(self) -> None:
        self.require()

    @classmethod
    def installed(cls) -> bool:
        """Whether its library is there."""
        return importlib.util.find_spec(cls.library) is not None

    @classmethod
    def require(cls) -> None:
        """Raise `NotImplementedError` if its library is not there."""
        if not cls.installed():
            raise NotImplementedError(f"{cls.library} is not installed")


def shapes(leaves: int, size: int, dtype: Any = np.float32) -> Any:
    """The shapes of a tree of `size` parameters in so many leaves."""
    each = size // leaves
    return {f"layer_{i:05d}": {"w": jax.ShapeDtypeStruct((each,), dtype)} for i in range(leaves)}


def zeros(leaves: int, size: int, dtype: Any = np.float32) -> fs.Store:
    """A store of zeros, all of it resident."""
    store = fs.Store.zeros(fs.Layout.from_tree(shapes(leaves, size, dtype)))
    store.buffer[:] = 0
    return store


def tree_of(leaves: int, *shape: int) -> dict[str, dict[str, Any]]:
    """A tree of so many float32 arrays of NumPy, each full of its number."""
    return {f"layer_{i:05d}": {"w": np.full(shape, i, np.float32)} for i in range(leaves)}


def network(inputs: int, units: int, outputs: int, *, transposed: bool = False) -> Any:
    """The shapes of a network of one hidden layer: four leaves."""

    def dense(a: int, b: int) -> Any:
        shape = jax.ShapeDtypeStruct
        return {"bias": shape((b,), np.float32), "kernel": shape((b, a) if transposed else (a, b), np.float32)}

    return {"hidden": dense(inputs, units), "output": dense(units, outputs)}
