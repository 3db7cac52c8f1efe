"""The rows of a layout, how they are placed in memory, and the invariants that a table keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.layout.numeric_values import Spec
from flatstore.trees import KeyPath


@dataclass(frozen=True, slots=True)
class Leaf:
    """One row: a named, shaped place in the buffer."""

    path: str
    """The leaf's name, '/'-joined keys."""
    key_path: KeyPath = field(compare=False)
    """The same as `path`, as JAX's typed keys."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    trainable: bool
    tied: str | None = None
    """The path of the home that this leaf is another name of; None if it is a home itself."""
    dims: tuple[str | None, ...] | None = None
    """Names of the axes, if given."""
    offset: int = 0
    """The first byte, counted from the start of the buffer."""
    index: int = 0
    """The packed position of the first element, in elements; noise and `locate` count by it."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes, without padding."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return Spec(self.shape, self.dtype)


def round_up(offset: int, align: int) -> int:
    """The first multiple of `align` at or after `offset`, in bytes."""
    return -(-offset // align) * align


def place(rows: Sequence[Leaf], align: int) -> tuple[Leaf, ...]:
    """The rows with their offsets (bytes) and indices (elements) worked out.

    Trainable homes come first in memory, then the others; within each, the dtypes in the order in which they first
    appear, and within a dtype JAX's order. A start is a multiple of `align` and of the item size.
    """
    if not isinstance(whole(align), int):
        fix = "pass 64 to lend every leaf to JAX, or 1 to pack"
        raise TypeError(f"align: expected a power of two in bytes, got {align!r}; fix: {fix}")
    groups: dict[tuple[bool, np.dtype[Any]], list[Leaf]] = {}
    for row in rows:
        if row.tied is None:
            groups.setdefault((not row.trainable, row.dtype), []).append(row)
    offsets: dict[str, int] = {}
    end = 0
    for _, group in sorted(groups.items(), key=lambda item: item[0][0]):
        for row in group:
            offsets[row.path] = round_up(end, max(align, row.dtype.itemsize))
            end = offsets[row.path] + row.nbytes
    indices: dict[str, int] = {}
    count = 0
    for row in rows:
        if row.tied is None:
            indices[row.path] = count
            count += row.size
    return tuple(
        Leaf(row.path, row.key_path, row.shape, row.dtype, row.trainable, row.tied, row.dims, offsets[at], indices[at])
        for row in rows
        for at in [row.tied or row.path]
    )


def describe(leaves: Sequence[Leaf], start_of: Callable[[Leaf], int | str], most: int = 12) -> str:
    """The rows as indented lines for a person: path, shape, start in bytes; at most `most` of them."""
    rows = [
        (
            leaf.path or "(the tree is one array)",
            str(leaf.spec),
            f"at {start_of(leaf)}",
            f"is {leaf.tied}" if leaf.tied else "" if leaf.trainable else "frozen",
        )
        for leaf in leaves[:most]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = [f"… {len(leaves) - most} more"] if len(leaves) > most else []
    return "\n".join("  " + line for line in [*lines, *more])


def validate(leaves: Sequence[Leaf], align: int) -> None:
    """Raise `ValueError` unless the table keeps the invariants.

    1. `align` is a power of two.
    2. There is a leaf, and no two rows share a path.
    3. A tied row names a home, and agrees with it in shape, dtype, trainable, offset and index.
    4. Each home starts at a multiple of `align` and of its item size.
    5. Homes do not overlap: trainable ones first, then the others, the leaves of a dtype together.
    6. Indices are packed: each home's follows the one before it in JAX's order.
    7. `dims` is None, or has a name or None for each axis.
    """
    if align <= 0 or align & (align - 1):
        raise _broken(
            f"align: expected a power of two in bytes, got {align}", "pass 64 to lend every leaf to JAX, or 1 to pack"
        )
    by_path = {leaf.path: leaf for leaf in leaves}
    if not len(by_path) == len(leaves) > 0:
        raise _broken(
            f"expected leaves with a path each, got {len(leaves)} leaves with {len(by_path)} different paths",
            "rename the keys that clash",
        )
    count = 0
    for leaf in leaves:
        if leaf.tied is not None:
            _validate_tie(leaf, by_path.get(leaf.tied))
        elif leaf.index == count:
            count += leaf.size
        else:
            raise _broken(f"{leaf.path!r}: expected index {count}, got {leaf.index}", "use Layout.from_tree")
        if leaf.offset % max(align, leaf.dtype.itemsize):
            raise _broken(f"{leaf.path!r}: expected an aligned start, got byte {leaf.offset}", "use Layout.from_tree")
        if leaf.dims is not None and len(leaf.dims) != len(leaf.shape):
            raise _broken(
                f"dims: expected {len(leaf.shape)} names for {leaf.path!r} of shape {leaf.shape}, got {leaf.dims}",
                "name each axis, with None for one without a name",
            )
    _validate_order([leaf for leaf in leaves if leaf.tied is None])


def _validate_tie(leaf: Leaf, home: Leaf | None) -> None:
    if home is None or home.tied is not None:
        raise _broken(
            f"{leaf.path!r}: expected the path of a home, got {leaf.tied!r}", "tie to a leaf that is not tied"
        )
    kinds = [(x.shape, x.dtype, x.trainable, x.offset, x.index) for x in (home, leaf)]
    if kinds[0] != kinds[1]:
        raise _broken(
            f"expected tied leaves {home.path!r} and {leaf.path!r} to agree in shape, dtype and trainable, got "
            f"{home.spec} and {leaf.spec}, trainable {home.trainable} and {leaf.trainable}",
            "make them agree, or pass tied=False",
        )


def _validate_order(homes: Sequence[Leaf]) -> None:
    in_memory = sorted((leaf for leaf in homes if leaf.size), key=lambda leaf: leaf.offset)
    left: set[tuple[bool, np.dtype[Any]]] = set()
    for before, leaf in zip(in_memory, in_memory[1:], strict=False):
        if before.offset + before.nbytes > leaf.offset:
            message = f"expected homes apart, got {before.path!r}, which reaches into {leaf.path!r}"
            raise _broken(message, "use Layout.from_tree")
        if before.trainable == leaf.trainable and before.dtype == leaf.dtype:
            continue
        left.add((before.trainable, before.dtype))
        if (leaf.trainable, leaf.dtype) in left or leaf.trainable > before.trainable:
            raise _broken(
                f"{leaf.path!r}: expected trainable leaves first and each dtype together, got it after {before.path!r}",
                "use Layout.from_tree",
            )


def _broken(message: str, fix: str) -> ValueError:
    return ValueError(f"{message}; fix: {fix}")
