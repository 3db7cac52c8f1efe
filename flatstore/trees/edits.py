"""Edits of a tree by path: pieces are dropped, renamed and added, and a new tree is built of them.

A tree is taken apart into *pieces*: its leaves, and its nodes without children. Pieces get new paths and are put
together again. A node keeps its type if all its children moved along with it, or if they are still in it:

```
opt/0/mu/Dense_0/kernel      rename {"Dense_0": …} would leave the NamedTuple opt/0 as it is: its children are mu, nu
'-- tuple '-- dict           a dict or a list may gain and lose children; a NamedTuple may not
  '-- ScaleByAdamState
```
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from flatstore.trees.paths import (
    Glob,
    KeyPath,
    as_path,
    children,
    expanded,
    flatten,
    globs_of,
    keys_of,
    matcher,
    nodes,
    path_of,
    refuse_idle_glob,
    unflatten,
)

PathParts = tuple[Any, ...]
Rename = Mapping[str, str] | None
OldNodes = dict[PathParts, Any]


class Piece(NamedTuple):
    """A leaf, or a node without children, on its way from one tree to another."""

    old: PathParts
    """The parts of its old path; those of an added piece follow the number of what it was added with."""
    new: PathParts
    value: Any

    @property
    def name(self) -> str:
        """Its name in messages: the old path, or the new one if it was added."""
        added = bool(self.old) and isinstance(self.old[0], int)
        return f"{'/'.join(self.new)} (added)" if added else "/".join(self.old)


def parts_of(path: str) -> PathParts:
    """The parts of a path, still escaped; the empty path has none.

    >>> parts_of("a~1b/w"), parts_of("")
    (('a~1b', 'w'), ())
    """
    return tuple(path.split("/")) if path else ()


def pieces_of(tree: Any, old_nodes: OldNodes, number: tuple[int, ...] = (), at: str = "") -> list[Piece]:
    """The pieces of a tree that is to be placed at `at`; its nodes are added to `old_nodes`, by their old parts."""
    _refuse_nameless("add", at, parts_of(at))
    tree = expanded(tree, at)
    old_nodes.update({number + names_of(keys): node for keys, node in nodes(tree)})
    found = flatten(tree, is_leaf=lambda node: not children(node))[0]
    return [Piece(number + names_of(keys), parts_of(at) + names_of(keys), value) for keys, value in found]


def below(argument: str, globs: Glob, paths: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a path, or a node above it, matches. Raises `ValueError` if a glob never does."""
    wider = {glob: (glob, f"{glob}/*") for glob in globs_of(argument, globs)}
    for glob, pair in wider.items():
        if not any(map(matcher(pair), paths)):
            refuse_idle_glob(argument, glob, paths)
    return matcher([glob for pair in wider.values() for glob in pair])


def items(argument: str, mapping: Mapping[str, Any] | None) -> Iterable[tuple[str, Any]]:
    """The items of a mapping by path; none if it is None. Raises `TypeError` for anything else."""
    if not isinstance(mapping, Mapping | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{argument}: expected a mapping by path, got {mapping!r}; fix: pass a dict such as {{'Dense_0': …}}"
        )
    return (mapping or {}).items()


def renamed(pieces: Iterable[Piece], drop: Glob, rename: Rename) -> list[Piece]:
    """The pieces that are not dropped, with their new paths. Raises `ValueError` for a pattern that matches nothing."""
    pieces = list(pieces)
    paths = [piece.name for piece in pieces]
    dropped = below("drop", drop, paths)
    rules = [_rule(as_path(pattern), as_path(name), paths) for pattern, name in items("rename", rename)]
    kept: list[Piece] = []
    for piece, path in zip(pieces, paths, strict=True):
        found = next(((match, name) for rule, name in rules if (match := rule.fullmatch(path))), None)
        if dropped(path):
            continue
        if found is None:
            kept.append(piece)
        else:
            texts = zip(found[1].split("*"), found[0].groups(default=""), strict=True)
            new = parts_of("".join(text + star for text, star in texts))
            if "" not in piece.old:  # a key that was empty may stay so
                _refuse_nameless("rename", found[1], new)
            kept.append(piece._replace(new=new))
    return kept


def _refuse_nameless(argument: str, name: str, parts: PathParts) -> None:
    """Raise `ValueError` for an empty part of a new path: a slash too many, or a node renamed to nothing."""
    if "" in parts:
        raise ValueError(
            f"{argument}: expected a name on both sides of each '/', got {name!r}, which makes {'/'.join(parts)!r}; "
            "fix: pass a path such as 'a/b'; to take the node 'a' away, rename={'a/*': '*'}"
        )


def _rule(pattern: str, name: str, paths: Sequence[str]) -> tuple[re.Pattern[str], str]:
    """A pattern as a regular expression: a group for each '*', and one for what lies below a node."""
    if pattern.count("*") != name.count("*"):
        raise ValueError(
            f"rename: expected as many '*' in the new name as in the pattern, got {pattern!r}: {name!r}; "
            "fix: each '*' stands for the same text on both sides, and is never a character of a name"
        )
    rule = re.compile("(.*)".join(map(re.escape, pattern.split("*"))) + "(/.*)?", re.DOTALL)
    if not any(map(rule.fullmatch, paths)):
        raise ValueError(
            f"rename: expected patterns that match a leaf or a node, got {pattern!r}; fix: paths are like {paths[:3]}"
        )
    return rule, name


def built(pieces: Sequence[Piece], old_nodes: OldNodes, at: PathParts = ()) -> Any:
    """The tree of pieces whose new paths begin with `at`. Raises `ValueError` for a node that cannot be changed."""
    if pieces[0].new == at:
        return pieces[0].value
    groups: dict[str, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.new[len(at)], []).append(piece)
    inside = {part: built(group, old_nodes, (*at, part)) for part, group in groups.items()}
    came = {_came_from(piece, len(at)) for piece in pieces}
    moved = old_nodes.get(next(iter(came))) if len(came) == 1 else None
    stays = old_nodes.get(at) if any(_stays_in(piece, at) for piece in pieces) else None
    for node in (moved, stays):
        if node is not None:
            pairs, treedef = flatten(node, is_leaf=lambda x, node=node: x is not node)
            names = [path_of(keys) for keys, _ in pairs]
            if inside.keys() == set(names):
                return unflatten(treedef, [inside[name] for name in names], lambda pairs=pairs: [k for k, _ in pairs])
    return {keys_of(part)[0]: child for part, child in inside.items()} if stays is None else _changed(stays, inside, at)


def _came_from(piece: Piece, depth: int) -> PathParts:
    """The old parts of the node that is now above a piece, at `depth`, if all names below it were kept."""
    end = len(piece.old) - (len(piece.new) - depth)
    return piece.old[:end] if end >= 0 and piece.old[end:] == piece.new[depth:] else ("nowhere", None)


def _stays_in(piece: Piece, at: PathParts) -> bool:
    """Whether a piece was in the node at `at` and still is, without the node having moved deeper along with it."""
    below = piece.old[len(at) :]
    deeper = len(piece.new) > len(piece.old) and piece.new[len(piece.new) - len(below) :] == below
    return piece.old[: len(at)] == at and not deeper


def _changed(node: Any, inside: dict[str, Any], at: PathParts) -> Any:
    """A node like `node` with other children. Raises `ValueError` if its type does not allow them."""
    kind, is_row = cast(Any, type(node)), type(node) in (list, tuple)
    if is_row and inside.keys() == set(map(str, range(len(inside)))):
        return kind(inside[str(i)] for i in range(len(inside)))
    if isinstance(node, Mapping):
        old = cast(Mapping[Any, Any], node)
        keys = {path_of((key,)): key for key in old}
        numbers = all(isinstance(key, int) for key in old)
        if not numbers or all(part.lstrip("-").isdigit() for part in inside):
            new = {keys.get(part, int(part) if numbers else keys_of(part)[0]): child for part, child in inside.items()}
            if not isinstance(old, dict):
                return kind(new)
            same = copy.copy(old)  # keeps what else it has: the factory of a defaultdict
            same.clear()
            same.update(new)
            return same
    names = [path_of((key,)) for key, _ in children(node)]
    raise ValueError(
        f"{'/'.join(at)!r}: expected {kind.__name__} with {names} in it, got {list(inside)}; "
        "fix: drop or rename the whole node, keep its numbers in a row, or plan a tree that you build with from_tree"
    )


def names_of(keys: KeyPath) -> PathParts:
    """The parts of the path of a key path, still escaped: one for each key, also where it is empty."""
    return tuple(path_of((key,)) for key in keys)
