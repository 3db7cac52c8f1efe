"""What a caller says about leaves by glob: which of them train, and the names of their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flatstore.layout.dtypes import is_trainable_dtype
from flatstore.layout.leaf import Leaf
from flatstore.layout.numeric_values import Spec
from flatstore.trees import Glob, KeyPath, matcher, nodes, refuse_idle_glob

Trainable = Glob | Callable[[str, Any, Any], bool] | None
Dims = Mapping[str, Sequence[str | None]] | None


def which_train(
    tree: Any,
    values: Mapping[str, Any],
    key_paths: Mapping[str, KeyPath],
    specs: Mapping[str, Spec],
    trainable: Trainable,
    from_stores: Mapping[str, Leaf],
) -> list[bool]:
    """Whether each leaf trains: by the caller's globs or function, else as in the store it is from, else by its dtype.

    Raises the same errors as `Layout.from_tree`.
    """
    if trainable is None:
        return [
            from_stores[path].trainable if path in from_stores else is_trainable_dtype(spec.dtype)
            for path, spec in specs.items()
        ]
    if callable(trainable):
        parents = dict(nodes(tree))
        return [bool(trainable(path, values[path], parents.get(key_paths[path][:-1]))) for path in values]
    if not isinstance(trainable, (str, Iterable)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"trainable: expected globs or a function, got {trainable!r}; "
            "fix: pass globs of the leaves that train; trainable=() freezes all"
        )
    globs = [trainable] if isinstance(trainable, str) else list(trainable)
    for glob in globs:
        refuse_idle_glob("trainable", glob, specs)
    matches = matcher(globs)
    return [matches(path) for path in values]


def names_of_axes(
    specs: Mapping[str, Spec], dims: Dims, from_stores: Mapping[str, Leaf]
) -> list[tuple[str | None, ...] | None]:
    """The names of each leaf's axes: by the first glob that matches, else as in the store that it is from.

    Raises `ValueError` for a glob that matches nothing.
    """
    rules = [(glob, matcher(glob), tuple(names)) for glob, names in (dims or {}).items()]
    for glob, _, _ in rules:
        refuse_idle_glob("dims", glob, specs)
    own = {path: leaf.dims for path, leaf in from_stores.items()}
    return [next((names for _, matches, names in rules if matches(path)), own.get(path)) for path in specs]
