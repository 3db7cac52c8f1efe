"""Model surgery: the layout of an edited model, and the bytes moved into it.

    >>> import numpy as np
    >>> layout = Layout.from_tree({"Dense_0": {"bias": np.zeros(2, "f4")}, "Dense_1": {"bias": np.zeros(3, "f4")}})
    >>> list(replan(layout, drop="Dense_1", rename={"Dense_*": "encoder/*"}).by_path)
    ['encoder/0/bias']

`replan` plans the new model, `transfer` fills it from the old one. Both go by path, on any pytree: also on the state of
an optimiser, which is named after the parameters.

`replan` and `transfer` take the same arguments for an edit:

    drop      globs of leaves or nodes
    rename    {pattern of leaves or nodes: new name}; '*' stands for the same text on both sides, and crosses '/'
    add       {path: arrays, shapes, a store (which counts as its tree) or a layout}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flatstore.layout import Layout, Leaf, check_layout, place, spec_of, stand_ins
from flatstore.store import Population, Store
from flatstore.surgery.taking_apart import row_pieces
from flatstore.trees import (
    Glob,
    OldNodes,
    Piece,
    Rename,
    as_path,
    built,
    flatten,
    globs_of,
    items,
    matcher,
    names_of,
    path_of,
    pieces_of,
    refuse_clashes,
    refuse_idle_glob,
    renamed,
)


def replan(
    layout: Layout, *, drop: Glob = (), rename: Rename = None, add: Mapping[str, Any] | None = None, order: Glob = ()
) -> Layout:
    """The layout of an edited model, as `Layout.from_tree` makes it of the edited tree. Nothing is allocated.

    Leaves are dropped first, then renamed, then added. A node keeps its type if its children keep their names; a dict
    or a list may also gain and lose some. What is trainable, tied or named along its axes stays so.

    Args:
        layout: the layout of the old model; it is not changed.
        drop: globs of leaves or nodes.
        rename: {pattern: new name}, all at once; the first pattern that matches a path counts.
        add: {path: a pytree of arrays or shapes (`jax.ShapeDtypeStruct`), or a layout}. A store counts as its tree, and
            keeps what is trainable, tied and named there.
        order: globs. In memory, leaves that the first one matches come first, then those of the second, and so on;
            trainable leaves still stand before the others and each dtype together. No index changes.

    Raises:
        ValueError: a pattern that matches nothing, two leaves in one place, a node that cannot lose or gain a child.
        TypeError: `layout` is not a layout, or something to add has no shape and dtype, or is a population.
    """
    check_layout(layout)
    old_nodes: OldNodes = {}
    homes = {id(leaf): id(layout.by_path[leaf.tied or leaf.path]) for leaf in layout.leaves}
    pieces = renamed(row_pieces(layout, old_nodes), drop, rename)
    for number, (path, value) in enumerate(items("add", add)):
        pieces += _planned(as_path(path), value, homes, old_nodes, number)
    refuse_clashes((piece.new, piece.name) for piece in pieces)
    found = {piece.new: piece.value for piece in pieces if isinstance(piece.value, Leaf)}
    arrays = dict(zip(found, stand_ins(found.values()), strict=True))
    pieces = [piece._replace(value=arrays.get(piece.new, piece.value)) for piece in pieces]
    flat, treedef = flatten(built(pieces, old_nodes)) if pieces else ([], None)
    rows: list[Leaf] = []
    first: dict[int, str] = {}
    riders: list[tuple[int, Any]] = []
    for position, (keys, value) in enumerate(flat):
        leaf = found.get(names_of(keys))
        if leaf is None:
            riders.append((position, value))
            continue
        path, home = path_of(keys), homes[id(leaf)]
        rows.append(Leaf(path, keys, leaf.shape, leaf.dtype, leaf.trainable, first.get(home), leaf.dims))
        first.setdefault(home, path)
    if not rows:
        raise ValueError(
            "expected a numeric leaf in the new layout, got none; fix: drop fewer leaves, or add some with add="
        )
    return Layout(_placed(rows, order, layout.align), layout.align, treedef, tuple(riders))


def _planned(path: str, value: Any, homes: dict[int, int], old_nodes: OldNodes, number: int) -> list[Piece]:
    """The pieces of something to add, with rows of their own for numeric leaves, whose homes are added to `homes`."""
    value = value.layout if isinstance(value, Store) else value
    pieces = to_add(path, value, old_nodes, number)
    if not isinstance(value, Layout):
        if all(spec_of(piece.value, "/".join(piece.new)) is None for piece in pieces):
            return pieces
        value = Layout.from_tree(value)
    rows = {leaf.path: replace(leaf) for leaf in value.leaves}
    homes.update({id(leaf): id(rows[leaf.tied or leaf.path]) for leaf in rows.values()})
    by_parts = {(number, *names_of(leaf.key_path)): leaf for leaf in rows.values()}
    return [piece._replace(value=by_parts.get(piece.old, piece.value)) for piece in pieces]


def to_add(path: str, value: Any, old_nodes: OldNodes, number: int) -> list[Piece]:
    """The pieces of something to add; those of a layout are rows. Raises `TypeError` unless it is arrays or shapes."""
    if type(value) in (list, tuple) and value and all(isinstance(n, int) for n in value):
        raise TypeError(
            f"add: expected an array or a shape with a dtype at {path!r}, got the bare shape {value}; "
            "fix: pass jax.ShapeDtypeStruct(shape, 'float32')"
        )
    if isinstance(value, Population):
        raise TypeError(
            f"add: expected one model at {path!r}, as arrays, shapes, a store or a layout, got a Population; "
            "fix: pass a member, as population[0], or population.layout"
        )
    taken_apart = row_pieces if isinstance(value, Layout) else pieces_of
    return taken_apart(value, old_nodes, (number,), path)


def _placed(rows: Sequence[Leaf], order: Glob, align: int) -> tuple[Leaf, ...]:
    """The rows with their places; in memory, leaves that an earlier glob matches come first."""
    globs = globs_of("order", order)
    for pattern in globs:
        refuse_idle_glob("order", pattern, [row.path for row in rows])
    matches = [matcher(pattern) for pattern in globs]
    ranks = {row.path: next((i for i, match in enumerate(matches) if match(row.path)), len(globs)) for row in rows}
    offsets = {row.path: row.offset for row in place(sorted(rows, key=lambda row: ranks[row.path]), align)}
    return tuple(replace(row, offset=offsets[row.path]) for row in place(rows, align))
