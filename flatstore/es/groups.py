"""The leaves that noise is added to, one group for each dtype, as the compiled loops need to know them.

A loop goes over the parameters of a group in the order of their index. It meets *pieces*: parameters that are
neighbours in the index and in memory, and that have noise of one strength:

```
index     0          10         20         30
leaf      | bias     | kernel              |
scale     | 0.0      | 0.02                |
memory    | ...      |      | kernel ...              a piece: first index, end, row of the strengths,
                                                      place of the first, places from one member to the next
```
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flatstore.checks import real
from flatstore.kernels import COMPILES
from flatstore.kernels.cpu import GAP, STORAGE, finite_check, ranges, refuse_other_dtypes
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import Noise, spans
from flatstore.store import OnDevice, OnTorch, Population, Store, Views, host_of, moves_of, zeros_on_device
from flatstore.threads import REACHED, Task, run_tasks

WIDTH = 2048
"""Parameters in a block: what a thread has in its first cache."""

TASK = 1 << 20
"""Numbers that a thread takes on at a time, at most: about a millisecond."""

LEAST, PARTS = 1 << 16, 16
"""The least numbers in a task; the least number of tasks, if there are enough numbers for them."""

SMALL = 1 << 15
"""Draws that take no longer than it takes to wake another thread."""

SEEDS_PER_DRAW = 8
"""Seeds whose random words a thread draws at a time."""

ROOM = 512
"""Random numbers beyond a block's width that scratch has room for: whole blocks of 128 at both ends."""

_FAR = 1 << 18
"""Indices of other parts of a whole that are passed over: it takes less time than to begin another task."""

NO_NOISE = "give it the scale 0, or leave it out of trainable="
"""What to do about a leaf that noise cannot be added to."""


class Group(NamedTuple):
    """The leaves of one dtype that a compiled loop goes over."""

    dtype: str
    real: Any
    """The dtype that is computed with: float32 for 16-bit leaves."""
    raw: Array
    """The memory as a vector of what is stored: the places of the pieces count in it."""
    pieces: Array
    grid: float
    """What the parameters are multiples of; 0 where there is no grid."""
    ranges: Array
    """The ranges of the index that hold pieces, first index and end."""
    size: int
    """The length of all ranges."""


def noisy_leaves(store: Views | OnDevice, noise: Noise) -> list[Leaf]:
    """The leaves that noise is added to: those that train, and whose scale is not 0."""
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def trainable_leaves(store: Views | OnDevice, purpose: str = "add noise to", fix: str = NO_NOISE) -> list[Leaf]:
    """The leaves that train and are not empty. Raises `ValueError` for a dtype that cannot be computed with."""
    leaves = [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size]
    refuse_other_dtypes(leaves, purpose, fix)
    return leaves


def noisy_groups(store: Store, noise: Noise) -> list[Group]:
    """The leaves that noise is added to, a group for each dtype; planned once for a store and a noise.

    Raises `TypeError` unless these are a store and a noise; `ValueError` for a dtype that cannot be computed with, or a
    scale that is too small or too large for the grid.
    """
    check_types(store, noise)
    return store.cached(noise, lambda: _noisy_groups(store, noise))


def check_movable(store: Any, noise: Noise) -> None:
    """Raise as `noisy_groups` does, for a store of any kind."""
    if (kind := moves_of(store)) is not None:
        kind.check(store, noise)
    else:
        noisy_groups(host_of(store), noise)


def zeros_beside(store: Any, size: int | None = None) -> Any:
    """A store of zeros of the kind, the layout and the indices of another; or a population of so many members."""
    if (kind := moves_of(store)) is not None:
        return kind.zeros(store, size)
    if isinstance(store, OnTorch):
        return zeros_on_device(store.layout, store.device, size)
    return Store.like(store) if size is None else Population.like(store, size)


def _noisy_groups(store: Store, noise: Noise) -> list[Group]:
    noise.check_grid(store.whole)
    leaves = noisy_leaves(store, noise)
    refuse_other_dtypes(leaves, "add noise to", NO_NOISE)
    strengths = strengths_of(store.whole, noise)
    noisy = strengths.row >= 0
    return groups_of(leaves, [store], Strengths(strengths.bounds[noisy], strengths.row[noisy], strengths.scales), noise)


def trainable_groups(stores: Sequence[Store], purpose: str = "optimise") -> list[Group]:
    """All that trains in the first store, a group for each dtype; the pieces have places in each of the stores."""
    return groups_of(trainable_leaves(stores[0], purpose), stores, strengths_of(stores[0].whole, None))


def groups_of(
    leaves: Sequence[Leaf], views: Sequence[Views], strengths: Strengths, noise: Noise | None = None
) -> list[Group]:
    """A group for each dtype of the leaves; its pieces say where an index lies in each of the stores or populations.

    With noise it has the noise's grid.
    """
    found: list[Group] = []
    for name in dict.fromkeys(leaf.dtype.name for leaf in leaves):
        stored, real, _, _ = STORAGE[name]
        grid = noise.grid(real) if noise is not None and stored is real else 0.0
        pieces = _pieces(strengths, *(x.runs(name) for x in views))
        bounds = np.array(ranges(pieces, GAP if views[0].parts is None else _FAR), np.int64).reshape(-1, 2)
        size = int((bounds[:, 1] - bounds[:, 0]).sum())
        found.append(Group(name, real, views[0].raw(stored), pieces, grid, bounds, size))
    return found


def on_host(store: Any) -> Store:
    """The store itself, or that over the bytes of one of torch's. Raises `TypeError` unless it is on the host."""
    store = host_of(store)
    if not isinstance(store, Store):
        raise TypeError(
            f"expected a Store to move, got {type(store).__name__}; fix: Store.from_tree(tree), or a member, pop[i]"
        )
    return store


def check_types(store: Any, noise: Any) -> None:
    """Raise `TypeError` unless these are a store and a noise."""
    on_host(store)
    if not isinstance(noise, Noise):
        raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: pass one, such as fs.Normal(0.02)")


def check_sign(sign: Any, strength: str, allowed: tuple[int, ...] = (1, -1)) -> None:
    """Raise `ValueError` unless a sign is one of those allowed; `strength` says where a strength belongs instead."""
    if real(sign) not in allowed:
        *most, last = map(str, allowed)
        raise ValueError(f"expected sign {', '.join(most)} or {last}, got {sign}; fix: give the strength to {strength}")


IN_NOISE, IN_WEIGHTS = "the noise, as in fs.Normal(0.02)", "the weights"
"""Where the strength of a move belongs."""

SIGNS_ACROSS = (1, -1, 2, -2)
"""Signs of a move from the centre to a side, or from one side to the other."""


def refuse_not_finite(
    store: Store, groups: Sequence[Group], name: str = "parameters", fix: str = "go back to the last good ones"
) -> None:
    """Raise `ValueError` if a leaf of the groups, whose first places are in `store`, holds NaN or an infinity."""

    def look(task: Task, _scratch: None, note: Any) -> None:
        group, start, stop = task
        if finite_check(group.dtype)(start, stop, group.raw, group.pieces):
            note[REACHED] = stop

    if is_small(groups):
        found = any(
            not finite_check(group.dtype)(start, stop, group.raw, group.pieces)
            for group in groups
            for start, stop in group.ranges.tolist()
        )
    else:
        found = run_tasks(tasks_of(groups), look, lambda: None) is not None
    if not found:
        return
    for leaf in store.layout.homes:
        (values,) = store.leaf_matrix(leaf)
        for start, stop in blocks(leaf.size, TASK) if _is_in(store, leaf, groups) else ():
            good = np.isfinite(values[start:stop])
            if not good.all():
                at = start + int(good.argmin())
                raise ValueError(
                    f"{leaf.path!r}: expected finite {name}, got {values[at]} at {at} of {leaf.size:,}; fix: {fix}"
                )


def _is_in(store: Store, leaf: Leaf, groups: Sequence[Group]) -> bool:
    """Whether a leaf is one of a group's."""
    pieces = next((group.pieces for group in groups if group.dtype == leaf.dtype.name), None)
    if not leaf.trainable or not leaf.size or pieces is None:
        return False
    first = int(store.firsts(leaf)[0][0])
    return bool(((pieces[:, 0] <= first) & (first < pieces[:, 1])).any())


def is_small(groups: Sequence[Group], draws: int = 1) -> bool:
    """Whether a move of so many draws for each parameter is done at once; loops that are not compiled never are."""
    return draws * sum(group.size for group in groups) <= SMALL and COMPILES


class Strengths(NamedTuple):
    """Which noise is added where: a row for each strength."""

    bounds: Array
    """First indices and ends, shape (spans, 2)."""
    row: Array
    """For each span its row of the strengths; -1 for no noise."""
    scales: tuple[float, ...]
    """For each row."""


@lru_cache(maxsize=8)
def strengths_of(layout: Layout, noise: Noise | None) -> Strengths:
    """The spans of parameters that train and have one strength; without noise all have one."""
    bounds, scale = spans(layout, noise)
    scales = sorted({float(x) for x in scale if x})
    return Strengths(bounds, np.searchsorted([0.0, *scales], scale) - 1, tuple(scales))


class Factors(NamedTuple):
    """What turns the whole numbers of a noise into steps."""

    rows: Array
    """A `Factor` for each strength, shape (strengths, 3), int32."""
    most: Array
    """The most steps that are added at each strength, float64."""


@lru_cache(maxsize=8)
def factors_of(layout: Layout, noise: Noise) -> Factors:
    """The factors of all strengths of a noise."""
    factors = [noise.factor(scale) for scale in strengths_of(layout, noise).scales]
    most = [float(factor.steps(noise.whole.max())) for factor in factors]
    return Factors(np.array(factors, np.int32).reshape(-1, 3), np.array(most))


def _pieces(strengths: Strengths, *runs: Array) -> Array:
    """Where spans of one strength and runs in memory meet.

    Shape (pieces, 3 + 2 * len(runs)), int64: first index, end, row of the strengths, and for each of the runs the
    place of the first parameter and the places from one member to the next.
    """
    edges = np.unique(np.concatenate([strengths.bounds.reshape(-1), *(run[:, :2].reshape(-1) for run in runs)]))
    begin = edges[:-1]
    columns, inside = [begin, edges[1:]], np.ones(len(begin), bool)
    for i, rows in enumerate((strengths.bounds, *runs)):
        at = np.maximum(np.searchsorted(rows[:, 0], begin, side="right") - 1, 0)
        inside &= (rows[at, 0] <= begin) & (begin < rows[at, 1])
        columns += [strengths.row[at]] if i == 0 else [rows[at, 2] + begin - rows[at, 0], rows[at, 3]]
    return np.stack(columns, axis=1)[inside].astype(np.int64)


def random_words(width: int, keys: int, size: int) -> Array:
    """Room for the random words of a block of `size` numbers of `width` bits, for each of `keys` seeds."""
    return np.zeros((keys, -(-(size + ROOM) * width // 128) * 4), np.uint32)


def blocks(size: int, chunk: int) -> list[tuple[int, int]]:
    """The ranges of at most `chunk` parameters that `size` of them are cut into."""
    return [(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def tasks_of(groups: Sequence[Group], numbers: int = 1) -> list[Task]:
    """The groups, cut into tasks for the threads; each parameter takes `numbers` draws."""
    every = numbers * sum(group.size for group in groups)
    size = WIDTH * max(1, min(max(LEAST, every // PARTS), TASK) // (WIDTH * max(1, numbers)))
    return [
        Task(group, begin + start, begin + stop)
        for group in groups
        for begin, end in group.ranges.tolist()
        for start, stop in blocks(end - begin, size)
    ]
