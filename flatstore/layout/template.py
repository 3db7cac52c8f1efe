"""Templates: {path: shape, dtype, dims} as plain Python, to write down, to send, and to plan a layout from.

    >>> layout = from_template({"dense_0.kernel": (2, 3), "dense_0.bias": (3,)}, sep=".")
    >>> to_template(layout)["dense_0/kernel"]
    {'shape': [2, 3], 'dtype': 'float32'}

A template has only types that JSON has: `json.loads(json.dumps(to_template(layout)))` is equal to it.
"""

from __future__ import annotations

import glob
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from flatstore.checks import repeats
from flatstore.layout.dtypes import is_numeric, is_trainable_dtype
from flatstore.layout.layout import Layout, Trainable
from flatstore.layout.leaf import Leaf
from flatstore.layout.numeric_values import spec_of
from flatstore.trees import Difference, StructureError, by_path, unflatten_dict

Order = Literal["sorted", "numeric", "given"]
_FIELDS = ("shape", "dtype", "dims", "trainable", "tied")


def check_layout(layout: Any) -> None:
    """Raise `TypeError` unless `layout` is a `Layout`."""
    if not isinstance(layout, Layout):
        raise TypeError(f"expected a Layout, got {type(layout).__name__}; fix: store.layout, or Layout.from_tree(tree)")


def to_template(layout: Layout) -> dict[str, dict[str, Any]]:
    """{path: {"shape": [...], "dtype": name}} of every leaf, in the layout's order, ready for `json.dumps`.

    An entry also has "dims" if the axes have names, "trainable" if that differs from what the dtype implies, and
    "tied", the path of its home, if the leaf is another name. `from_template(…, order="given", align=layout.align)`
    makes an equal layout, unless `replan` ordered this one: a template does not say where leaves lie in memory, of what
    types the nodes are, or what rides along.

    Raises `TypeError` for anything but a layout.
    """
    check_layout(layout)
    template: dict[str, dict[str, Any]] = {}
    for leaf in layout.leaves:
        entry = template[leaf.path] = {"shape": list(leaf.shape), "dtype": leaf.dtype.name}
        if leaf.dims is not None:
            entry["dims"] = list(leaf.dims)
        if leaf.trainable != is_trainable_dtype(leaf.dtype):
            entry["trainable"] = leaf.trainable
        if leaf.tied is not None:
            entry["tied"] = leaf.tied
    return template


def from_template(
    template: Mapping[str, Any],
    sep: str = "/",
    *,
    order: Order = "sorted",
    dtype: Any = "float32",
    align: int = 64,
    trainable: Trainable = None,
) -> Layout:
    """The layout of a template: nested dicts, rebuilt from the names. Nothing is allocated.

    Args:
        template: {name: entry}. An entry is a shape, `(2, 3)`; a mapping as `to_template` writes it; or anything with
            a shape and a dtype (an array, `jax.ShapeDtypeStruct`, a `Leaf`).
        sep: the string that joins the keys of a name. With '/', names are paths, escaped as everywhere in flatstore.
        order: the order of the keys in a node: 'sorted' as JAX sorts strings ('l10' before 'l2'), in plain dicts;
            'numeric' with the numbers in them in numeric order ('l2' before 'l10'), or 'given' as they come, in
            `OrderedDict`s, whose order JAX keeps.
        dtype: the dtype of entries that do not name one.
        align: bytes, as for `Layout.from_tree`.
        trainable: as for `Layout.from_tree`; by default what the entries say, or else what the dtype implies.

    Raises:
        StructureError: entries that are malformed; it lists all of them.
        ValueError: names that clash, an unknown order, or a tie to something that is not a home before it.
        TypeError: `template` is not a mapping.
    """
    if not isinstance(template, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"expected a mapping {{name: shape}}, got {type(template).__name__}; "
            "fix: pass a dict such as {'dense.bias': (2,)}"
        )
    if order not in ("sorted", "numeric", "given"):
        raise ValueError(f"order: expected 'sorted', 'numeric' or 'given', got {order!r}; fix: pass one of these")
    rows: dict[str, Leaf] = {}
    differences: list[Difference] = []
    for name, entry in template.items():
        try:
            rows[name] = _row(name, entry, dtype)
        except (TypeError, ValueError) as error:
            if not repeats(partial(_row, name, entry, dtype)):
                raise
            differences.append(
                Difference(str(name), "a shape, or a mapping with one", str(error), "write it as to_template does")
            )
    if differences:
        raise StructureError(differences, "of the template that cannot be read")
    tree = _in_order(unflatten_dict(rows, sep, escape=sep == "/"), order)
    paths = {row.path: path for path, row in by_path(tree).items()}
    return Layout.from_tree(
        tree,
        align=align,
        trainable=(lambda _path, row, _node: row.trainable) if trainable is None else trainable,
        dims={glob.escape(paths[row.path]): row.dims for row in rows.values() if row.dims is not None},
        tied={paths[row.path]: paths.get(row.tied, row.tied) for row in rows.values() if row.tied is not None},
    )


def _row(name: str, entry: Any, dtype: Any) -> Leaf:
    """An entry as a row that has no place yet. Raises `ValueError` or `TypeError` that says what it is instead."""
    fields: Mapping[str, Any] = {"shape": entry}
    if isinstance(entry, Mapping):
        fields = cast(Mapping[str, Any], entry)
    elif isinstance(entry, Leaf):
        fields = {name: getattr(entry, name) for name in _FIELDS}
    elif hasattr(entry, "shape"):
        spec = spec_of(entry, name)
        fields = {} if spec is None else {"shape": spec.shape, "dtype": spec.dtype}
    if unknown := fields.keys() - set(_FIELDS):
        raise ValueError(f"the unknown fields {sorted(map(str, unknown))}")
    shape, dims, tied = fields.get("shape"), fields.get("dims"), fields.get("tied")
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int and n >= 0 for n in cast(list[Any], shape)):
        raise ValueError(f"shape {shape!r}")
    kind = np.dtype(fields.get("dtype", dtype))
    if not is_numeric(kind):
        raise ValueError(f"dtype {kind}, which holds no numbers")
    if dims is not None and (isinstance(dims, str) or not all(n is None or isinstance(n, str) for n in dims)):
        raise ValueError(f"dims {dims!r}")
    trains = fields.get("trainable", is_trainable_dtype(kind))
    if type(trains) is not bool or not isinstance(tied, str | None):
        raise ValueError(f"trainable {trains!r} and tied {tied!r}")
    names = None if dims is None else tuple(dims)
    return Leaf(name, (), tuple(cast(list[int], shape)), kind, trains, tied, names)


def _in_order(node: Any, order: Order) -> Any:
    if not isinstance(node, dict) or order == "sorted":
        return cast(Any, node)
    items = cast(dict[str, Any], node).items()
    if order == "numeric":
        items = sorted(items, key=lambda item: [int(x) if i % 2 else x for i, x in enumerate(_digits(item[0]))])
    return OrderedDict((key, _in_order(child, order)) for key, child in items)


_digits = re.compile(r"([0-9]+)").split
