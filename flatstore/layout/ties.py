"""Tied leaves: several names of one place in memory.

NumPy arrays and torch tensors are tied by identity of their memory: the same first byte, shape, strides and dtype.
A partial overlap has no meaning in a buffer where every parameter has one home, and is refused. `jax.Array`s are
immutable and freely shared (a target network, a lookahead state), so that the same one under two names says nothing
about the model: the caller decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.lib.array_utils import byte_bounds

from flatstore.layout.dtypes import is_torch_tensor
from flatstore.layout.masks import Array
from flatstore.layout.numeric_values import as_numpy

Tied = bool | Mapping[str, str] | None


def find_ties(leaves: Mapping[str, Any], tied: Tied) -> dict[str, str]:
    """The leaves that are another name of an earlier one: {path: home's path}.

    `leaves` are numeric leaves by path, in order. `tied` is None (decide by memory, refuse a repeated `jax.Array`),
    True (a repeated array is tied), False (every name gets its own home) or a mapping {path: home's path}, for trees
    of shapes.
    """
    if tied is False:
        return {}
    if isinstance(tied, Mapping):
        return _checked_ties(leaves, tied)
    if tied not in (None, True):
        raise TypeError(
            f"tied: expected True, False, None or {{path: home's path}}, got {tied!r}; "
            "fix: pass tied=True for one home of arrays that are the same"
        )
    ties: dict[str, str] = {}
    repeated: list[str] = []
    seen: dict[int, str] = {}
    in_memory: list[tuple[int, int, str, Array]] = []
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            home = seen.setdefault(id(leaf), path)
            if home != path:
                ties[path] = home
                repeated.append(f"  {path!r} is the array at {home!r}")
        elif isinstance(leaf, np.ndarray) or is_torch_tensor(leaf):
            array = as_numpy(leaf, path)
            if array.size:
                in_memory.append((*byte_bounds(array), path, array))
    if repeated and tied is None:
        raise ValueError(
            "expected each jax.Array once, got repeated ones:\n" + "\n".join(repeated) + "\n"
            "fix: pass tied=True (one home, several names) or tied=False (a home for each name)"
        )
    return ties | _shared_memory(in_memory)


def _checked_ties(leaves: Mapping[str, Any], tied: Mapping[str, str]) -> dict[str, str]:
    order = {path: i for i, path in enumerate(leaves)}
    for path, home in tied.items():
        if path not in order or home not in order or order[home] >= order[path] or home in tied:
            raise ValueError(
                f"tied: expected {{later path: earlier path that is a home}}, got {path!r}: {home!r}; "
                "fix: name two numeric leaves of the tree, the home being the first of all its names"
            )
    return dict(tied)


def _shared_memory(arrays: list[tuple[int, int, str, Array]]) -> dict[str, str]:
    """Ties among arrays in host memory. A sweep over their byte ranges: only neighbours can overlap."""
    ties: dict[str, str] = {}
    homes: dict[tuple[Any, ...], str] = {}
    for start, _, path, array in arrays:
        key = (start, array.shape, array.strides, array.dtype)
        home = homes.setdefault(key, path)
        if home != path:
            ties[path] = home
    open_ranges: list[tuple[int, int, str, Array]] = []
    for item in sorted((item for item in arrays if item[2] not in ties), key=lambda item: item[:2]):
        open_ranges = [other for other in open_ranges if other[1] > item[0]]
        for other in open_ranges:
            if np.shares_memory(item[3], other[3]):
                raise ValueError(
                    f"expected leaves that share all of their memory or none, got {other[2]!r} and {item[2]!r} "
                    "that overlap in part; fix: copy one of them, or pass tied=False (a home for each name)"
                )
        open_ranges.append(item)
    return ties
