"""Key paths, their names, and globs over them.

A *key path* is what JAX gives for a leaf: a tuple of typed keys, `(DictKey('Dense_0'), DictKey('kernel'))`.
A *path* is its name, a string: the keys joined by '/', `'Dense_0/kernel'`. A key that holds a '/' itself is
escaped as JSON pointers do (RFC 6901: '~' becomes '~0', '/' becomes '~1'), so that no two key paths of strings
share a name:

    >>> path_of(("my_net/~/linear_0", "w"))
    'my_net~1~0~1linear_0/w'

Globs match whole paths, and '*' crosses '/': `'*/kernel'` is every kernel at any depth.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from flatstore.checks import repeats
from flatstore.trees.differences import in_words

_tree_util: Any = jax.tree_util

KeyPath = tuple[Any, ...]


def key_of(entry: Any) -> Any:
    """The plain key inside one of JAX's typed keys; any other object is its own key.

    >>> key_of(jax.tree_util.DictKey("w")), key_of(jax.tree_util.SequenceKey(3)), key_of("w")
    ('w', 3, 'w')
    """
    if isinstance(entry, (DictKey, FlattenedIndexKey)):
        return entry.key
    if isinstance(entry, SequenceKey):
        return entry.idx
    return entry.name if isinstance(entry, GetAttrKey) else entry


@lru_cache(maxsize=65536)
def _escaped(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")


def path_of(keys: Iterable[Any]) -> str:
    """The path of a key path, or of a tuple of plain keys: escaped and joined by '/'.

    >>> path_of((jax.tree_util.DictKey("layers"), jax.tree_util.SequenceKey(0), "w"))
    'layers/0/w'
    """
    return "/".join(_escaped(str(key_of(key))) for key in keys)


def keys_of(path: str) -> tuple[str, ...]:
    """The keys that a path was made of, as strings: the inverse of `path_of`.

    >>> keys_of("my_net~1~0~1linear_0/w")
    ('my_net/~/linear_0', 'w')
    """
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in path.split("/"))


def as_path(path: Any) -> str:
    """A path from what a user may index with: the path itself, or a tuple of keys.

    Raises `TypeError` for anything else.
    """
    if isinstance(path, str):
        return path
    if isinstance(path, tuple):
        return path_of(path)  # pyright: ignore[reportUnknownArgumentType]
    raise TypeError(
        f"expected a path, got {type(path).__name__} {path!r}; "
        "fix: give a string like 'Dense_0/kernel', or a tuple of keys like ('Dense_0', 'kernel')"
    )


Glob = str | Iterable[str]


def matcher(globs: Glob) -> Callable[[str], bool]:
    """A function that says whether a path matches one of `globs`.

    >>> is_kernel = matcher("*/kernel")
    >>> is_kernel("a/b/kernel"), is_kernel("a/bias")
    (True, False)
    """
    patterns = [globs] if isinstance(globs, str) else list(globs)
    match = re.compile("|".join(fnmatch.translate(glob) for glob in patterns) or r"(?!)").match
    return lambda path: match(path) is not None


def globs_of(argument: str, globs: Any) -> list[str]:
    """The globs of an argument, one or several, in a list. Raises `TypeError` for anything else."""
    one = isinstance(globs, str) or not isinstance(globs, Iterable)
    found: list[Any] = [globs] if one else list(globs)  # pyright: ignore[reportUnknownArgumentType]
    if not all(isinstance(glob, str) for glob in found):
        raise TypeError(f"{argument}: expected globs, got {globs!r}; fix: a string like '*/bias', or a list of them")
    return found


def refuse_idle_glob(argument: str, glob: Glob, paths: Iterable[str], noun: str = "leaf") -> None:
    """Raise `ValueError` if `glob`, one or several, matches none of `paths`, which is most likely a typo."""
    names = list(paths)
    if not any(map(matcher(glob), names)):
        hint = "; a '[' in a path is written '[[]' in a glob" if "[" in "".join(glob) else ""
        fix = f"paths are like {names[:3]}{hint}" if names else f"there is no {noun} to match: leave {argument} out"
        raise ValueError(f"{argument}: expected globs that match a {noun}, got {glob!r}; fix: {fix}")


class Subtree:
    """An object that stands for a tree wherever a tree holds it, as a store does for its tree of views."""

    __slots__ = ()

    layout: Any
    """The layout of that tree."""

    def __subtree__(self, path: str) -> Any:
        """The tree to be taken in the object's place, which is at `path`. Raises `TypeError` if there is none."""
        raise NotImplementedError


def subtrees(tree: Any) -> list[tuple[KeyPath, Subtree]]:
    """The (key path, object) pairs of the objects in a tree, or the tree itself, that stand for a tree."""
    return [(keys, leaf) for keys, leaf in _flatten(tree)[0] if isinstance(leaf, Subtree)]


def expanded(tree: Any, at: str = "") -> Any:
    """The tree, which stands at the path `at`, with each `Subtree` in it replaced by the tree that it stands for.

    The same object if there is none. Raises `TypeError` with the path of one that cannot be replaced.
    """
    pairs, treedef = _flatten(tree)
    if not any(isinstance(leaf, Subtree) for _, leaf in pairs):
        return tree
    paths = ["/".join(filter(None, (at, path_of(keys)))) for keys, _ in pairs]
    leaves = [x.__subtree__(path) if isinstance(x, Subtree) else x for path, (_, x) in zip(paths, pairs, strict=True)]
    return unflatten(treedef, leaves, lambda: [keys for keys, _ in pairs])


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """The (key path, leaf) pairs of a pytree and its definition, as JAX gives them for the `expanded` tree.

    With `is_leaf` the tree is taken as it is. Raises `ValueError` for a dict whose keys have no order.
    """
    pairs, treedef = _flatten(tree, is_leaf)
    if is_leaf is None and any(isinstance(leaf, Subtree) for _, leaf in pairs):
        return _flatten(expanded(tree))
    return pairs, treedef


def _flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[tuple[KeyPath, Any]], Any]:
    try:
        return _tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    except ValueError as error:
        if not str(error).startswith("Comparator raised"):
            raise
        raise ValueError(
            f"expected dicts with keys of one type each, got one that JAX cannot sort ({error.__cause__ or error}); "
            "fix: make all its keys strings, or use an OrderedDict"
        ) from error


def unflatten(
    treedef: Any, leaves: Sequence[Any], key_paths: Callable[[], Sequence[KeyPath | None]] = lambda: ()
) -> Any:
    """The tree with these leaves. Raises `TypeError` with the node whose constructor does not accept them.

    `key_paths` returns the key paths of the leaves, None for one that is not known; only an error calls it.
    """
    try:
        return treedef.unflatten(leaves)
    except Exception as error:  # whatever a constructor raises
        if not repeats(lambda: treedef.unflatten(leaves)):
            raise  # it is the exception of a signal handler that was called meanwhile
        kind, keys = _refusing(treedef, leaves, key_paths() or [None] * len(leaves))
        place = "" if keys is None else f"{path_of(keys)!r}: "
        raise TypeError(
            f"{place}expected a node that accepts any leaf, as JAX asks of all that are registered with it, got "
            f"{kind.__name__}, whose constructor raised {in_words(error)}; "
            f"fix: make {kind.__name__} check its children elsewhere, or not when it is unflattened"
        ) from error


def _refusing(
    treedef: Any, leaves: Sequence[Any], key_paths: Sequence[KeyPath | None], depth: int = 0
) -> tuple[type, KeyPath | None]:
    """The type of the innermost node that cannot be made, and its key path if that of a leaf in it is known."""
    start = 0
    for child in treedef.children():
        part = slice(start, start := start + child.num_leaves)
        if repeats(partial(child.unflatten, leaves[part])):  # this one, or one inside of it
            return _refusing(child, leaves[part], key_paths[part], depth + 1)
    return treedef.node_data()[0], next((keys[:depth] for keys in key_paths if keys is not None), None)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by path.

    >>> by_path({"a": [1.0, 2.0]})
    {'a/0': 1.0, 'a/1': 2.0}

    Raises `ValueError` for two leaves of the same path.
    """
    leaves: dict[str, Any] = {}
    for keys, leaf in flatten(tree)[0]:
        path = path_of(keys)
        if path in leaves:
            raise ValueError(f"expected a path for each leaf, got {path!r} twice; fix: rename one of the keys")
        leaves[path] = leaf
    return leaves


def children(node: Any) -> list[tuple[Any, Any]]:
    """The (typed key, child) pairs one level below `node`; empty for a leaf, None and an empty container."""
    pairs, _ = flatten(node, is_leaf=lambda x: x is not node)
    return [(keys[0], child) for keys, child in pairs if keys]


def nodes(tree: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Every non-leaf node of a pytree that has children, as (key path, node), parents before children."""
    waiting: list[tuple[KeyPath, Any]] = [((), tree)]
    while waiting:
        keys, node = waiting.pop()
        below = children(node)
        if below:
            yield keys, node
        waiting += [((*keys, key), child) for key, child in reversed(below)]
