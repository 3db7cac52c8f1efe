"""Parts of a whole model: where their parameters stand in the index of the whole.

A process of several holds a block of each leaf, or some of the leaves. Its parameters keep the indices that they have
in the whole, so that noise is the same wherever they are:

```
index in the whole, kernel (4, 6)       the part (2, 3) of it at (1, 3)

10  11  12  13  14  15
16  17  18  19  20  21                  19  20  21        a stretch: neighbours in the index of the whole
22  23  24  25  26  27                  25  26  27        another
28  29  30  31  32  33
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flatstore.layout import Array, Layout, Leaf


class Stretch(NamedTuple):
    """Parameters begin .. end - 1 of a leaf, which are neighbours in the index."""

    begin: int
    end: int
    leaf: Leaf
    """The leaf of the whole that they belong to."""
    at: int
    """The first of them, counted in that leaf."""


class Parts(NamedTuple):
    """The leaves of a layout as blocks of those of a whole model, by the same paths."""

    whole: Layout
    at: Mapping[str, tuple[int, ...]]
    """Where each leaf begins in that of the whole: a coordinate for each axis."""

    def firsts(self, leaf: Leaf) -> tuple[Array, int]:
        """The index in the whole of the first parameter of each stretch of a leaf, int64, and how long all are."""
        home, at = self.whole.by_path[leaf.path], self.at[leaf.path]
        axis = max(len(leaf.shape) - 1, 0)
        while axis and leaf.shape[axis] == home.shape[axis]:
            axis -= 1  # what is whole along the axes behind lies together
        strides = [int(np.prod(home.shape[i + 1 :], dtype=np.int64)) for i in range(len(home.shape))]
        first = np.array(home.index + sum(a * b for a, b in zip(at, strides, strict=True)), np.int64)
        for size, stride in zip(leaf.shape[:axis], strides, strict=False):
            first = first[..., None] + np.arange(size, dtype=np.int64) * stride
        return first.reshape(-1), int(np.prod(leaf.shape[axis:], dtype=np.int64))


def whole_leaf(leaf: Leaf) -> tuple[Array, int]:
    """What `Parts.firsts` gives for a leaf that is whole."""
    return np.array([leaf.index], np.int64), leaf.size
