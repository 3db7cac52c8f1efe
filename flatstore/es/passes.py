"""What the compiled loops of the evolution strategies need to know of a store, dtype by dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flatstore.arrays import Array
from flatstore.kernels.storage import STORAGE
from flatstore.kernels.threads import each
from flatstore.layout import Layout
from flatstore.noise import Noise, spans
from flatstore.store import Store
from flatstore.table import Leaf

TASK = 1 << 20
"""Parameters that a thread takes on at a time: about a millisecond."""


class Pass(NamedTuple):
    """The leaves of one dtype that noise is added to."""

    dtype: str
    real: Any
    """The dtype that is computed with."""
    raw: Array
    runs: Array
    grid: float
    """What the parameters are multiples of; 0 where there is no grid."""


Item = tuple[Pass, int, int]
"""A range of the parameters in a pass: the first index and the end."""


def moved(store: Store, noise: Noise) -> list[Leaf]:
    """The leaves that noise is added to."""
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def passes(store: Store, noise: Noise) -> list[Pass]:
    """A pass for each dtype. Raises `ValueError` for one that cannot be computed with, or a scale without a grid."""
    noise.check_grid(store.layout)
    leaves = moved(store, noise)
    for leaf in leaves:
        if leaf.dtype.name not in STORAGE:
            raise ValueError(
                f"{leaf.path!r}: expected a leaf of {', '.join(STORAGE)} to add noise to, got {leaf.spec}; "
                "fix: give it the scale 0, or leave it out of trainable="
            )
    still = frozenset(leaf.path for leaf in store.layout.homes if leaf.trainable and not noise.scale_of(leaf.path))
    found: list[Pass] = []
    for name in dict.fromkeys(leaf.dtype.name for leaf in leaves):
        stored, real, _, _ = STORAGE[name]
        grid = 0.0 if stored is np.uint16 else noise.grid(real)
        found.append(Pass(name, real, store.raw(stored), store.runs(name, still), grid))
    return found


def multipliers(layout: Layout, noise: Noise) -> tuple[Array, Array]:
    """First indices and ends, and what a draw is multiplied by in each span to be a number of steps: float32."""
    bounds, scales = spans(layout, noise)
    return bounds, (scales / noise.step).astype(np.float32)


def draw_of(noise: Noise) -> tuple[int, int, Array]:
    """The stream, the bits of a draw, and the values that it is looked up in."""
    return noise.kind, noise.width, np.array(noise.values)


def random_scratch(rows: int, width: int) -> tuple[Array, Array, Array]:
    """Room for the random numbers of a block of `width` parameters under so many keys."""
    room = -(-width // 8) * 8 + 272
    return np.zeros((rows, room), np.uint32), np.zeros((rows, room), np.uint8), np.zeros((rows, room), np.uint32)


def moving_scratch(real: Any, width: int) -> tuple[Any, ...]:
    """Room for a block of the parameters before and after a move, as numbers and as bits, and for what moves them."""
    bits = np.uint64 if real is np.float64 else np.uint32
    old, new = np.zeros((1, width), real), np.zeros((1, width), real)
    return old, new, old.view(bits), new.view(bits), np.zeros(width, np.float32), np.zeros(width + 272, np.float32)


def blocks(size: int, chunk: int) -> list[tuple[int, int]]:
    """Ranges of at most `chunk` of so many parameters."""
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def there_and_back(
    todo: list[Item], forth: Callable[[Item, int], int | None], back: Callable[[Item, int, int], None]
) -> bool:
    """Call `forth(item, worker)` for all, over the threads: it returns where it had to stop, or None if it did not.

    If any had to stop, all that was done is undone by `back(item, end, worker)`. Returns whether that was so.
    """
    ends: dict[int, int] = {}
    stopped: list[int] = []

    def go(i: int, worker: int) -> None:
        if not stopped:
            end = forth(todo[i], worker)
            ends[i] = todo[i][2] if end is None else end
            if end is not None:
                stopped.append(i)

    each(go, len(todo))
    if stopped:
        done = list(ends.items())
        each(lambda j, worker: back(todo[done[j][0]], done[j][1], worker), len(done))
    return bool(stopped)
