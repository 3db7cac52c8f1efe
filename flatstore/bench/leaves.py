"""Whether anything was copied: where the leaves of trees lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flatstore.store import OnDevice, OnTorch, Population, Store
from flatstore.trees import flatten, path_of


def addresses(tree: Any) -> dict[str, int]:
    """Where each leaf of a tree begins in memory, by path.

    A tree is any pytree of arrays of NumPy, JAX or torch, or a store or a population, whose tied leaves count once.
    What is donated has no address afterwards: ask before. Leaves without a byte lie nowhere, and are left out. Raises
    `TypeError` for leaves that are no arrays, `RuntimeError` for those that were deleted.

    >>> w = np.ones(3)
    >>> addresses({"a": w, "b": w[1:]}) == {"a": w.ctypes.data, "b": w.ctypes.data + 8}
    True
    """
    if isinstance(tree, Store | Population | OnTorch | OnDevice):
        store: Any = tree
        pairs = [(leaf.path, store[leaf.path]) for leaf in store.layout.homes]
    else:
        pairs = [(path_of(keys), leaf) for keys, leaf in flatten(tree)[0]]
    return {path: _address(path, leaf) for path, leaf in pairs if getattr(leaf, "nbytes", 1)}


def moved(before: Any, after: Any) -> list[str]:
    """The paths of the leaves of `after` that do not begin where those of `before` did: what was copied, or is new.

    Both are trees, or what `addresses` has said of one.

    >>> import jax, jax.numpy as jnp
    >>> step = jax.jit(lambda p: {"w": p["w"] + 1, "b": p["b"].astype("bfloat16")}, donate_argnums=0)
    >>> params = {"w": jnp.zeros(1000), "b": jnp.zeros(7)}
    >>> where = addresses(params)
    >>> moved(where, step(params))
    ['b']
    """
    was, now = (x if _is_addresses(x) else addresses(x) for x in (before, after))
    return [path for path, address in now.items() if was.get(path) != address]


def _is_addresses(x: Any) -> bool:
    values: list[Any] = [*x.values()] if isinstance(x, Mapping) else [None]
    return all(type(address) is int for address in values)


def _address(path: str, leaf: Any) -> int:
    if isinstance(leaf, np.ndarray):
        return leaf.ctypes.data
    for name in ("unsafe_buffer_pointer", "data_ptr"):  # of JAX, and of torch
        if hasattr(leaf, name):
            return int(getattr(leaf, name)())
    raise TypeError(
        f"{path!r}: expected an array of NumPy, JAX or torch, got {type(leaf).__name__}; fix: leave it out of the tree"
    )
