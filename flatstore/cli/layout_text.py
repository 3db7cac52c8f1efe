"""A layout as text: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flatstore.cli.plot_page import printable, shorten
from flatstore.layout import Layout

_HEADER = ("path", "shape", "dtype", "offset", "bytes", "trainable", "tied")
_RIGHT_ALIGNED = (3, 4)  # columns
_SHORTEST = 16  # characters of a path that a narrow terminal still shows


def table(layout: Layout, width: int | None = None) -> str:
    """The rows of a layout in JAX's order under a header, and a line with the totals, as plain text.

    A tied row shows the place of its home, whose path is in the column `tied`, and its bytes count once in the totals.
    Offsets and bytes are bytes. With `width` (characters) long paths lose their middle where a line would be longer.
    """
    rows = [
        [
            printable(leaf.path),
            str(leaf.shape),
            leaf.dtype.name,
            f"{leaf.offset:,}",
            f"{leaf.nbytes:,}",
            "yes" if leaf.trainable else "no",
            printable(leaf.tied) if leaf.tied is not None else "",
        ]
        for leaf in layout.leaves
    ]
    if width is not None:
        _narrow(rows, width)
    widths = _widths(rows)
    lines = [_HEADER, ["-" * wide for wide in widths], *rows]
    text = [
        "  ".join(
            cell.rjust(wide) if i in _RIGHT_ALIGNED else cell.ljust(wide)
            for i, (cell, wide) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", layout.summary])


def as_json(layout: Layout) -> str:
    """The same as JSON: an object of "leaves", which have the columns of the table, and of totals.

    "tied" is the path of the home, or null. The totals are "parameters", "bytes", "padding" and "align".
    """
    leaves = [
        {
            "path": leaf.path,
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "offset": leaf.offset,
            "bytes": leaf.nbytes,
            "trainable": leaf.trainable,
            "tied": leaf.tied,
        }
        for leaf in layout.leaves
    ]
    totals = {"parameters": layout.size, "bytes": layout.nbytes, "padding": layout.padding, "align": layout.align}
    return json.dumps({"leaves": leaves, **totals}, indent=1)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]


def _narrow(rows: list[list[str]], width: int) -> None:
    """Shorten paths and the names of homes, the longer column first, until a line fits or they are `_SHORTEST`."""
    widths = _widths(rows)
    over = sum(widths) + 2 * (len(widths) - 1) - width
    while over > 0:
        column = max((0, 6), key=lambda i: widths[i])
        if widths[column] <= _SHORTEST:
            break
        widths[column] -= 1
        over -= 1
    for row in rows:
        for column in (0, 6):
            row[column] = shorten(row[column], max(widths[column], len(_HEADER[column])))
