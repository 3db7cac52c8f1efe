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
from functools import partial
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
    spec_of,
    validate,
)
from flatstore.trees import flatten, path_of, refuse_idle_glob
from flatstore.vectors.packing import pack
from flatstore.vectors.rebuild import Rebuild

_dtypes: Any = jax.dtypes


def destructure(tree: Any, *, trainable: Trainable = None, tied: Tied = None) -> tuple[jax.Array, Rebuild]:
    """`(flat, rebuild)`: the trainable numbers of a tree as one vector, and the way back. Copies.

        >>> import jax.numpy as jnp
        >>> flat, rebuild = destructure({"b": jnp.zeros(2), "w": jnp.ones((2, 2))})
        >>> jax.grad(lambda flat: (rebuild(flat)["w"] ** 2).sum())(flat)
        Array([0., 0., 2., 2., 2., 2.], dtype=float32)

    `flat` has shape (N,) and the dtype that JAX promotes those of the leaves to, and lives on their device; `rebuild`
    restores each leaf's own. 64-bit leaves become 32-bit ones where JAX has its 64-bit types off, as everywhere in
    JAX. A tree of which nothing enters gives a float32 vector of size 0. NumPy arrays that ride along are copied too,
    and come back read-only.

    Args:
        tree: any pytree, of parameters, gradients or an optimiser's state; or a `Store`, with what is trainable and
            tied there.
        trainable: globs, or `f(path, leaf, parent_node) -> bool`: which of the floating and complex leaves enter.
        tied: True, False, or {path: home's path}, as for `Layout.from_tree`: tied leaves enter once, and come back as
            the same object.

    Raises:
        ValueError: leaves on several devices, a repeated `jax.Array` with `tied` not said, a deleted array, clashing
            paths, a glob that matches no floating or complex leaf.
        TypeError: a leaf that is only a shape, an array that holds no numbers, a torch module, a `Population`.
    """
    if isinstance(trainable, (str, Iterable)):
        trainable = [trainable] if isinstance(trainable, str) else list(trainable)  # pyright: ignore[reportUnknownArgumentType]
    tree, trainable, tied = _of_store(tree, trainable, tied)
    pairs, treedef = flatten(tree)
    given = [x for _, x in pairs]
    if any(map(_is_large, given)):  # such as a seed: no dtype holds it, and none has to
        tree = treedef.unflatten([str(x) if _is_large(x) else x for x in given])
        pairs = flatten(tree)[0]
    numeric = {i: path_of(keys) for i, (keys, x) in enumerate(pairs) if spec_of(x, path_of(keys)) is not None}
    leaves = {path: pairs[i][1] for i, path in numeric.items()}
    rows = _rows(tree, leaves, trainable, tied) if leaves else []
    entering = {row.path for row in rows}
    aside = [i for i in range(len(given)) if numeric.get(i) not in entering]
    kept = {id(given[i]): _kept(given[i]) for i in aside}  # one object stays one
    riders = tuple((i, kept[id(given[i])]) for i in aside)
    layout = Layout(place(rows, 1), 1, treedef, riders) if rows else None
    return pack(layout, leaves), Rebuild(layout, treedef, riders)


def _of_store(tree: Any, trainable: Trainable, tied: Tied) -> tuple[Any, Trainable, Tied]:
    """A store as its tree of views, with its layout's own word on what is trainable and tied."""
    layout, view = getattr(tree, "layout", None), getattr(tree, "leaf_view", None)
    if view is None or not isinstance(layout, Layout):
        return tree, trainable, tied
    views = [view(leaf.path) for leaf in layout.leaves]
    if any(array.shape != leaf.shape for array, leaf in zip(views, layout.leaves, strict=True)):
        raise TypeError(
            f"expected a tree or one model, got a {type(tree).__name__}; "
            "fix: destructure(population[0]), whose rebuild takes a matrix (P, N)"
        )
    if trainable is None:
        trainable = partial(_as_planned, {leaf.path: leaf.trainable for leaf in layout.leaves})
    if tied is None:
        tied = {x.path: x.tied for x in layout.leaves if x.tied is not None and is_trainable_dtype(x.dtype)}
    return layout.unflatten(views), trainable, tied


def _as_planned(trains: Mapping[str, bool], path: str, leaf: Any, parent: Any) -> bool:
    return trains[path]


def _rows(tree: Any, leaves: Mapping[str, Any], trainable: Trainable, tied: Tied) -> list[Leaf]:
    """The rows of what enters. Of ties only those of floating and complex leaves count: the others ride along."""
    full = Layout.from_tree(tree, align=1, trainable=trainable, tied=False)
    floating = [row for row in full.leaves if is_trainable_dtype(row.dtype)]
    if trainable is not None and not callable(trainable):
        for glob in trainable:
            refuse_idle_glob("trainable", glob, [row.path for row in floating])
    ties = find_ties({row.path: leaves[row.path] for row in floating}, tied)
    rows: Sequence[Leaf] = [
        replace(row, dtype=np.dtype(_dtypes.canonicalize_dtype(row.dtype)), tied=ties.get(row.path)) for row in floating
    ]
    if rows:
        rows = place(rows, 1)
        validate(rows, 1)  # that tied leaves agree, in what is trainable too
    return [row for row in rows if row.trainable]


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not -(2**31) <= value < 2**31


def _kept(value: Any) -> Any:
    """Something that rides along, safe from later writes to it."""
    if is_torch_tensor(value):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        kept: Any = value.copy()  # pyright: ignore[reportUnknownVariableType]
        kept.flags.writeable = False
        return kept
    return value
