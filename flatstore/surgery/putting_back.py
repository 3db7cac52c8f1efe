"""Putting a tree back: a tree that a library returned goes into the store that it came from.

    >>> store = Store.from_tree({"params": np.zeros(2, "f4"), "opt": (np.zeros(2, "f4"), None)})
    >>> put_back(store, (np.ones(2, "f4"), None), at="opt")
    >>> store["opt/0"]
    array([1., 1.], dtype=float32)

Not only the leaves are compared, by path, but also the types of the nodes and what is static in them (law 6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from flatstore.layout import Layout, Leaf, spec_of
from flatstore.store import Store, checked_leaves
from flatstore.trees import (
    Difference,
    PathParts,
    StructureError,
    as_path,
    by_path,
    children,
    expanded,
    flatten,
    names_of,
    parts_of,
    path_of,
    pieces_of,
)


def put_back(store: Store, tree: Any, at: str = "") -> None:
    """Copy in a tree of the structure of `store`, or of its node at path `at`. Nodes and leaves are compared.

    `assign` compares leaves by path. `put_back` also compares the types of the nodes, so that the state of another
    optimiser whose leaves have the same names is refused, and dtypes must be equal. Whatever is not written must be as
    it was: what rides along (functions, strings, typed PRNG keys; a `jax.random.PRNGKey` is numbers), and what is
    static in a node (the stride of a convolution).

    Raises, before anything is written: `StructureError` with every difference, `KeyError` if there is no such node,
    `LentError` while the buffer is lent, `TypeError` if `store` is not a store.
    """
    if not isinstance(store, Store):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"expected a store, got {type(store).__name__}; "
            "fix: pass Store.from_tree(tree), or a member of a population, population[i]"
        )
    path = as_path(at)
    part = store if path == "" else next((node for name, node in store.modules() if name == path), None)
    if part is None:
        some = [name for name, _ in store.modules()][1:4]
        raise KeyError(
            f"expected the path of a node, got {path!r}; fix: pass one like {some}; write a leaf with store[path] = x"
        )
    tree, at_node = expanded(tree, path), parts_of(path)
    rows = {(*at_node, *names_of(leaf.key_path)): leaf for leaf in part.layout.leaves}
    differences = list(_unlike(expanded(part), tree, at_node, rows))
    if differences:
        raise StructureError(differences)
    if path:  # checked here, so that errors have whole paths; `assign` has those inside the node
        whole = [store.layout.by_path[f"{path}/{leaf.path}"] for leaf in part.layout.leaves]
        layout = Layout.of_node(whole, 0, store.layout.align, None)
        checked_leaves(layout, {f"{path}/{name}": leaf for name, leaf in by_path(tree).items()})
    part.assign(tree)


def _unlike(expected: Any, got: Any, at: PathParts, rows: Mapping[PathParts, Leaf]) -> Iterator[Difference]:
    """Everything in which a tree differs from an expected one, whose numeric leaves are those of the rows."""
    path = "/".join(at)
    inside, given = ({path_of((key,)): child for key, child in children(x)} for x in (expected, got))
    row = rows.get(at)
    kind, other = str(row.spec) if row else in_words(expected, path), in_words(got, path)
    if row:
        if kind != other:
            yield Difference(path, kind, other, "give an array of the shape and dtype in the layout")
    elif type(expected) is not type(got):
        yield Difference(path, kind, other, "give a tree with the same nodes as the store's")
    elif inside.keys() == given.keys() and not _are_equal(_static(expected), _static(got)):
        words = (_static_words(x, y, inside) for x, y in ((expected, got), (got, expected)))
        fix = "pass a tree with the same static fields as the store's; put_back writes only numbers"
        yield Difference(path, f"{kind} {next(words)}", f"{other} {next(words)}", fix)
    for name, child in inside.items():
        if name in given:
            yield from _unlike(child, given[name], (*at, name), rows)
        else:
            for piece in pieces_of(child, {}):
                sub = "/".join((*at, name, *piece.old))
                yield Difference(sub, in_words(piece.value, sub), "nothing", "add it")
    for name in (name for name in given if name not in inside):
        for piece in pieces_of(given[name], {}):
            sub = "/".join((*at, name, *piece.old))
            yield Difference(sub, "nothing", in_words(piece.value, sub), "remove it")


def _static(node: Any) -> Any:
    """What JAX keeps of a node besides its children; None for a mapping, and an object that rides along itself."""
    if isinstance(node, Mapping):
        return None
    data = flatten(node, is_leaf=lambda x: x is not node)[1].node_data()
    return node if data is None else data[1]


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two objects of one type are equal; PRNG keys, which compare by element, included."""
    kinds = [(getattr(x, "shape", None), getattr(x, "dtype", None)) for x in (one, other)]
    return one is other or (kinds[0] == kinds[1] and bool(np.all(one == other)))


def _static_words(node: Any, other: Any, inside: Mapping[str, Any]) -> str:
    """What is static in a node and different in the other one, in words: by field, if it has fields."""
    names = [x.name for x in fields(node) if x.name not in inside] if is_dataclass(node) else []
    pairs = [(name, getattr(node, name, None), getattr(other, name, None)) for name in names]
    named = [f"{name}={value!r:.100}" for name, value, another in pairs if not _are_equal(value, another)]
    return f"with {', '.join(named)}" if named else " ".join(f"{_static(node)!r:.100}".split())


def in_words(value: Any, path: str) -> str:
    """A leaf or a node in words, for messages."""
    spec = spec_of(value, path)
    return str(spec) if spec is not None else "None" if value is None else f"a {type(value).__name__}"
