"""What becomes of the tensors of a file: the layout that they are read into, and the leaf that each of them fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flatstore.checks import repeats
from flatstore.files import layout_note
from flatstore.files.contents import Contents
from flatstore.files.layout_note import Members, Note, Rows
from flatstore.layout import Layout, Spec
from flatstore.store import AnyPopulation, AnyStore
from flatstore.trees import (
    Difference,
    Glob,
    Piece,
    Rename,
    StructureError,
    globs_of,
    matcher,
    parts_of,
    path_of,
    refuse_idle_glob,
    renamed,
)


class Plan(NamedTuple):
    """What is made of the tensors of a file."""

    layout: Layout
    members: Members | None
    """The members, if it is a population."""
    names: dict[str, str]
    """The name in the file, by the path of the leaf that is filled with it."""


def plan(contents: Contents, like: Any, only: Glob | None, rename: Rename) -> Plan:
    """The plan of `load` and `open`; the arguments and the errors are theirs."""
    if like is None:
        return _as_saved(contents, only, rename)
    names = _renamed({name: name for name in contents.specs}, {}, only, rename)
    given = like.layout if isinstance(like, AnyStore | AnyPopulation) else like
    layout = given if isinstance(given, Layout) else Layout.from_tree(given)
    members = None
    if isinstance(like, AnyPopulation):
        members = Members(len(like), "member" if like.order == "member" else "leaf")
    elif contents.has_note:
        note = contents.metadata[layout_note.KEY]
        try:
            members = layout_note.read_members(note)
        except ValueError:  # like= is what the error of a damaged note advises
            if not repeats(lambda: layout_note.read_members(note)):
                raise
    _check(layout, members, {path: contents.specs[name] for path, name in names.items()})
    return Plan(layout, members, names)


def _as_saved(contents: Contents, only: Glob | None, rename: Rename) -> Plan:
    note = contents.note()
    names = {name if contents.has_note else path_of((name,)): name for name in contents.specs}
    if only is None and not rename:
        return Plan(*contents.layout(), names)
    rows = note.rows
    chosen: Rows = {}
    homes: dict[str, str] = {}  # the first of the chosen names of each home, by the home in the file
    for path, old in _renamed({path: path for path in rows}, names, only, rename).items():
        trains, tied, dims = rows[old]
        chosen[path] = (trains, homes.get(tied or old), dims)
        homes.setdefault(tied or old, path)
    specs = {homes[home]: contents.specs[names[home]] for home in homes}
    try:
        layout = layout_note.planned(Note(note.align, chosen, note.members), specs, in_order=False)
    except ValueError as error:
        raise ValueError(
            f"rename: expected paths that make a tree, got others in {contents.path!r} ({error}); "
            "fix: rename nodes and leaves so that no leaf is a node, too"
        ) from error
    return Plan(layout, note.members, {path: names[home] for home, path in homes.items()})


def _renamed(paths: Mapping[str, str], names: Mapping[str, str], only: Glob | None, rename: Rename) -> dict[str, str]:
    """Those of the paths that are chosen, with their new names, and what they stood for.

    `names` are those in the file of paths that have another one there. Raises `ValueError` for globs and patterns that
    match none, and for two paths of one new name.
    """
    chosen = dict(paths)
    if only is not None:
        matches = matcher(globs_of("only", only))
        chosen = {path: home for path, home in paths.items() if matches(names.get(path, path))}
        if not chosen:
            refuse_idle_glob("only", only, [names.get(path, path) for path in paths])
    if not rename:
        return chosen
    found: dict[str, str] = {}
    for piece in renamed([Piece(parts_of(path), parts_of(path), home) for path, home in chosen.items()], (), rename):
        path = "/".join(piece.new)
        if path in found:
            raise ValueError(
                f"rename: expected another name for each leaf, got {path!r} twice, for {piece.name!r} too; "
                "fix: rename one of them otherwise, or leave it out with only="
            )
        found[path] = piece.value
    return found


def _check(layout: Layout, members: Members | None, got: Mapping[str, Spec]) -> None:
    """Raise `StructureError` with every leaf in which the tensors of a file differ from a layout."""
    size = (members.size,) if members else ()
    differences = [
        Difference(
            path, str(Spec(size + leaf.shape if leaf.trainable else leaf.shape, leaf.dtype)), "nothing", "add this leaf"
        )
        for path, leaf in layout.by_path.items()
        if path not in got and leaf.tied not in got
    ]
    for path, spec in got.items():
        leaf = layout.by_path.get(path)
        found = layout.difference(path, spec, "no", size if leaf is not None and leaf.trainable else ())
        differences += [found] if found else []
    if differences:
        raise StructureError(differences)
