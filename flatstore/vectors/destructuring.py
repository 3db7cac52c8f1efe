"""The differentiable map between a tree and a flat vector, for JAX.

    >>> flat, rebuild = destructure({"act": "relu", "b": np.zeros(2, "f4"), "w": np.ones((2, 2), "f4")})
    >>> flat
    Array([0., 0., 1., 1., 1., 1.], dtype=float32)
    >>> rebuild(2 * flat)["b"], rebuild(flat)["act"]
    (Array([0., 0.], dtype=float32), 'relu')

What enters the vector are the trainable floating and complex leaves, packed in JAX's leaf order, each home once. All
else (integers, booleans, functions, strings, None, frozen leaves) rides along and comes back as it was. Both ways copy:
a JAX array cannot be a view of a part of another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from flatstore.layout import (
    Layout,
    Leaf,
    Tied,
    Trainable,
    find_ties,
    is_torch_tensor,
    is_trainable_dtype,
    place,
    rows_of,
    validate,
)
from flatstore.memory import reading
from flatstore.store import memories_in
from flatstore.trees import flatten, refuse_idle_glob
from flatstore.vectors.packing import pack
from flatstore.vectors.rebuild import Rebuild

_dtypes: Any = jax.dtypes
_jax: Any = jax


def destructure(tree: Any, *, trainable: Trainable = None, tied: Tied = None) -> tuple[jax.Array, Rebuild]:
    """`(flat, rebuild)`: the trainable numbers of a tree as one vector, and the way back. Copies.

        >>> import jax.numpy as jnp
        >>> flat, rebuild = destructure({"b": jnp.zeros(2), "w": jnp.ones((2, 2))})
        >>> jax.grad(lambda flat: (rebuild(flat)["w"] ** 2).sum())(flat)
        Array([0., 0., 2., 2., 2., 2.], dtype=float32)

    `flat` has shape (N,) and the dtype to which JAX promotes those of the leaves, and is on their device; `rebuild`
    restores the dtype of each leaf. 64-bit leaves become 32-bit ones while JAX's 64-bit types are off, as everywhere in
    JAX. If nothing enters, the vector is float32 and of size 0. NumPy arrays that ride along are copied too, and come
    back read-only.

    Args:
        tree: any pytree, of parameters, gradients or an optimiser's state; a `Store` in its place, or in it, counts as
            its tree, with what is trainable and tied there.
        trainable: globs, or `f(path, leaf, parent_node) -> bool`: which of the floating and complex leaves enter.
        tied: True, False, or {path: home's path}, as for `Layout.from_tree`: tied leaves enter once, and come back as
            the same object.

    Raises:
        ValueError: leaves on several devices, a repeated `jax.Array` without `tied`, a deleted array, clashing paths, a
            glob that matches no floating or complex leaf.
        TypeError: a leaf that is only a shape, an array that holds no numbers, a torch module, a `Population`.
        LentError: another thread writes a store that is read.
    """
    if isinstance(trainable, (str, Iterable)):
        trainable = [trainable] if isinstance(trainable, str) else list(trainable)  # pyright: ignore[reportUnknownArgumentType]
    with reading(*memories_in(tree)):
        return _destructured(tree, trainable, tied)


def _destructured(tree: Any, trainable: Trainable, tied: Tied) -> tuple[jax.Array, Rebuild]:
    pairs, treedef = flatten(tree)
    given = [x for _, x in pairs]
    if any(map(_is_large, given)):  # such as a seed: it rides along, so that no dtype has to hold it
        tree = _jax.tree.map(_small, tree)
    full = rows_of(tree, trainable, None, False)
    rows = _entering(full.rows, full.values, trainable, tied)
    entering, paths, others = {row.path for row in rows}, iter(full.values), dict(full.riders)
    aside = [i for i in range(len(given)) if i in others or next(paths) not in entering]
    kept = {id(given[i]): _kept(given[i]) for i in aside}  # one object stays one
    riders = tuple((i, kept[id(given[i])]) for i in aside)
    layout = Layout(place(rows, 1), 1, treedef, riders) if rows else None
    return pack(layout, full.values), Rebuild(layout, treedef, riders)


def _entering(rows: Sequence[Leaf], values: Mapping[str, Any], trainable: Trainable, tied: Tied) -> Sequence[Leaf]:
    """The rows that enter. Only floating and complex leaves can be tied: the others ride along."""
    floating = [row for row in rows if is_trainable_dtype(row.dtype)]
    if trainable is not None and not callable(trainable):
        for glob in trainable:
            refuse_idle_glob("trainable", glob, [row.path for row in floating], "floating or complex leaf")
    ties = find_ties({row.path: values[row.path] for row in floating}, tied)
    floating = [
        replace(row, dtype=np.dtype(_dtypes.canonicalize_dtype(row.dtype)), tied=ties.get(row.path)) for row in floating
    ]
    if floating:
        floating = place(floating, 1)
        validate(floating, 1)  # that tied leaves agree, in what is trainable too
    return [row for row in floating if row.trainable]


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not -(2**31) <= value < 2**31


def _small(value: Any) -> Any:
    return str(value) if _is_large(value) else value


def _kept(value: Any) -> Any:
    """Something that rides along, safe from later writes to it."""
    if is_torch_tensor(value):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        kept: Any = value.copy()  # pyright: ignore[reportUnknownVariableType]
        kept.flags.writeable = False
        return kept
    return value
