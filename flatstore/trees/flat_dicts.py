"""Nested dicts to flat ones and back, by path, as Flax's `traverse_util` does, but without ever losing a leaf.

    >>> flat = flatten_dict({"dense": {"kernel": 1, "bias": 2}}, sep="/")
    >>> flat
    {'dense/kernel': 1, 'dense/bias': 2}
    >>> unflatten_dict(flat, sep="/")
    {'dense': {'kernel': 1, 'bias': 2}}

A key that holds the separator makes an ambiguous name. If two leaves would get one name, or one leaf would be where
another has a node, both functions raise an error; `escape=True` gives each key a name of its own:

    >>> flatten_dict({"a/b": 1, "a": {"b": 2, 3: 4}}, sep="/", escape=True)
    {'a~1b': 1, 'a/b': 2, 'a/~23': 4}

The leaves are never copied: those of a `store.tree` stay views of its buffer.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from flatstore.checks import repeats

Keys = tuple[Any, ...]


def flatten_dict(
    tree: Mapping[Any, Any],
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: Callable[[Keys, Any], bool] | None = None,
    *,
    escape: bool = False,
) -> dict[Any, Any]:
    """A flat dict of a nested one: {tuple of keys: leaf}, or {name: leaf} with a separator. The leaves are not copied.

    Nodes are mappings: dicts, FrozenDicts, `nnx.State`. Everything else is a leaf, lists too.

    Args:
        tree: the nested mapping.
        sep: the string that joins the keys, which must then be strings; None for tuples of keys.
        keep_empty_nodes: whether empty nodes below the root are kept, as empty dicts, instead of left out.
        is_leaf: `f(keys, node) -> bool`, called for each node: whether it counts as a leaf.
        escape: with `sep`, write '~' in a key as '~0', the separator's first character as '~1', and a key that is not a
            string as '~2' and its Python literal: numbers, bytes, None and tuples of these come back as equal keys. A
            string of another type comes back as a plain one. With sep='/' the names of strings are flatstore's paths.

    Raises:
        TypeError: `tree` is not a mapping; with `sep`, a key is not a string (or, with `escape`, has no literal: nan, a
            member of an enum, a NumPy number, a frozenset); `is_leaf` is not a function.
        ValueError: two leaves have one name, or the name of a leaf is the beginning of another's; both are named.
    """
    _check_mapping("flatten_dict", tree)
    _check_separator(sep, escape)
    if not (is_leaf is None or callable(is_leaf)):  # pyright: ignore[reportUnnecessaryComparison]
        raise TypeError(
            f"is_leaf: expected a function f(keys, node), got {is_leaf!r}; fix: lambda keys, node: len(keys) == 2"
        )
    found = list(_leaves(tree, (), keep_empty_nodes, is_leaf))
    if sep is None:
        return dict(found)
    names = [_name(keys, sep, escape) for keys, _ in found]
    if not escape:
        paths = [tuple(name.split(sep)) for name in names]
        refuse_clashes(zip(paths, (keys for keys, _ in found), strict=True), ", or pass escape=True or sep=None")
    return dict(zip(names, (leaf for _, leaf in found), strict=True))


def unflatten_dict(flat: Mapping[Any, Any], sep: str | None = None, *, escape: bool = False) -> dict[Any, Any]:
    """The nested dict of a flat one: the inverse of `flatten_dict` with the same `sep` and `escape`.

    The nodes are new dicts, the leaves are not copied. A store is such a mapping: `unflatten_dict(store, "/",
    escape=True)` is a nested dict of its views.

    Raises:
        TypeError: `flat` is not a mapping; a key is not a string, with `sep`, or not a tuple, without.
        ValueError: a key is an empty tuple; two keys lead to one place, or one leads through the leaf of another (both
            are named); with `escape`, a name is not one that `flatten_dict` writes.
    """
    _check_mapping("unflatten_dict", flat)
    _check_separator(sep, escape)
    paths = [_keys(key, sep, escape) for key in flat]
    refuse_clashes(zip(paths, flat, strict=True))
    tree: dict[Any, Any] = {}
    for keys, leaf in zip(paths, flat.values(), strict=True):
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = {} if _stands_for_empty(leaf) else leaf
    return tree


def _leaves(node: Any, keys: Keys, keep_empty: bool, is_leaf: Any) -> Iterator[tuple[Keys, Any]]:
    if not isinstance(node, Mapping) or (is_leaf is not None and is_leaf(keys, node)):
        yield keys, node
        return
    node = cast(Mapping[Any, Any], node)
    if keep_empty and keys and not node:
        yield keys, {}
    for key, child in node.items():
        yield from _leaves(child, (*keys, key), keep_empty, is_leaf)


def _name(keys: Keys, sep: str, escape: bool) -> str:
    if escape:
        return sep.join(_escaped(key, sep, keys) for key in keys)
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(
                f"{keys}: expected keys that are strings with sep={sep!r}, got {key!r} ({type(key).__name__}); "
                "fix: sep=None, whose names are tuples, or escape=True"
            )
    return sep.join(keys)


def _keys(key: Any, sep: str | None, escape: bool) -> Keys:
    if sep is not None and isinstance(key, str):
        parts = key.split(sep)
        return tuple(_unescaped(part, sep, key) for part in parts) if escape else tuple(parts)
    if sep is not None or not isinstance(key, tuple):
        wanted, fix = ("tuples of keys", "pass sep='/'") if sep is None else (f"strings with sep={sep!r}", "sep=None")
        raise TypeError(f"expected names that are {wanted}, got {key!r} ({type(key).__name__}); fix: {fix}")
    if not key:
        raise ValueError("expected names of one key or more, got (); fix: a leaf alone needs no dict")
    return cast(Keys, key)


def _escaped(key: Any, sep: str, keys: Keys) -> str:
    if isinstance(key, str):
        return key.replace("~", "~0").replace(sep[0], "~1")
    literal = repr(key)
    try:
        same = ast.literal_eval(literal) == key
    except (ValueError, SyntaxError):
        if not repeats(lambda: ast.literal_eval(literal)):
            raise
        same = False
    if not same:
        raise TypeError(
            f"{keys}: expected keys that Python writes as literals, got {key!r} ({type(key).__name__}); "
            "fix: sep=None, whose names are tuples"
        )
    return "~2" + _escaped(literal, sep, keys)


def _unescaped(part: str, sep: str, name: str) -> Any:
    plain = part.removeprefix("~2").replace("~1", sep[0]).replace("~0", "~")

    def read() -> tuple[Any, bool]:
        key = ast.literal_eval(plain) if part.startswith("~2") else plain
        return key, _escaped(key, sep, (key,)) == part

    try:
        key, is_same = read()
        if is_same:
            return key
    except (TypeError, ValueError, SyntaxError):  # not a literal: an error, below
        if not repeats(read):
            raise
    raise ValueError(
        f"{name!r}: expected an escaped name, got {part!r} in it; fix: '~' is written '~0', {sep[0]!r} in a key '~1'"
    )


def refuse_clashes(paths: Iterable[tuple[Keys, Any]], another_fix: str = "") -> None:
    """Raise `ValueError` if a path is another's, or the beginning of it. `paths` are (path, name in messages)."""
    called: dict[Keys, Any] = {}
    fix = f"fix: rename one of them{another_fix}"
    for path, name in paths:
        if path in called:
            raise ValueError(f"expected a place for each leaf, got one for both {called[path]!r} and {name!r}; {fix}")
        called[path] = name
    for path, name in called.items():
        for end in range(len(path)):
            if path[:end] in called:
                raise ValueError(
                    f"expected either a leaf or a node in a place, got the leaf {called[path[:end]]!r} "
                    f"where {name!r} has a node; {fix}"
                )


def _stands_for_empty(leaf: Any) -> bool:
    """Whether this is the object that Flax's `flatten_dict` keeps in place of an empty node."""
    return type(leaf).__name__ == "_EmptyNode" and type(leaf).__module__ == "flax.traverse_util"


def _check_mapping(function: str, tree: Any) -> None:
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{function}: expected a dict, a FrozenDict or another mapping, got {type(tree).__name__}; "
            "fix: wrap it in a dict, or name the leaves of any pytree with Layout.from_tree"
        )


def _check_separator(sep: Any, escape: bool) -> None:
    if sep is None:
        if escape:
            raise ValueError("escape: expected a separator, got sep=None; fix: leave escape out, or pass sep='/'")
    elif not isinstance(sep, str):
        raise TypeError(f"sep: expected a string or None, got {sep!r}; fix: sep='/'")
    elif not sep or (escape and sep[0] in "~012"):
        expected = "one that begins with none of '~012', which escapes use" if escape else "one character or more"
        raise ValueError(f"sep: expected {expected}, got {sep!r}; fix: sep='/'")
