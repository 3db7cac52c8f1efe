"""A layout as a picture: the buffer as a strip, true to scale, a block for each leaf that owns bytes.

```
0        1,024                     66,560  66,624         offsets in bytes, above
|########|#########################|.......|/////////|     coloured by dtype, padding grey, frozen leaves hatched
 |        Dense_0/kernel           |        step
 Dense_0/bias                                              a label inside if it fits, otherwise below
```

Many leaves wrap over rows, all of one scale. A run of leaves that are too narrow to see is drawn again, enlarged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from flatstore.cli.plot_page import (
    BODY,
    DPI,
    MARGIN,
    ON_BOX,
    PADDING,
    QUIET,
    SMALL,
    THIN,
    TIER,
    TITLE,
    WIDTH,
    Flag,
    Page,
    PlacedFlag,
    place_flags,
    printable,
    shorten,
)
from flatstore.layout import Layout, Leaf, round_up

# All lengths are inches, y grows downwards.
_STRIP = WIDTH - 2 * MARGIN
_COLOURS = "#8db4d9 #eab07f #96c99a #d3a4cd #e3d27d #8fd0cf #dd9a9a #b5a7dd #c2b59b #b3c97f".split()


def picture(layout: Layout, title: str, dark: bool = False) -> bytes:
    """The memory of one model as a PNG, in bytes of the file; `title` stands above it. Writes nothing.

    Each leaf that owns bytes has a block, as wide as their number. Raises `ImportError` without matplotlib.
    """
    page = Page(dark)
    names: dict[str, list[str]] = {}
    for leaf in layout.leaves:
        if leaf.tied is not None:
            names.setdefault(leaf.tied, []).append(leaf.path)
    colours: dict[str, str] = {}
    blocks: list[_Block] = []
    for leaf in sorted(layout.homes, key=lambda leaf: (leaf.offset, leaf.nbytes)):
        if leaf.nbytes:
            colour = colours.setdefault(leaf.dtype.name, _COLOURS[len(colours) % len(_COLOURS)])
            blocks.append(_Block(leaf, tuple(names.get(leaf.path, ())), colour))
    page.text(MARGIN, 0.4, shorten(printable(title), 90), TITLE)
    page.text(MARGIN, 0.63, layout.summary, BODY, QUIET)
    y = _legend(page, layout, colours, 0.92)
    y, runs, unnamed = _panel(page, layout, blocks, y, zoom=True)
    for name, run in runs:
        y, _, more = _panel(page, layout, run, y + 0.25, zoom=False, name=name)
        unnamed += more
    empty = sum(leaf.nbytes == 0 for leaf in layout.homes)
    notes = [f"Leaves without room for a name: {unnamed:,} (the table lists them)."] if unnamed else []
    notes += [f"Leaves without bytes: {empty:,}."] if empty else []
    if notes:
        page.text(MARGIN, y + 0.1, " ".join(notes), SMALL, QUIET)
        y += 0.15
    return page.png(y + 0.2)


class _Block(NamedTuple):
    """A leaf that owns bytes, and how it is drawn."""

    leaf: Leaf
    ties: tuple[str, ...]
    colour: str

    @property
    def start(self) -> int:
        return self.leaf.offset

    @property
    def stop(self) -> int:
        return self.leaf.offset + self.leaf.nbytes

    @property
    def name(self) -> str:
        return " = ".join(shorten(printable(path), 60) for path in (self.leaf.path, *self.ties[:2])) + (
            f" (and {len(self.ties) - 2} more names)" if len(self.ties) > 2 else ""
        )

    @property
    def size(self) -> str:
        return f"{self.leaf.nbytes:,} bytes"


class _Piece(NamedTuple):
    """The part of a block that lies in one row."""

    block: _Block
    left: float
    right: float
    widest: bool
    """Whether this is the widest part of its block, which has the label."""


def _legend(page: Page, layout: Layout, colours: dict[str, str], y: float) -> float:
    entries = [(name, colour, False) for name, colour in colours.items()]
    if any(not leaf.trainable for leaf in layout.homes):
        entries.append(("frozen", "#b0b0b0", True))
    if layout.padding:
        entries.append(("padding", PADDING, False))
    x = MARGIN
    for name, colour, hatched in entries:
        page.box(x, x + 0.24, y - 0.11, colour, 0.14, hatched)
        page.text(x + 0.31, y, name, BODY)
        x += 0.31 + page.width(name, BODY) + 0.3
    page.text(WIDTH - MARGIN, y, "numbers above a strip are offsets in bytes", SMALL, QUIET, ha="right")
    return y + 0.3


def _rows(blocks: Sequence[_Block]) -> int:
    """How many rows to wrap over: a row for every ten blocks that matter, counted as the perplexity of their sizes."""
    total = sum(block.leaf.nbytes for block in blocks)
    shares = [block.leaf.nbytes / total for block in blocks]
    return min(20, max(1, math.ceil(math.exp(-sum(share * math.log(share) for share in shares)) / 10)))


def _panel(
    page: Page, layout: Layout, blocks: Sequence[_Block], y: float, zoom: bool, name: str = ""
) -> tuple[float, list[tuple[str, list[_Block]]], int]:
    """Draw blocks from `y` on. Returns where the panel ends, the runs to enlarge, and the number of unnamed leaves."""
    if not blocks:
        return y, [], 0
    start, stop = blocks[0].start, blocks[-1].stop
    rows = _rows(blocks)
    per_row = round_up(-(-(stop - start) // rows), layout.align) if rows > 1 else stop - start
    scale = _STRIP / per_row
    runs = _thin_runs(blocks, scale) if zoom else []
    inside = {b.leaf.path: f"{at}: {len(run):,} leaves, enlarged below" for at, run in runs for b in run}
    depth = len(os.path.commonprefix([leaf.path.split("/")[:-1] for leaf in layout.leaves]))
    if name:
        page.text(MARGIN, y, f"{name}: bytes {start:,} to {stop:,}, enlarged", BODY)
        y += 0.22
    height, tiers = (0.42, 6 if rows == 1 else 4) if rows <= 4 else (0.32, 2)
    unnamed = 0
    for row, pieces in enumerate(_pieces(blocks, start, per_row, scale)):
        low = start + row * per_row
        end = min(stop, low + per_row)
        right = MARGIN + (end - low) * scale
        _offsets(page, pieces, low, stop if end == stop else None, right, y)
        y += 0.05
        page.box(MARGIN, right, y, PADDING, height)
        for block, x, until, _ in pieces:
            page.box(x, min(max(until, x + 1 / DPI), right), y, block.colour, height, not block.leaf.trainable)
        left_over = [piece for piece in pieces if piece.widest and not _label_inside(page, piece, y, height)]
        y, missing = _flags(page, left_over, depth, inside, tiers, y + height)
        unnamed += missing
        y += 0.2
    return y, runs, unnamed


def _pieces(blocks: Sequence[_Block], start: int, per_row: int, scale: float) -> list[list[_Piece]]:
    """The parts of the blocks, row by row."""
    rows: list[list[_Piece]] = [[] for _ in range(-(-(blocks[-1].stop - start) // per_row))]
    for block in blocks:
        lows = range((block.start - start) // per_row * per_row + start, block.stop, per_row)
        parts = [(max(block.start, low) - low, min(block.stop, low + per_row) - low) for low in lows]
        widest = max(range(len(parts)), key=lambda i: parts[i][1] - parts[i][0])
        for i, (low, (left, right)) in enumerate(zip(lows, parts, strict=True)):
            piece = _Piece(block, MARGIN + left * scale, MARGIN + right * scale, i == widest)
            rows[(low - start) // per_row].append(piece)
    return rows


def _thin_runs(blocks: Sequence[_Block], scale: float) -> list[tuple[str, list[_Block]]]:
    """Runs of blocks too narrow to tell apart, worth drawing again: at most three, with a letter.

    Many short ones are a texture, which says more as it is.
    """
    groups = groupby(blocks, key=lambda block: block.leaf.nbytes * scale < THIN)
    runs = [run for thin, group in groups for run in [list(group)] if thin and len(run) > 3]
    runs = [run for run in runs if (run[-1].stop - run[0].start) * scale < _STRIP / 6]
    if len(runs) > 3:
        runs = sorted((run for run in runs if len(run) > 9), key=len)[-3:]
    return list(zip("ABC", sorted(runs, key=lambda run: run[0].start), strict=False))


def _offsets(page: Page, pieces: Sequence[_Piece], low: int, end: int | None, right: float, y: float) -> None:
    """The byte at which the row and its blocks start, and the last row ends, where there is room: widest first."""
    wanted = [(math.inf, MARGIN, low)] + [(math.inf, right, end)] * (end is not None)
    wanted += [(until - x, x, block.start) for block, x, until, _ in pieces if block.start >= low]
    taken: list[tuple[float, float]] = []
    for _, x, offset in sorted(wanted, key=lambda item: -item[0]):
        text = f"{offset:,}"
        wide = page.width(text, SMALL)
        left = x - wide if offset == end else x
        if left + wide < WIDTH - 0.1 and all(left > b + 0.08 or left + wide + 0.08 < a for a, b in taken):
            taken.append((left, left + wide))
            page.text(left, y, text, SMALL, QUIET)


def _label_inside(page: Page, piece: _Piece, y: float, height: float) -> bool:
    room = piece.right - piece.left - 0.1
    block = piece.block
    if page.width(block.name, BODY) > room:
        return False
    below = next((t for t in (f"{block.leaf.spec}, {block.size}", block.size) if page.width(t, SMALL) <= room), "")
    below = below if height > 0.4 else ""
    middle = (piece.left + piece.right) / 2
    frozen = not block.leaf.trainable
    back: Any = {"bbox": {"facecolor": block.colour, "edgecolor": "none", "pad": 1.0}} if frozen else {}
    page.text(middle, y + (0.18 if below else height / 2 + 0.04), block.name, BODY, ON_BOX, ha="center", **back)
    if below:
        page.text(middle, y + 0.33, below, SMALL, ON_BOX, ha="center", **back)
    return True


def _flags(
    page: Page, pieces: Sequence[_Piece], depth: int, inside: dict[str, str], tiers: int, y: float
) -> tuple[float, int]:
    """Name blocks below the strip that ends at `y`: leaf by leaf if all have room, otherwise by node.

    `depth` is the number of keys that all paths share. Returns the lower end, and how many leaves stay unnamed.
    """
    deepest = max((len(piece.block.leaf.key_path) for piece in pieces), default=0)
    best: list[PlacedFlag] = []
    named = -1
    for keys in (None, *range(deepest, depth, -1)):
        flags = _grouped(pieces, keys, inside)
        placed = place_flags(page, flags, tiers)
        count = sum(at.flag.leaves for at in placed)
        if count > named:
            best, named = placed, count
        if len(placed) == len(flags):
            break
    page.flags(best, y)
    lines = max((at.tier + 1 for at in best), default=0)
    return y + 0.1 + lines * TIER, len(pieces) - max(named, 0)


def _grouped(pieces: Sequence[_Piece], keys: int | None, inside: dict[str, str]) -> list[Flag]:
    """A flag per leaf (None: with its size), or per run of leaves whose first `keys` keys agree.

    The leaves of a run that is drawn again (`inside`: path -> its text) have one flag.
    """
    run = 0
    keyed: list[tuple[tuple[int, str, str], _Piece]] = []
    for i, piece in enumerate(pieces):
        path = piece.block.leaf.path
        run += i > 0 and piece.left > pieces[i - 1].right + THIN  # a block with its label inside stands between
        node = path if keys is None else "/".join(path.split("/")[:keys])
        keyed.append(((run, "", inside[path]) if path in inside else (run, node, ""), piece))
    flags: list[Flag] = []
    for (_, node, text), group in groupby(keyed, key=lambda item: item[0]):
        members = [piece for _, piece in group]
        first = members[0]
        if len(members) == 1:
            text = text or (f"{first.block.name}, {first.block.size}" if keys is None else first.block.name)
            flags.append(Flag((first.left + first.right) / 2, first.right, text, 1))
        else:
            text = text or f"{shorten(printable(node), 40)} ({len(members)})"
            flags.append(Flag(first.left, members[-1].right, text, len(members)))
    return flags
