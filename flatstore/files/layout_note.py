"""A layout as text: what `save` adds to the metadata of a file, so that the file gives the same layout back.

The text is JSON: a version, the alignment, and a row for each leaf in JAX's order, [path, trainable, home, dims].
Shapes and dtypes are those of the file's tensors.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from flatstore.files.header import parsed
from flatstore.layout import Layout, Leaf, Spec, place
from flatstore.trees import Difference, StructureError, flatten, keys_of, path_of

MOST_GAP = 2**27
"""The bytes that gaps may take in any layout; in larger ones they may take as many as the data do."""

_DEEPEST = 200  # a tree's keys, one below the other; a few hundred more, and JAX runs out of stack

Rows = dict[str, tuple[bool, str | None, tuple[str | None, ...] | None]]


class Note(NamedTuple):
    """The layout of a file, as its metadata describe it."""

    align: int
    rows: Rows
    """For each leaf: whether it trains, the path of the home that it is tied to, and the names of its axes."""


def written(layout: Layout) -> str:
    """The note of a layout. Raises `StructureError` unless names of axes are strings, and the errors of `bounded`."""
    odd = [
        Difference(leaf.path, "names of axes that are strings or None", str(leaf.dims), "name them when you plan it")
        for leaf in layout.leaves
        if not _are_names(leaf.dims)
    ]
    if odd:
        raise StructureError(odd, "whose axes cannot be saved")
    rows = [[leaf.path, leaf.trainable, leaf.tied, leaf.dims] for leaf in bounded(layout).leaves]
    return json.dumps({"version": 1, "align": int(layout.align), "leaves": rows})


def read(text: str, tensors: Mapping[str, Spec]) -> Note:
    """The note that `written` wrote, for a file of these tensors.

    Raises `ValueError` that says what is wrong with it: other JSON, malformed rows, paths that are malformed or used
    twice, homes other than the tensors, ties to something that is not a home before them; `RecursionError` for JSON
    that is nested too deeply.
    """
    table: Any = parsed(text)
    match table:
        case {"version": int(version), "align": int(align), "leaves": [*leaves]} if (
            type(version) is type(align) is int  # and not bool
        ):
            pass
        case _:
            raise ValueError(f"expected a version, an alignment and a list of leaves, got {text[:60]!r}")
    if version != 1:
        raise ValueError(f"expected version 1, got {version}")
    rows: Rows = {}
    homes: set[str] = set()
    for i, row in enumerate(leaves):
        match row:
            case [str(path), bool(trainable), None | str() as tied, None | [*_] as dims] if _are_names(dims):
                pass
            case _:
                raise ValueError(
                    f"row {i}: expected a path, whether it trains, its home and names of axes, got {str(row)[:60]}"
                )
        if path in rows or path_of(keys_of(path)) != path:
            raise ValueError(f"row {i}: expected a path of its own, as path_of writes it, got {path!r}")
        if tied is not None and tied not in homes:
            raise ValueError(f"{path!r}: expected a home that comes before it, got {tied!r}")
        if tied is None:
            homes.add(path)
        rows[path] = (trainable, tied, None if dims is None else tuple(dims))
    if homes != set(tensors):
        raise ValueError(f"expected a row for each tensor and no other, got {sorted(homes ^ set(tensors))[:3]}")
    return Note(align, rows)


def planned(note: Note, tensors: Mapping[str, Spec]) -> Layout:
    """The layout of a note, over a tree of ordered dicts: as it was saved, in time linear in its leaves.

    Raises `ValueError` for rows that no such tree has in this order, and for those that `Layout` refuses.
    """
    tree: OrderedDict[str, Any] = OrderedDict()
    for path in note.rows:
        node: Any = tree
        *above, last = keys_of(path)
        if len(above) >= _DEEPEST:
            raise ValueError(f"expected at most {_DEEPEST} keys in a path, got {len(above) + 1} in {path[:60]!r}")
        for key in above:
            node = node.setdefault(key, OrderedDict())
            if isinstance(node, str):
                raise ValueError(f"expected leaves or nodes, got {node!r}, which is both")
        node[last] = path
    found, treedef = flatten(tree)
    if [path for _, path in found] != list(note.rows):
        raise ValueError(
            "expected the leaves of each node side by side, got others between them, or a leaf that is one"
        )
    leaves: list[Leaf] = []
    for keys, path in found:
        trainable, tied, dims = note.rows[path]
        leaves.append(Leaf(path, keys, *tensors[tied or path], trainable, tied, dims))
    return bounded(Layout(place(leaves, note.align), note.align, treedef))


def _are_names(dims: Any) -> bool:
    return all(isinstance(name, str | None) for name in dims or ())


def bounded(layout: Layout) -> Layout:
    """The layout itself, unless its memory is mostly gaps: a small file must not be able to ask for all memory.

    Raises `ValueError` if the gaps and the alignment take more than the data and more than `MOST_GAP` bytes.
    """
    gaps, data = layout.padding + layout.align, layout.nbytes - layout.padding
    if gaps > max(data, MOST_GAP):
        raise ValueError(
            f"align: expected gaps of at most {max(data, MOST_GAP):,} bytes, got {gaps:,} for align={layout.align}; "
            "fix: plan the layout with align=64"
        )
    return layout
