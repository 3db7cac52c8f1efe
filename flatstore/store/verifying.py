"""Which leaves of a tree are not views of the buffer any more: the user replaced, removed or added them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flatstore.layout import Array, Layout, Leaf
from flatstore.trees import Difference, by_path


def is_same_view(a: Array, b: Array) -> bool:
    """Whether two arrays show the same bytes in the same shape."""
    shown = [(x.__array_interface__["data"][0], x.shape, x.strides, x.dtype) for x in (a, b)]
    return shown[0] == shown[1]


def differences_from_views(tree: Any, layout: Layout, view_of: Callable[[Leaf], Array]) -> list[Difference]:
    """Every leaf in which `tree` differs from the tree of `layout` whose leaves are the views that `view_of` gives."""
    got = by_path(tree)
    differences: list[Difference] = []
    for path, leaf in layout.by_path.items():
        if path not in got:
            differences.append(Difference(path, "a view of the buffer", "nothing", f"put store[{path!r}] back"))
        elif not (isinstance(got[path], np.ndarray) and is_same_view(got[path], view_of(leaf))):
            fix = f"write the buffer with store[{path!r}] = value"
            kind = "an array" if hasattr(got[path], "shape") else repr(got[path])[:40]
            differences.append(Difference(path, "a view of the buffer", f"{kind} that lives elsewhere", fix))
    added = got.keys() - layout.by_path.keys()
    if added and layout.riders:
        added -= by_path(layout.unflatten([view_of(leaf) for leaf in layout.leaves])).keys()
    for path in added:
        differences.append(
            Difference(path, "nothing", "a leaf that was added", "remove it, or plan a new layout with it")
        )
    return differences
