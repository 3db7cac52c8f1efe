"""The bytes of a model, moved into the layout of an edited one."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf, Spec, as_numpy, spec_of
from flatstore.memory import reading
from flatstore.store import Population, Store, Views, same_bits
from flatstore.surgery.putting_back import in_words
from flatstore.surgery.replanning import to_add
from flatstore.surgery.taking_apart import row_pieces
from flatstore.trees import (
    Difference,
    Glob,
    Rename,
    StructureError,
    as_path,
    below,
    items,
    parts_of,
    refuse_clashes,
    renamed,
)

Model = TypeVar("Model", Store, Population)


def transfer(
    old: Model,
    new: Model | Layout,
    *,
    drop: Glob = (),
    rename: Rename = None,
    add: Mapping[str, Any] | Glob | None = None,
) -> Model:
    """Copy every leaf of `old` to its counterpart in `new`, once, without a temporary; returns `new`.

    The counterpart has the same path, or the one that `rename` gives. Leaves that `drop` matches are left behind.
    Leaves that `add` names need no counterpart: they take the arrays given for them, or keep what they hold if `add`
    has only a shape, a layout or a glob.

    Args:
        old: a store or a population; it is not changed.
        new: one of the same kind; or a layout, for one in new memory, with zeros where nothing is copied.
        drop: as for `replan`.
        rename: as for `replan`.
        add: as for `replan`, or only globs. An array is that of one model; all members of a population get it.

    Raises, before anything is written:
        StructureError: leaves without a counterpart of the same shape and dtype; it lists all of them.
        ValueError: a pattern that matches nothing, two leaves for one place, stores over the same memory.
        TypeError: `old` and `new` are not of one kind.
        LentError: `new` is lent, or another thread writes one of the two.
    """
    kinds = [f"Population of {x.size}" if isinstance(x, Population) else type(x).__name__ for x in (old, new)]
    if not isinstance(old, Views) or not (isinstance(new, Layout) or kinds[0] == kinds[1]):  # pyright: ignore[reportUnnecessaryIsInstance]
        fix = "the layout that replan returned" if isinstance(old, Views) else "Store.from_tree(tree) as old"  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "expected as old a store or a population, as new a layout, or another of the same kind and of one size, "
            f"got old: {kinds[0]}, new: {kinds[1]}; fix: pass {fix}"
        )
    target = new if isinstance(new, Layout) else new.layout
    is_globs = not isinstance(add, Mapping | None)
    given = {} if is_globs else dict(items("add", cast(Any, add)))
    globs: Any = add if is_globs else [glob.escape(as_path(path)) for path in given]
    may_lack = below("add", globs, [piece.name for piece in row_pieces(new, {})])
    leading = () if isinstance(old, Store) else (old.size,)
    moves = [
        (piece.name, "/".join(piece.new), old.leaf_view(piece.name))
        for piece in renamed(row_pieces(old, {}), drop, rename)
        if isinstance(piece.value, Leaf)
    ]
    moves += _moves_of_added(given, target, leading)
    refuse_clashes((parts_of(path), name) for name, path, _ in moves)
    with reading(old.memory):
        arrays = _counterparts(moves, target, leading, may_lack if is_globs else lambda _: False)
        if isinstance(new, Layout):
            order: Any = "leaf" if isinstance(old, Store) else old.order
            made = Store.zeros(new) if isinstance(old, Store) else Population.zeros(new, old.size, order=order)
            new = cast(Model, made)
        if old.memory.overlaps(new.memory):
            raise ValueError(
                "expected a new store in memory of its own, got one over the old one's; fix: pass its layout"
            )
        new.assign({path: arrays.get(leaf.tied or path, new.leaf_view(path)) for path, leaf in target.by_path.items()})
    return new


def _counterparts(
    moves: Sequence[tuple[str, str, Any]], target: Layout, leading: tuple[int, ...], may_lack: Callable[[str], bool]
) -> dict[str, Array]:
    """{path of a home of `target`: the array to copy there}, from the moves (name, path, array).

    Raises `StructureError` with everything that has no counterpart. A `Spec` in place of an array is checked, and
    nothing is copied for it.
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
        expected = str(Spec((*leading, *leaf.shape) if leaf.trainable else leaf.shape, leaf.dtype))
        got = in_words(source, path)
        if expected != got:
            alike = "drop the old one and add the new one, or plan the new one with the old shape and dtype"
            fix = alike if hasattr(source, "shape") else "give an array of numbers, or a shape to keep what is there"
            differences.append(Difference(path, expected, got, fix))
        elif not isinstance(source, Spec) and not same_bits(found.setdefault(home, source), source):
            fix = f"give both the same, or plan with tied=False: it is another name of {home!r}"
            differences.append(Difference(path, f"the values of {home!r}", "other values", fix))
    differences += [
        Difference(path, "a counterpart in the old layout", "none", "rename an old leaf to it, or name it in add=")
        for path, leaf in target.by_path.items()
        if path not in sources and (leaf.tied or path) not in found and not may_lack(path)
    ]
    if differences:
        raise StructureError(differences, "without a counterpart of the same shape and dtype")
    return found


def _moves_of_added(add: Mapping[str, Any], target: Layout, leading: tuple[int, ...]) -> list[tuple[str, str, Any]]:
    """The moves (name, path, array) of what is to be added; each array is broadcast to all members of a population.

    A shape alone becomes a `Spec`. An object that rides along is listed, so that it is refused, where the target has an
    array.
    """
    found: list[tuple[str, str, Any]] = []
    for at, value in add.items():
        for piece in to_add(as_path(at), value, {}, 0):
            path = "/".join(piece.new)
            row, spec, source = target.by_path.get(path), spec_of(piece.value, path), piece.value
            if spec is not None:
                per_member = row is not None and row.trainable and row.shape == spec.shape
                shape = leading + spec.shape if per_member else spec.shape
                if isinstance(source, (Leaf, jax.ShapeDtypeStruct)):
                    source = Spec(shape, spec.dtype)
                else:
                    source = np.broadcast_to(as_numpy(source, path).astype(spec.dtype, copy=False), shape)
            if spec is not None or row is not None:
                found.append((piece.name, path, source))
    return found
