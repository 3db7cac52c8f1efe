"""What goes into a buffer: every form that `assign` takes, checked against the layout before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flatstore.arrays import Array, Spec, as_numpy, spec_of
from flatstore.layout import Layout
from flatstore.paths import by_path
from flatstore.structure import Difference, StructureError
from flatstore.table import Leaf

Lead = tuple[int, ...]
Pairs = list[tuple[Leaf, Array]]


def incoming(layout: Layout, values: Any, lead: Lead = ()) -> Pairs:
    """(home, array) for each home of `layout`, from a whole tree, vector or mapping. Reads, writes nothing.

    Trainable leaves come with the axes `lead` before their own (the members of a population). Raises
    `StructureError` with all that does not fit.
    """
    if _is_vector(layout, values, lead):
        return _from_vector(layout, values, lead)
    return _checked(layout, _by_path(layout, values), lead)


def incoming_leaf(layout: Layout, path: Any, value: Any, lead: Lead = ()) -> tuple[Leaf, Array]:
    """(home, array) for one leaf. Raises `KeyError` for an unknown path, `StructureError` for what does not fit."""
    leaf = layout.leaf(path)
    array, difference = _fitting(layout, leaf.path, value, lead)
    if difference is not None:
        raise StructureError([difference])
    assert array is not None
    return layout.by_path[leaf.tied or leaf.path], array


def is_pairs(values: Any) -> bool:
    """Whether `values` is an iterable of (path, array): an iterator, `mapping.items()`, or a list of such pairs."""
    if isinstance(values, list):
        return all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in values)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
    return hasattr(values, "__next__") or type(values).__name__ in ("dict_items", "ItemsView", "odict_items")


def _is_vector(layout: Layout, values: Any, lead: Lead) -> bool:
    shape = getattr(values, "shape", None)
    if shape is None or hasattr(values, "keys"):
        return False
    root = layout.by_path.get("")
    return root is None or tuple(shape) != lead + root.shape


def _by_path(layout: Layout, values: Any) -> dict[str, Any]:
    """The leaves of a tree by path; of a mapping {path: x}, itself."""
    tree = by_path(values)
    paths = layout.by_path.keys()
    if isinstance(values, Mapping) and not paths <= tree.keys() and any(key in paths for key in values):  # pyright: ignore[reportUnknownVariableType]
        return {str(key): value for key, value in values.items()}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
    return tree


def _checked(layout: Layout, got: Mapping[str, Any], lead: Lead) -> Pairs:
    pairs: Pairs = []
    differences: list[Difference] = []
    arrays: dict[str, Array] = {}
    for path, leaf in layout.by_path.items():
        if path not in got:
            differences.append(Difference(path, str(leaf.spec), "nothing", "add this leaf"))
            continue
        array, difference = _fitting(layout, path, got[path], lead)
        if array is None or difference is not None:
            differences += [difference] if difference else []
        elif leaf.tied is None:
            arrays[path] = array
            pairs.append((leaf, array))
        elif leaf.tied in arrays and not _same(arrays[leaf.tied], array):
            fix = f"give both the same, or plan with tied=False: it is another name of {leaf.tied!r}"
            differences.append(Difference(path, f"the values of {leaf.tied!r}", "other values", fix))
    for path, value in got.items():
        spec = spec_of(value, path) if path not in layout.by_path else None
        if spec is not None:
            differences += [found for found in [layout.difference(path, spec)] if found]
    if differences:
        raise StructureError(differences)
    return pairs


def _same(a: Array, b: Array) -> bool:
    """Equal to the bit, NaNs and negative zeros included."""
    return a is b or (a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _fitting(layout: Layout, path: str, value: Any, lead: Lead) -> tuple[Array | None, Difference | None]:
    leaf = layout.by_path[path]
    before = lead if leaf.trainable else ()
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
    """Integers that do not fit a narrower type would wrap around silently."""
    if leaf.dtype.kind not in "iu" or np.can_cast(array.dtype, leaf.dtype, "safe") or not array.size:
        return None
    bounds = np.iinfo(leaf.dtype)
    low, high = int(array.min()), int(array.max())
    if bounds.min <= low and high <= bounds.max:
        return None
    return Difference(leaf.path, f"integers that fit {leaf.dtype.name}", f"{low} .. {high}", "scale or clip them")


def _from_vector(layout: Layout, values: Any, lead: Lead) -> Pairs:
    spec = spec_of(values, "vector")
    expected = (*lead, layout.size)
    if spec is None or spec.shape != expected:
        got = spec or type(values).__name__
        raise StructureError(
            [
                Difference(
                    "vector",
                    f"shape {expected}, a number per parameter",
                    str(got),
                    "pass what to_vector() gives, not `flat`, which shows the padding; or a tree",
                )
            ]
        )
    vector = as_numpy(values, "vector")
    pairs: Pairs = []
    differences: list[Difference] = []
    for leaf in layout.homes:
        part = vector[..., leaf.index : leaf.index + leaf.size]
        if lead and not leaf.trainable:
            if part.size and not (part == part[:1]).all():
                fix = "give each member the same, or make the leaf trainable"
                differences.append(Difference(leaf.path, "one value, shared by all members", "several", fix))
            part = part[0]
        array = part.reshape((*(lead if leaf.trainable else ()), *leaf.shape))
        if not np.can_cast(vector.dtype, leaf.dtype, "same_kind"):
            with np.errstate(invalid="ignore"):
                exact = array.astype(leaf.dtype)
            if not np.array_equal(exact.astype(vector.dtype), array):
                fix = "round them first, or assign by leaf"
                differences.append(Difference(leaf.path, f"numbers that {leaf.dtype.name} can hold", "others", fix))
            array = exact
        pairs.append((leaf, array))
    if differences:
        raise StructureError(differences)
    return pairs
