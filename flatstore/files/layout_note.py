"""A layout as text: what `save` adds to the metadata of a file, so that the file gives the same layout back.

The text is JSON: a version, the alignment, for a population its size and order, and a row for each leaf in JAX's order,
[path, trainable, home, dims]. Shapes and dtypes are those of the file's tensors, which have an axis of the members
before their own where they are a population's.

It is read row by row, in time and memory that grow with its length alone.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from flatstore.layout import Layout, Leaf, Spec, place
from flatstore.trees import Difference, StructureError, flatten, keys_of, path_of

KEY = "flatstore"
"""The name of the note among the metadata."""

MOST_GAP = 2**27
"""The bytes that gaps may take in any layout; in larger ones they may take as many as the data do."""

_DEEPEST = 200  # a tree's keys, one below the other; a few hundred more, and JAX runs out of stack

Rows = dict[str, tuple[bool, str | None, tuple[str | None, ...] | None]]


class Members(NamedTuple):
    """What a population is, besides its layout."""

    size: int
    order: Literal["leaf", "member"]


class Note(NamedTuple):
    """The layout of a file, as its metadata describe it."""

    align: int
    rows: Rows
    """For each leaf: whether it trains, the path of the home that it is tied to, and the names of its axes."""
    members: Members | None
    """The members, if it is a population."""


def written(layout: Layout, members: Members | None = None) -> str:
    """The note of a layout. Raises `StructureError` unless names of axes are strings, and the errors of `bounded`."""
    odd = [
        Difference(leaf.path, "names of axes that are strings or None", str(leaf.dims), "name them when you plan it")
        for leaf in layout.leaves
        if not all(isinstance(name, str | None) for name in leaf.dims or ())  # pyright: ignore[reportUnnecessaryIsInstance]
    ]
    if odd:
        raise StructureError(odd, "whose axes cannot be saved")
    rows = [[leaf.path, leaf.trainable, leaf.tied, leaf.dims] for leaf in bounded(layout).leaves]
    table: dict[str, Any] = {"version": 1 if members is None else 2, "align": int(layout.align)}
    if members is not None:
        table["population"] = {"size": members.size, "order": members.order}
    return json.dumps(table | {"leaves": rows})


_STRING = r'"(?:[^"\\\x00-\x1f]++|\\.)*+"'
_DIMS = rf"null|\[\s*(?:(?:null|{_STRING})\s*(?:,\s*(?:null|{_STRING})\s*)*+)?\]"
_ROW = re.compile(rf"\s*\[\s*({_STRING})\s*,\s*(true|false)\s*,\s*(null|{_STRING})\s*,\s*({_DIMS})\s*\]\s*")
_START = re.compile(
    r'\s*\{\s*"version"\s*:\s*(\d{1,9})\s*,\s*"align"\s*:\s*(-?\d{1,4000})\s*,\s*'
    r'(?:"population"\s*:\s*\{\s*"size"\s*:\s*(\d{1,18})\s*,\s*"order"\s*:\s*"(leaf|member)"\s*\}\s*,\s*)?'
    r'"leaves"\s*:\s*\['
)
_END = re.compile(r"\s*\}\s*")


def read(text: str, tensors: Mapping[str, Spec]) -> Note:
    """The note that `written` wrote, for a file of these tensors.

    Raises `ValueError` that says what is wrong with it: other JSON, malformed rows, paths that are malformed or used
    twice, homes other than the tensors, ties to something that is not a home before them.
    """
    members = read_members(text)
    start = _START.match(text)
    assert start is not None
    if int(start[1]) != (2 if members else 1):
        raise ValueError(f"expected version {2 if members else 1}, got {int(start[1])}")
    rows: Rows = {}
    homes: set[str] = set()
    for i, (path, trainable, tied, dims) in enumerate(_rows(text, start.end())):
        if path.count("/") >= _DEEPEST:
            raise ValueError(f"expected at most {_DEEPEST} keys in a path, got {path.count('/') + 1} in {path[:60]!r}")
        if path in rows or path_of(keys_of(path)) != path:
            raise ValueError(f"row {i}: expected a path of its own, as path_of writes it, got {path!r}")
        if tied is not None and tied not in homes:
            raise ValueError(f"{path!r}: expected a home that comes before it, got {tied!r}")
        if tied is None:
            homes.add(path)
        rows[path] = (trainable, tied, dims)
    if homes != set(tensors):
        raise ValueError(f"expected a row for each tensor and no other, got {sorted(homes ^ set(tensors))[:3]}")
    return Note(int(start[2]), rows, members)


def _rows(text: str, at: int) -> Iterator[tuple[str, bool, str | None, tuple[str | None, ...] | None]]:
    """The rows of the table, from a place in its text to its end."""
    number = 0
    while True:
        row = _ROW.match(text, at)
        if row is None and number == 0 and _END.fullmatch(text, at + 1) and text[at] == "]":
            return
        if row is None:
            raise ValueError(
                f"row {number}: expected a path, whether it trains, its home and names of axes, "
                f"got {text[at : at + 60].lstrip()}"
            )
        yield json.loads(row[1]), row[2] == "true", json.loads(row[3]), _dims(row[4])
        number, at = number + 1, row.end() + 1
        match text[at - 1 : at]:
            case ",":
                continue
            case "]" if _END.fullmatch(text, at):
                return
            case _:
                raise ValueError(f"row {number}: expected another row or the end, got {text[at - 1 : at + 60]!r}")


def _dims(text: str) -> tuple[str | None, ...] | None:
    names = json.loads(text)
    return None if names is None else tuple(names)


def read_members(text: str) -> Members | None:
    """What a note says of the members of a population; None for a store. Raises `ValueError` for no note."""
    start = _START.match(text)
    if start is None:
        raise ValueError(f"expected a version, an alignment and a list of leaves, got {text[:60]!r}")
    return Members(int(start[3]), "leaf" if start[4] == "leaf" else "member") if start[3] else None


def planned(note: Note, tensors: Mapping[str, Spec], *, in_order: bool = True) -> Layout:
    """The layout of a note, over a tree of ordered dicts: as it was saved, in time linear in its leaves.

    Without `in_order` the rows may come in any order, and have that of the tree afterwards.

    Raises `ValueError` for rows that no such tree has in this order, and for those that `Layout` refuses.
    """
    tree: OrderedDict[str, Any] = OrderedDict()
    for path in note.rows:
        node: Any = tree
        *above, last = keys_of(path)
        for key in above:
            node = node.setdefault(key, OrderedDict())
            if isinstance(node, str):
                raise ValueError(f"expected leaves or nodes, got {node!r}, which is both")
        if last in node:  # only a node may be there: no two rows have one path
            raise ValueError(f"expected leaves or nodes, got {path!r}, which is both")
        node[last] = path
    found, treedef = flatten(tree)
    if in_order and [path for _, path in found] != list(note.rows):
        raise ValueError("expected the leaves of each node side by side, got others between them")
    leaves: list[Leaf] = []
    for keys, path in found:
        trainable, tied, dims = note.rows[path]
        shape, dtype = tensors[tied or path]
        if note.members and trainable:
            if not note.members.size == (shape or [-1])[0]:
                raise ValueError(f"{path!r}: expected {note.members.size} members before its axes, got shape {shape}")
            shape = shape[1:]
        leaves.append(Leaf(path, keys, shape, dtype, trainable, tied, dims))
    if note.members and not (note.members.size and any(leaf.trainable for leaf in leaves)):
        raise ValueError("expected a population of at least one member with trainable leaves, got another")
    return bounded(Layout(place(leaves, note.align), note.align, treedef))


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
