"""The bytes of a leaf in the order of a file, however its members lie in memory: piece by piece.

The members of a population in order='member' are apart, and a file has them side by side. So a leaf is a matrix of
bytes with a row for all that lies together; what does not is read and written by way of a little scratch.

```
memory   | bias 0 | kernel 0 | bias 1 | kernel 1 |
file     | kernel 0 | kernel 1 | bias 0 | bias 1 |
```
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from flatstore.layout import Array, Leaf
from flatstore.store import AnyPopulation, AnyStore

MOST_SCRATCH = 2 << 20
"""Bytes of a piece that is a copy."""


def rows_of(x: AnyStore | AnyPopulation, leaf: Leaf) -> Array:
    """The bytes of a home, of all members, shape (rows, bytes that lie together).

    On the host it is a view, writable even in a lend; of a leaf on a device it is read-only.
    """
    matrix = x.leaf_matrix(leaf)
    if not matrix.strides[0]:  # one for all members
        matrix = matrix[:1]
    if not matrix.size:
        return np.empty((0, 0), np.uint8)
    rows = matrix.view(np.uint8)
    return rows.reshape(1, -1) if rows.flags.c_contiguous else rows


def pieces(rows: Array, most: int, *, to_be_filled: bool = False) -> Iterator[Array]:
    """The bytes of rows, one after the other, in pieces of up to `most`: views, or copies where rows are short.

    Those `to_be_filled` are written by the caller before it asks for the next, and come to stand in the rows.

    >>> rows = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, :2]
    >>> [piece.tolist() for piece in pieces(rows, 4)]
    [[0, 1, 4, 5], [8, 9]]
    """
    count, width = rows.shape
    if not rows.size:
        return
    if count == 1 or width >= most:
        for row in rows:
            for start in range(0, width, most):
                yield row[start : start + most]
        return
    step = max(1, min(most, MOST_SCRATCH) // width)
    for start in range(0, count, step):
        part = rows[start : start + step]
        piece = np.empty(part.size, np.uint8) if to_be_filled else part.reshape(-1)
        yield piece
        if to_be_filled:
            part[...] = piece.reshape(part.shape)
