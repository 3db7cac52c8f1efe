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
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

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


def refuse_idle_glob(argument: str, glob: Glob, paths: Iterable[str]) -> None:
    """Raise `ValueError` if `glob`, one or several, matches none of `paths`: a slip of the pen, not a wish."""
    names = list(paths)
    if not any(map(matcher(glob), names)):
        hint = "; a '[' in a path is written '[[]' in a glob" if "[" in "".join(glob) else ""
        raise ValueError(
            f"{argument}: expected globs that match a leaf, got {glob!r}; fix: paths are like {names[:3]}{hint}"
        )


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[tuple[KeyPath, Any]], Any]:
    """The (key path, leaf) pairs of a pytree and its definition, as JAX gives them.

    Raises `ValueError` for a dict whose keys have no order.
    """
    try:
        return _tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    except ValueError as error:
        if not str(error).startswith("Comparator raised"):
            raise
        raise ValueError(
            f"expected dicts with keys of one type each, got one that JAX cannot sort ({error.__cause__ or error}); "
            "fix: make all its keys strings, or use an OrderedDict"
        ) from error


def nodes_of(treedef: Any) -> Any:
    """A tree of these nodes with numbers for leaves, which pickles where the nodes do."""
    return treedef.unflatten(range(treedef.num_leaves))


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
