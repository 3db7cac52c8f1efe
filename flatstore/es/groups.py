"""What the compiled loops of the evolution strategies need to know of a store, dtype by dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flatstore.kernels import each
from flatstore.kernels.cpu import STORAGE, ranges, refuse_others
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import Noise, spans
from flatstore.store import Store, Views

WIDTH = 2048
"""Parameters in a block: what a thread has in its first cache."""

TASK = 1 << 20
"""Numbers that a thread takes on at a time, at most: about a millisecond."""

LEAST, PARTS = 1 << 16, 16
"""Numbers that are worth a task, and how many tasks there are at least if there are so many numbers."""

ROOM = 512
"""Random numbers beyond a block's width that scratch has room for: whole blocks of 128 at both ends."""


class Pass(NamedTuple):
    """The leaves of one dtype that noise is added to."""

    dtype: str
    real: Any
    """The dtype that is computed with."""
    raw: Array
    pieces: Array
    grid: float
    """What the parameters are multiples of; 0 where there is no grid."""


Item = tuple[Pass, int, int]
"""A range of the parameters in a pass: the first index and the end."""


def moved(store: Views, noise: Noise) -> list[Leaf]:
    """The leaves that noise is added to."""
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def passes(store: Store, noise: Noise) -> list[Pass]:
    """A pass for each dtype.

    Raises `TypeError` for what is no store or no noise, `ValueError` for a dtype that cannot be computed with, or a
    scale without a grid.
    """
    check_types(store, noise)
    return store.planned(noise, lambda: _passes(store, noise))


def _passes(store: Store, noise: Noise) -> list[Pass]:
    noise.check_grid(store.layout)
    leaves = moved(store, noise)
    refuse_others(leaves, "add noise to", NO_NOISE)
    lines = lines_of(store.layout, noise)
    noisy = Lines(lines.bounds[lines.line >= 0], lines.line[lines.line >= 0], lines.scales)
    return passes_over(noisy, leaves, [store], noise)


def passes_over(lines: Lines, leaves: list[Leaf], views: Sequence[Views], noise: Noise | None = None) -> list[Pass]:
    """A pass for each dtype of the leaves: its pieces say where each index lies in each of the stores or populations.

    With noise they have its grid.
    """
    found: list[Pass] = []
    for name in dict.fromkeys(leaf.dtype.name for leaf in leaves):
        stored, real, _, _ = STORAGE[name]
        grid = noise.grid(real) if noise is not None and stored is real else 0.0
        places = pieces(lines, *(x.runs(name) for x in views))
        found.append(Pass(name, real, views[0].raw(stored), places, grid))
    return found


def check_types(store: Any, noise: Any) -> None:
    """Raise `TypeError` for what is no store or no noise."""
    if not isinstance(store, Store):
        raise TypeError(
            f"expected a Store to move, got {type(store).__name__}; fix: Store.from_tree(tree), or a member, pop[i]"
        )
    if not isinstance(noise, Noise):
        raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: like fs.Normal(0.02)")


NO_NOISE = "give it the scale 0, or leave it out of trainable="
"""What to do about a leaf that noise cannot be added to."""


def refuse_unknown(store: Store, leaves: list[Leaf]) -> None:
    """Raise `ValueError` for a leaf that holds NaN or an infinity."""
    for leaf in leaves:
        (values,) = store.columns(leaf)
        for start, stop in blocks(leaf.size, TASK):
            finite = np.isfinite(values[start:stop])
            if not finite.all():
                at = start + int(finite.argmin())
                raise ValueError(
                    f"{leaf.path!r}: expected finite parameters, got {values[at]} at {at} of {leaf.size:,}; "
                    "fix: go back to the last good ones"
                )


class Lines(NamedTuple):
    """What noise is added where: a line of the table of `magnitudes` for each strength."""

    bounds: Array
    """First indices and ends, shape (spans, 2)."""
    line: Array
    """For each span; -1 for no noise."""
    scales: tuple[float, ...]
    """For each line."""


@lru_cache(maxsize=8)
def lines_of(layout: Layout, noise: Noise) -> Lines:
    """The spans of one strength."""
    bounds, strengths = spans(layout, noise)
    scales = sorted({float(scale) for scale in strengths if scale})
    return Lines(bounds, np.searchsorted([0.0, *scales], strengths) - 1, tuple(scales))


@lru_cache(maxsize=8)
def magnitudes(noise: Noise, scales: tuple[float, ...]) -> tuple[Array, Array]:
    """What draws add, a line for each scale: magnitudes in units (int16), and how many steps a unit has (int64)."""
    return np.stack([noise.magnitudes(scale) for scale in scales]), np.array([noise.unit(scale) for scale in scales])


def pieces(lines: Lines, *runs: Array) -> Array:
    """Where spans and runs meet: first index, end, line, and for each of the runs the place and the member's step.

    Shape (pieces, 3 + 2 * len(runs)), int64.
    """
    edges = np.unique(np.concatenate([lines.bounds.reshape(-1), *(run[:, :2].reshape(-1) for run in runs)]))
    begin = edges[:-1]
    columns, inside = [begin, edges[1:]], np.ones(len(begin), bool)
    for i, rows in enumerate((lines.bounds, *runs)):
        at = np.maximum(np.searchsorted(rows[:, 0], begin, side="right") - 1, 0)
        inside &= (rows[at, 0] <= begin) & (begin < rows[at, 1])
        columns += [lines.line[at]] if i == 0 else [rows[at, 2] + begin - rows[at, 0], rows[at, 3]]
    return np.stack(columns, axis=1)[inside].astype(np.int64)


def random_words(width: int, keys: int, size: int) -> Array:
    """Room for the random words of a block of numbers of `width` bits, for so many keys."""
    return np.zeros((keys, -(-(size + ROOM) * width // 32)), np.uint32)


def blocks(size: int, chunk: int) -> list[tuple[int, int]]:
    """Ranges of at most `chunk` of so many parameters."""
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def items(todo: list[Pass], numbers: int = 1) -> list[Item]:
    """The passes, cut into ranges for the threads to take on, where each parameter takes so many numbers."""
    every = numbers * sum(end - begin for p in todo for begin, end in ranges(p.pieces))
    task = WIDTH * max(1, min(max(LEAST, every // PARTS), TASK) // (WIDTH * max(1, numbers)))
    return [
        (p, begin + start, begin + stop)
        for p in todo
        for begin, end in ranges(p.pieces)
        for start, stop in blocks(end - begin, task)
    ]


def there_and_back(
    todo: list[Item], forth: Callable[[Item, int], int], back: Callable[[Item, int, int], None]
) -> tuple[Pass, int] | None:
    """Call `forth(item, worker)` for all, over the threads: it returns how far it came.

    If any did not come to its end, or failed, all that was done is undone by `back(item, end, worker)`. Returns the
    pass and the place where one stopped, or None.
    """
    ends: dict[int, int] = {}
    stopped: list[int] = []

    def go(i: int, worker: int) -> None:
        if not stopped:
            ends[i] = forth(todo[i], worker)
            if ends[i] < todo[i][2]:
                stopped.append(i)

    def undo() -> None:
        done = list(ends.items())
        each(lambda j, worker: back(todo[done[j][0]], done[j][1], worker), len(done))

    try:
        each(go, len(todo))
    except BaseException:
        undo()
        raise
    if not stopped:
        return None
    undo()
    return todo[min(stopped)][0], ends[min(stopped)]
