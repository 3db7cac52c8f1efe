"""What goes into a buffer: every form that `assign` takes, checked against the layout before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf, Spec, as_numpy, is_integer, spec_of
from flatstore.trees import Difference, StructureError, as_path, by_path

_tree_util: Any = jax.tree_util

Leading = tuple[int, ...]
Pairs = list[tuple[Leaf, Array]]


def checked_leaves(layout: Layout, values: Any, leading: Leading = ()) -> Pairs:
    """(home, array) for each home of `layout`, from a whole tree, vector or mapping. Reads, writes nothing.

    Trainable leaves come with the axes `leading` before their own (the members of a population). Raises
    `StructureError` with all that does not fit.
    """
    if _is_vector(layout, values, leading):
        return _from_vector(layout, values, leading)
    return _checked(layout, _named(layout, values), leading)


def checked_leaf(layout: Layout, path: Any, value: Any, leading: Leading = ()) -> tuple[Leaf, Array]:
    """(home, array) for one leaf. Raises `KeyError` for an unknown path, `StructureError` for what does not fit."""
    leaf = layout.leaf(path)
    array, difference = _fitting(layout, leaf.path, value, leading)
    if difference is not None:
        raise StructureError([difference])
    assert array is not None
    return layout.by_path[leaf.tied or leaf.path], array


def is_pairs(layout: Layout, values: Any) -> bool:
    """Whether `values` is an iterable of (path, array): any iterable that is not a pytree, or a list of such pairs.

    A list that is a tree of the layout is a tree.
    """
    if isinstance(values, list):
        items: list[Any] = list(values)  # pyright: ignore[reportUnknownArgumentType]
        pairs = all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], (str, tuple)) for x in items)  # pyright: ignore[reportUnknownArgumentType]
        return pairs and not layout.by_path.keys() <= by_path(items).keys()
    if isinstance(values, (str, bytes, Mapping)) or hasattr(values, "shape"):
        return False
    return hasattr(values, "__iter__") and bool(_tree_util.all_leaves([values]))


def _is_vector(layout: Layout, values: Any, leading: Leading) -> bool:
    shape = getattr(values, "shape", None)
    if shape is None or hasattr(values, "keys"):
        return False
    root = layout.leaves[0]
    return root.key_path != () or tuple(shape) != leading + root.shape


def _named(layout: Layout, values: Any) -> dict[str, Any]:
    """The values by path.

    A mapping is read as {path: value} if that names more leaves of the layout than reading it as a nested tree does.
    """
    tree = by_path(values)
    if not isinstance(values, Mapping):
        return tree
    named: dict[str, Any] = {as_path(key): x for key, x in values.items() if isinstance(key, (str, tuple))}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    paths = layout.by_path.keys()
    return named if len(named.keys() & paths) > len(tree.keys() & paths) else tree


def _checked(layout: Layout, got: Mapping[str, Any], leading: Leading) -> Pairs:
    pairs: Pairs = []
    differences: list[Difference] = []
    arrays: dict[str, Array] = {}
    for path, leaf in layout.by_path.items():
        if path not in got:
            differences.append(Difference(path, str(leaf.spec), "nothing", "add this leaf"))
            continue
        array, difference = _fitting(layout, path, got[path], leading)
        if array is None or difference is not None:
            differences += [difference] if difference else []
        elif leaf.tied is None:
            arrays[path] = array
            pairs.append((leaf, array))
        elif leaf.tied in arrays and not same_bits(arrays[leaf.tied], array):
            fix = f"give both the same, or plan with tied=False: it is another name of {leaf.tied!r}"
            differences.append(Difference(path, f"the values of {leaf.tied!r}", "other values", fix))
    for path, value in got.items():
        spec = spec_of(value, path) if path not in layout.by_path else None
        if spec is not None:
            differences += [found for found in [layout.difference(path, spec)] if found]
    if differences:
        raise StructureError(differences)
    return pairs


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays are equal to the bit, NaNs and negative zeros included."""
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def cast(array: Any, dtype: np.dtype[Any]) -> Array:
    """`array.astype(dtype)` without NumPy's warnings: what would be lost is checked before."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def _fitting(layout: Layout, path: str, value: Any, leading: Leading) -> tuple[Array | None, Difference | None]:
    leaf = layout.by_path[path]
    before = leading if leaf.trainable else ()
    if type(value) is int:  # its value decides what it fits, not a type that it never had
        value = np.uint64(value) if 0 <= value < 1 << 64 else np.asarray(value)
    spec = spec_of(value, path)
    if spec is None:
        got = f"{type(value).__name__} {str(value)[:40]!r}"
        return None, Difference(path, str(Spec(before + leaf.shape, leaf.dtype)), got, "give an array of numbers")
    difference = layout.difference(path, spec, "same_kind", before)
    if difference is not None:
        return None, difference
    array = as_numpy(value, path)
    return array, _overflow(leaf, array)


def _overflow(leaf: Leaf, array: Array) -> Difference | None:
    """Numbers that do not fit a narrower type: integers would wrap around, floats become infinite, both silently."""
    if np.can_cast(array.dtype, leaf.dtype, "safe") or not array.size:
        return None
    narrow = cast(array, leaf.dtype)
    if is_integer(leaf.dtype):
        fits = cast(narrow, array.dtype) == array
    else:
        fits = np.isfinite(narrow) | ~np.isfinite(array)
    if fits.all():
        return None
    got = f"{np.asarray(array)[~fits].ravel()[0]} among them"
    return Difference(leaf.path, f"numbers that fit {leaf.dtype.name}", got, "scale or clip them")


def _from_vector(layout: Layout, values: Any, leading: Leading) -> Pairs:
    spec = spec_of(values, "vector")
    expected = (*leading, layout.size)
    if spec is None or spec.shape != expected:
        got = str(spec or type(values).__name__)
        fix = "pass what to_vector() gives, not `flat`, which shows the padding; or a tree"
        raise StructureError([Difference("vector", f"shape {expected}, a number per parameter", got, fix)])
    vector = as_numpy(values, "vector")
    pairs: Pairs = []
    differences: list[Difference] = []
    for leaf in layout.homes:
        part = vector[..., leaf.index : leaf.index + leaf.size]
        if leading and not leaf.trainable:
            if not same_bits(part, np.broadcast_to(part[:1], part.shape)):
                fix = "give each member the same, or make the leaf trainable"
                differences.append(Difference(leaf.path, "one value, shared by all members", "several", fix))
            part = part[0]
        array = part.reshape((*(leading if leaf.trainable else ()), *leaf.shape))
        array, difference = _demoted(leaf, array)
        differences += [difference] if difference else []
        pairs.append((leaf, array))
    if differences:
        raise StructureError(differences)
    return pairs


def _demoted(leaf: Leaf, array: Any) -> tuple[Array, Difference | None]:
    """A part of a vector in its leaf's own kind: a vector promotes, so that the way back must lose nothing."""
    if np.can_cast(array.dtype, leaf.dtype, "same_kind"):
        return array, _overflow(leaf, array)
    real: Any = array.real if array.dtype.kind == "c" and leaf.dtype.kind != "c" else array
    exact = real if np.can_cast(real.dtype, leaf.dtype, "same_kind") else cast(real, leaf.dtype)
    lost: Any = (real != array) | (cast(exact, real.dtype) != real)
    unknown: Any = np.isnan(array)
    if (lost & ~unknown).any() or (is_integer(leaf.dtype) and unknown.any()):
        fix = "round them first, or assign by leaf"
        return exact, Difference(leaf.path, f"numbers that {leaf.dtype.name} can hold", "some that it cannot hold", fix)
    return exact, None
