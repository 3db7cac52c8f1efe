"""The rows of a tree, before they have their places."""

from __future__ import annotations

from typing import Any, NamedTuple

from flatstore.layout.leaf import Leaf
from flatstore.layout.numeric_values import Spec, spec_of
from flatstore.layout.options import Dims, Trainable, names_of_axes, which_train
from flatstore.layout.ties import Tied, find_ties
from flatstore.trees import KeyPath, expanded, flatten, path_of, subtrees


class Rows(NamedTuple):
    """A tree taken apart: its numeric leaves as rows without places, and what rides along."""

    rows: list[Leaf]
    values: dict[str, Any]
    """The numeric leaves by path."""
    riders: tuple[tuple[int, Any], ...]
    """What rides along: (position among all leaves of the tree, the object)."""
    treedef: Any


def rows_of(tree: Any, trainable: Trainable, dims: Dims, tied: Tied) -> Rows:
    """The rows of a pytree. Accepts the same arguments and raises the same errors as `Layout.from_tree`."""
    whole = expanded(tree)
    from_stores = {
        path_of((*keys, *leaf.key_path)): leaf for keys, store in subtrees(tree) for leaf in store.layout.leaves
    }
    flat, treedef = flatten(whole)
    values: dict[str, Any] = {}
    specs: dict[str, Spec] = {}
    key_paths: dict[str, KeyPath] = {}
    riders: list[tuple[int, Any]] = []
    for position, (keys, value) in enumerate(flat):
        path = path_of(keys)
        spec = spec_of(value, path)
        if spec is None:
            riders.append((position, value))
            continue
        if path in values:
            raise ValueError(
                f"expected a path for each leaf, got {path!r} for both {key_paths[path]} and {keys}; "
                "fix: rename one of the keys"
            )
        values[path], specs[path], key_paths[path] = value, spec, keys
    ties = find_ties(values, tied)
    rows = [
        Leaf(path, key_paths[path], spec.shape, spec.dtype, trains, ties.get(path), names)
        for (path, spec), trains, names in zip(
            specs.items(),
            which_train(whole, values, key_paths, specs, trainable, from_stores),
            names_of_axes(specs, dims, from_stores),
            strict=True,
        )
    ]
    return Rows(rows, values, tuple(riders), treedef)
