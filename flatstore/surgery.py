"""Model surgery: the layout of an edited model, and the bytes moved into it.

    >>> layout = Layout.from_tree({"Dense_0": {"bias": np.zeros(2, "f4")}, "Dense_1": {"bias": np.zeros(3, "f4")}})
    >>> list(replan(layout, drop="Dense_1", rename={"Dense_*": "encoder/*"}).by_path)
    ['encoder/0/bias']

`replan` plans the new model, `transfer` fills it from the old one. Both go by path, on any pytree: what holds for
parameters holds for the optimiser's state that is named after them.

An edit is said in the same words to `replan` and to `transfer`:

    drop      globs of leaves or nodes
    rename    {pattern of leaves or nodes: new name}; '*' stands for the same text on both sides, and crosses '/'
    add       {path: arrays, shapes or a layout}
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import jax
import numpy as np

from flatstore.arrays import Array, Spec, as_numpy, spec_of
from flatstore.edits import Origin, Piece, Rename, below, built, items, parts_of, pieces_of, renamed
from flatstore.flat_dicts import refuse_clashes
from flatstore.incoming import same_bits
from flatstore.layout import Layout
from flatstore.memory import overlap
from flatstore.paths import Glob, as_path, flatten, globs_of, matcher, path_of, refuse_idle_glob
from flatstore.population import Population
from flatstore.putting_back import in_words
from flatstore.store import Store
from flatstore.structure import Difference, StructureError
from flatstore.table import Leaf, place
from flatstore.views import Views

Model = TypeVar("Model", Store, Population)


def replan(
    layout: Layout, *, drop: Glob = (), rename: Rename = None, add: Mapping[str, Any] | None = None, order: Glob = ()
) -> Layout:
    """The layout of an edited model: what `Layout.from_tree` gives for the edited tree. Nothing is allocated.

    First it drops, then renames, then adds. A node keeps its type where its children keep their names; a dict or a
    list may also gain and lose some. Leaves stay trainable, tied and named along their axes as they were.

    Args:
        layout: the old one; unchanged.
        drop: globs of leaves or nodes.
        rename: {pattern: new name}, all at once; the first pattern that matches a path counts.
        add: {path: a pytree of arrays or shapes (`jax.ShapeDtypeStruct`), or a layout}.
        order: globs. In memory, leaves that the first one matches come first, then those of the second, and so on;
            trainable leaves still stand before the others and each dtype together. No index changes.

    Raises:
        ValueError: a name that matches nothing, two leaves in one place, a node that cannot lose or gain a child.
        TypeError: something to add that has no shape and dtype.
    """
    if not isinstance(layout, Layout):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"expected a layout, got a {type(layout).__name__}; fix: store.layout, or Layout.from_tree(tree)"
        )
    origin: Origin = {}
    homes = {id(leaf): id(layout.by_path[leaf.tied or leaf.path]) for leaf in layout.leaves}
    pieces = renamed(pieces_of(layout.unflatten(layout.leaves), origin), drop, rename)
    for number, (path, value) in enumerate(items("add", add)):
        at = as_path(path)
        pieces += pieces_of(_planned(at, value, homes), origin, (number,), at)
    refuse_clashes((piece.new, piece.name) for piece in pieces)
    flat, treedef = flatten(built(pieces, origin)) if pieces else ([], None)
    rows: list[Leaf] = []
    first: dict[int, str] = {}
    for keys, leaf in flat:
        if isinstance(leaf, Leaf):
            path, home = path_of(keys), homes[id(leaf)]
            rows.append(Leaf(path, keys, leaf.shape, leaf.dtype, leaf.trainable, first.get(home), leaf.dims))
            first.setdefault(home, path)
    if not rows:
        raise ValueError("expected a numeric leaf in the new layout, got none; fix: drop less")
    riders = tuple((i, leaf) for i, (_, leaf) in enumerate(flat) if not isinstance(leaf, Leaf))
    return Layout(_placed(rows, order, layout.align), layout.align, treedef, riders)


def transfer(
    old: Model,
    new: Model | Layout,
    *,
    drop: Glob = (),
    rename: Rename = None,
    add: Mapping[str, Any] | Glob | None = None,
) -> Model:
    """Copy every leaf of `old` to its counterpart in `new`, once, without a temporary; returns `new`.

    The counterpart has the same path, or the one that `rename` gives. What `drop` names is left behind. What `add`
    names needs no counterpart: it takes the arrays given for it, or keeps what it holds where there is only a shape, a
    layout or a glob.

    Args:
        old: a store or a population; unchanged.
        new: one of the same kind, or a layout, of which it makes one in new memory (zeros where nothing comes).
        drop: as for `replan`.
        rename: as for `replan`.
        add: as for `replan`, or only globs. An array is one model's; all members of a population get it.

    Raises, before anything is written:
        StructureError: leaves of the old or the new one without a counterpart, or of another shape or dtype: all.
        ValueError: a name that matches nothing, two leaves for one place, stores over the same memory.
        TypeError: a store and a population.
        LentError: the new one is lent.
    """
    kinds = [f"Population of {x.size}" if isinstance(x, Population) else type(x).__name__ for x in (old, new)]
    if not isinstance(old, Views) or not (isinstance(new, Layout) or kinds[0] == kinds[1]):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected two stores, two populations of one size, or a layout, got {kinds}; fix: new.layout")
    target = new if isinstance(new, Layout) else new.layout
    is_globs = not isinstance(add, Mapping | None)
    given = {} if is_globs else dict(items("add", cast(Any, add)))
    globs: Any = add if is_globs else [glob.escape(as_path(path)) for path in given]
    may_lack = below("add", globs, [piece.name for piece in pieces_of(target.unflatten(target.leaves), {})])
    lead = () if isinstance(old, Store) else (old.size,)
    moves = [
        (piece.name, "/".join(piece.new), old.leaf_view(piece.name))
        for piece in renamed(pieces_of(old.layout.unflatten(old.layout.leaves), {}), drop, rename)
        if isinstance(piece.value, Leaf)
    ]
    moves += _given(given, target, lead)
    refuse_clashes((parts_of(path), name) for name, path, _ in moves)
    arrays = _counterparts(moves, target, lead, may_lack if is_globs else lambda _: False)
    if isinstance(new, Layout):
        order: Any = "leaf" if isinstance(old, Store) else old.order
        new = cast(Model, Store.zeros(new) if isinstance(old, Store) else Population.zeros(new, old.size, order=order))
    if overlap(old.memory, new.memory):
        raise ValueError("expected a new store in memory of its own, got one over the old one's; fix: pass its layout")
    new.assign({path: arrays.get(leaf.tied or path, new.leaf_view(path)) for path, leaf in target.by_path.items()})
    return new


def _counterparts(
    moves: Sequence[tuple[str, str, Any]], target: Layout, lead: tuple[int, ...], may_lack: Callable[[str], bool]
) -> dict[str, Array]:
    """{home of `target`: what goes there} of (name, path, array). Raises `StructureError` with all that has none.

    Of what is given as a `Spec` only the kind is checked.
    """
    differences = [
        Difference(name, "a counterpart in the new layout", f"none at {path!r}", "drop or rename it, or plan it there")
        for name, path, _ in moves
        if path not in target.by_path
    ]
    sources = {path: array for _, path, array in moves}
    found: dict[str, Array] = {}
    for path, leaf in target.by_path.items():
        if path not in sources:
            continue
        source, home = sources[path], leaf.tied or path
        expected = str(Spec((*lead, *leaf.shape) if leaf.trainable else leaf.shape, leaf.dtype))
        got = in_words(source, path)
        if expected != got:
            alike = "drop the old one and add the new one, or plan the new one alike"
            fix = alike if hasattr(source, "shape") else "give an array of numbers, or a shape to keep what is there"
            differences.append(Difference(path, expected, got, fix))
        elif not isinstance(source, Spec) and not same_bits(found.setdefault(home, source), source):
            fix = f"give both the same, or plan with tied=False: it is another name of {home!r}"
            differences.append(Difference(path, f"the values of {home!r}", "other values", fix))
    differences += [
        Difference(path, "a counterpart in the old layout", "none", "rename one to it, or add it")
        for path, leaf in target.by_path.items()
        if path not in sources and (leaf.tied or path) not in found and not may_lack(path)
    ]
    if differences:
        raise StructureError(differences, "without a counterpart of the same shape and dtype")
    return found


def _planned(path: str, value: Any, homes: dict[int, int]) -> Any:
    """Something to add as a tree of rows; notes their homes."""
    pieces = _to_add(path, value)
    if not isinstance(value, Layout):
        if all(spec_of(piece.value, "/".join(piece.new)) is None for piece in pieces):
            return value
        value = Layout.from_tree(value)
    rows = {leaf.path: replace(leaf) for leaf in value.leaves}
    homes.update({id(leaf): id(rows[leaf.tied or leaf.path]) for leaf in rows.values()})
    return value.unflatten(rows.values())


def _to_add(path: str, value: Any) -> list[Piece]:
    """The pieces of something to add; rows, of a layout. Raises `TypeError` for what is no tree of arrays or shapes."""
    if type(value) in (list, tuple) and value and all(isinstance(n, int) for n in value):
        raise TypeError(
            f"add: expected an array or a shape with a dtype at {path!r}, got the bare shape {value}; "
            "fix: jax.ShapeDtypeStruct(shape, 'float32')"
        )
    pieces = pieces_of(value.unflatten(value.leaves) if isinstance(value, Layout) else value, {}, (0,), path)
    for piece in pieces:
        if isinstance(piece.value, (Views, Layout)):
            raise TypeError(
                f"add: expected arrays or shapes at {'/'.join(piece.new)!r}, got a {type(piece.value).__name__}; "
                "fix: give store.tree, or store.layout under a path of its own"
            )
    return pieces


def _given(add: Mapping[str, Any], target: Layout, lead: tuple[int, ...]) -> list[tuple[str, str, Any]]:
    """(name, path, array) for each array among what is to be added; a population's members share it.

    What is only a shape is a `Spec`. What rides along is listed where the target has an array.
    """
    found: list[tuple[str, str, Any]] = []
    for at, value in add.items():
        for piece in _to_add(as_path(at), value):
            path = "/".join(piece.new)
            row, spec, source = target.by_path.get(path), spec_of(piece.value, path), piece.value
            if spec is not None:
                per_member = row is not None and row.trainable and row.shape == spec.shape
                shape = lead + spec.shape if per_member else spec.shape
                if isinstance(source, (Leaf, jax.ShapeDtypeStruct)):
                    source = Spec(shape, spec.dtype)
                else:
                    source = np.broadcast_to(as_numpy(source, path).astype(spec.dtype, copy=False), shape)
            if spec is not None or row is not None:
                found.append((piece.name, path, source))
    return found


def _placed(rows: Sequence[Leaf], order: Glob, align: int) -> tuple[Leaf, ...]:
    """The rows with their places; in memory, what an earlier glob matches comes first."""
    globs = globs_of("order", order)
    for pattern in globs:
        refuse_idle_glob("order", pattern, [row.path for row in rows])
    matches = [matcher(pattern) for pattern in globs]
    ranks = {row.path: next((i for i, match in enumerate(matches) if match(row.path)), len(globs)) for row in rows}
    offsets = {row.path: row.offset for row in place(sorted(rows, key=lambda row: ranks[row.path]), align)}
    return tuple(replace(row, offset=offsets[row.path]) for row in place(rows, align))
