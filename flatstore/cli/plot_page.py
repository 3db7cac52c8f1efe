"""A sheet of paper for `plot_layout`: text, lines and boxes in inches, through matplotlib without its global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from flatstore.extras import require

WIDTH, MARGIN, DPI = 12.0, 0.35, 150
THIN = 0.03  # inches; narrower than that, a box cannot be told from the next
TIER = 0.17  # inches between the lines of labels below a strip
TITLE, BODY, SMALL = 12.0, 8.0, 6.5  # points
INK, QUIET, PADDING, PAPER = "#222222", "#777777", "#d4d4d4", "#ffffff"
ON_BOX = "#202020"  # what stands on a coloured box, on any paper
DARK = {INK: "#e6e6e6", QUIET: "#a0a0a0", PADDING: "#3c3f44", PAPER: "#1c1e21"}


def shorten(text: str, most: int) -> str:
    """`text` in at most `most` characters, its middle left out: both ends of a path tell leaves apart.

    >>> shorten("encoder/block_0/attention/query/kernel", 22)
    'encoder/bl…uery/kernel'
    """
    if len(text) <= most:
        return text
    tail = max(1, most // 2)
    return text[: max(0, most - 1 - tail)] + "…" + text[-tail:]


def printable(path: str) -> str:
    r"""A path as a terminal or a picture can show it: unprintable characters are escaped.

    >>> printable("a\nb"), printable("")
    ('a\\nb', '(the tree is one array)')
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)
    return shown or "(the tree is one array)"


class Flag(NamedTuple):
    """A label below a strip, for one or several leaves that reach from `left` to `right`."""

    left: float
    right: float
    text: str
    leaves: int


class PlacedFlag(NamedTuple):
    """A flag with its stem at `x`, its text on line `tier` below the strip, to the right of the stem or `flipped`."""

    flag: Flag
    x: float
    tier: int
    flipped: bool


class Page:
    """A sheet `WIDTH` inches wide whose height is known only at the end.

    Lengths are inches, y grows downwards, sizes of type are points. Colours are those of white paper, also on a `dark`
    one. Raises `ImportError` without matplotlib.
    """

    def __init__(self, dark: bool = False) -> None:
        self._shades = DARK if dark else {}
        self._collections = require("matplotlib.collections", "demo")
        self._figure = require("matplotlib.figure", "demo").Figure(
            figsize=(WIDTH, 1), dpi=DPI, facecolor=self._shade(PAPER)
        )
        self._canvas = require("matplotlib.backends.backend_agg", "demo").FigureCanvasAgg(self._figure)
        self._font = require("matplotlib.font_manager", "demo").FontProperties
        self._axes: Any = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._renderer = self._canvas.get_renderer()
        self._widths: dict[tuple[str, float], float] = {}
        self._lines: list[tuple[list[tuple[float, float]], float]] = []
        self._boxes: dict[tuple[Any, ...], list[Any]] = {}

    def _shade(self, colour: str) -> str:
        return self._shades.get(colour, colour)

    def width(self, text: str, points: float) -> float:
        """The width of a text in inches, summed over its characters, which is close and quick."""
        for character in set(text):
            if (character, points) not in self._widths:
                font = self._font(family="DejaVu Sans", size=points)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Glyph")
                    wide = self._renderer.get_text_width_height_descent(character, font, False)[0]
                self._widths[character, points] = wide / DPI
        return sum(self._widths[character, points] for character in text)

    def text(self, x: float, y: float, text: str, points: float, colour: str = INK, **more: Any) -> None:
        """Text that starts at `x`, or as matplotlib's `ha=` says, on the line `y`."""
        style = {"va": "baseline", "parse_math": False, "family": "DejaVu Sans"} | more
        self._axes.text(x, y, text, fontsize=points, color=self._shade(colour), **style)

    def line(self, xs: Sequence[float], ys: Sequence[float], points: float) -> None:
        """A line through points, as thick as `points`."""
        self._lines.append((list(zip(xs, ys, strict=True)), points))

    def box(self, left: float, right: float, y: float, colour: str, height: float, hatched: bool = False) -> None:
        """A filled box whose top is `y`; a white edge sets it off from the next, if it is wide enough."""
        edge = 0.6 if right - left > 2 * THIN else 0.0
        corners = [(left, y), (right, y), (right, y + height), (left, y + height)]
        self._boxes.setdefault((colour, edge, hatched), []).append(corners)

    def flags(self, placed: Sequence[PlacedFlag], y: float) -> None:
        """Flags below a strip that ends at `y`; a bar shows how far one for several leaves reaches."""
        for flag, x, tier, flipped in placed:
            bottom = y + TIER * (tier + 1)
            self.line([flag.left, x, x], [y, y + 0.06, bottom], 0.5)
            if flag.leaves > 1:
                self.line([flag.left, max(flag.right - 0.02, flag.left + 0.02)], [y + 0.01, y + 0.01], 1.2)
            start, side = (x - 0.04, "right") if flipped else (x + 0.04, "left")
            self.text(start, bottom, flag.text, SMALL, ha=side)

    def png(self, height: float) -> bytes:
        """All that was drawn, as the bytes of a PNG file `height` inches high."""
        for (colour, edge, hatched), corners in self._boxes.items():
            style = {
                "facecolors": self._shade(colour),
                "edgecolors": self._shade(PAPER),
                "linewidths": edge,
                "zorder": colour != PADDING,
            }
            hatch = {"hatch": "////"} if hatched else {}
            self._axes.add_collection(self._collections.PolyCollection(corners, **style, **hatch), autolim=False)
        paths, widths = [path for path, _ in self._lines], [points for _, points in self._lines]
        lines = self._collections.LineCollection(paths, colors=self._shade(QUIET), linewidths=widths)
        self._axes.add_collection(lines, autolim=False)
        self._figure.set_size_inches(WIDTH, height)
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(height, 0)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks
            self._canvas.print_png(file)
        return file.getvalue()


def place_flags(page: Page, flags: Sequence[Flag], tiers: int) -> list[PlacedFlag]:
    """Place the flags, sorted by their left ends, that find room: no text meets another text or a stem.

    The text stands to the right of its stem, and flags are placed from right to left, each on the first line that is
    free; where the page ends it stands to the left, and all is mirrored.
    """
    end = WIDTH - MARGIN / 2
    stems = [flag.left for flag in flags]
    for i in range(1, len(stems)):
        stems[i] = max(stems[i], stems[i - 1] + 0.07)
    free = WIDTH - MARGIN
    for i in reversed(range(len(stems))):
        stems[i] = min(stems[i], free)
        free = stems[i] - 0.07
    near = [(x, flag, page.width(flag.text, SMALL) + 0.1) for x, flag in zip(stems, flags, strict=True)]
    near = [item for item in near if abs(item[0] - item[1].left) < 0.35]
    limits = [end] * tiers  # the left end of what stands on each line, or crosses it
    used = [0.0] * tiers  # the right end of what hangs to the left of the page's end, or crosses its line
    placed: list[PlacedFlag] = []
    for x, flag, wide in near:
        tier = next((t for t in range(tiers) if x - wide >= used[t]), None)
        if x + wide > end and tier is not None:
            used[: tier + 1] = [max(u, x) for u in used[: tier + 1]]
            limits[: tier + 1] = [min(limit, x - 0.04) for limit in limits[: tier + 1]]
            limits[tier] = min(limits[tier], x - wide)
            placed.append(PlacedFlag(flag, x, tier, True))
    for x, flag, wide in reversed(near):
        if x + wide > end:
            continue
        tier = next((t for t in range(tiers) if x + wide <= limits[t] and all(x <= limits[u] for u in range(t))), None)
        if tier is not None:
            limits[: tier + 1] = [min(limit, x - 0.04) for limit in limits[: tier + 1]]
            placed.append(PlacedFlag(flag, x, tier, False))
    return placed
