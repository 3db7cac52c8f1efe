"""Perturbing a store in place, by noise that the opposite sign takes back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.es.groups import (
    IN_NOISE,
    ROOM,
    SIGNS_ACROSS,
    TASK,
    WIDTH,
    Group,
    blocks,
    check_sign,
    factors_of,
    is_small,
    noisy_groups,
    noisy_leaves,
    random_words,
    refuse_not_finite,
    tasks_of,
)
from flatstore.es.small_moves import Part, move_at_once
from flatstore.kernels.cpu import BITS, WHOLE_NUMBERS, perturbation_loop
from flatstore.layout import Array, Leaf
from flatstore.memory import write
from flatstore.noise import Noise, Seed, as_keys, seeds
from flatstore.store import Store
from flatstore.threads import REACHED, Task, run_tasks


def snap(store: Store, noise: Noise) -> None:
    """Round the parameters that `noise` moves to its grid, in place: to the nearest multiple, minus zero to zero.

    Call it once, before the first `perturb`: `perturb` and `update` keep parameters on the grid. float32 parameters
    move by at most `noise.step / 2`.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.array([0.1, -0.0], "f4")})
    >>> snap(store, fs.Normal(0.02, bound=1.0))
    >>> (store["w"] / fs.Normal(0.02, bound=1.0).grid("f4")).tolist()
    [1677722.0, 0.0]

    Raises `ValueError` for parameters that are not finite or reach the bound, and for 16-bit leaves, which have no
    grid; `LentError` while the store is lent. In all these cases nothing is written.
    """
    groups = noisy_groups(store, noise)
    refuse_16_bit(groups)
    views = [(leaf, *store.leaf_matrix(leaf)) for leaf in noisy_leaves(store, noise)]
    tasks = [Task(values, *ends) for _, values in views for ends in blocks(values.size, TASK)]

    def scratch() -> dict[Any, Array]:
        longest = max((task.stop - task.start for task in tasks), default=0)
        return {values.dtype: np.empty(longest, values.dtype) for _, values in views}

    def round_part(task: Task, scratch: dict[Any, Array], note: Any) -> None:
        part = task.group[task.start : task.stop]
        part[:] = to_grid(part, noise, scratch[part.dtype][: part.size])
        note[REACHED] = task.stop

    def round_all() -> None:
        refuse_not_finite(store, groups)
        for leaf, values in views:
            half = noise.grid(values.dtype) / 2
            largest = max(float(np.abs(values[start:stop]).max()) for start, stop in blocks(values.size, TASK))
            if largest >= noise.bound - half:  # would be rounded up to it, or lies beyond
                raise _past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
        run_tasks(tasks, round_part, scratch, finish=True)

    write([store.memory], round_all)


def perturb(store: Store, noise: Noise, seed: Seed, *, sign: int = 1, exact: bool = True) -> None:
    """Add `sign` times the noise of a seed to the store, in place. The opposite sign takes it back, to the bit.

    On the noise's grid (see `snap`) every sum is exact, so any number of perturbations may be nested and undone in any
    order. Frozen leaves and leaves of scale 0 are not touched. No memory is needed that grows with the store.

    >>> import flatstore as fs
    >>> store, noise = fs.Store.from_tree({"w": np.linspace(-1, 1, 5, dtype="f4")}), fs.Normal(0.02)
    >>> snap(store, noise)
    >>> before = store.flat.tobytes()
    >>> perturb(store, noise, 7)
    >>> perturb(store, noise, 7, sign=-1)
    >>> store.flat.tobytes() == before
    True

    Args:
        store: the parameters, on the grid of the noise.
        noise: `fs.Normal` or `fs.Rademacher`, with the bound that no parameter may reach.
        seed: a non-negative integer below 2**64, or several, which are hashed to one.
        sign: 1 or -1; 2 or -2 to go from one side of the centre to the other in one pass.
        exact: False for rounded float sums: they need no grid and no bound, but have no exact way back. 16-bit leaves
            have no other way; each perturbation that is undone may leave them slightly elsewhere.

    Raises `ValueError` for parameters that are off the grid, or that reach the bound before or after the move, with the
    leaf and its largest magnitude; for 16-bit leaves, unless `exact=False`; `LentError` while the store is lent. In all
    these cases the store is left as it was.
    """
    check_sign(sign, IN_NOISE, SIGNS_ACROSS)
    groups = noisy_groups(store, noise)
    if exact:
        refuse_16_bit(groups)
    key = key_of(seed)
    draw = noise.kind, key, *factors_of(store.layout, noise)

    def arguments(group: Group, sign: int, bound: float, scratch: Any) -> tuple[Any, ...]:
        rows = scratch[0], *scratch[1][group.dtype]
        return group.raw, group.pieces, draw, group.real(sign * noise.step), grid_of(group, bound), rows

    def move(task: Task, end: int, sign: int, bound: float, scratch: Any, note: Any) -> None:
        loop = perturbation_loop(task.group.dtype, noise.width)
        loop(task.start, end, *arguments(task.group, sign, bound, scratch), note)

    def add(task: Task, scratch: Any, note: Any) -> None:
        move(task, task.stop, sign, noise.bound if exact else 0.0, scratch, note)

    def undo(task: Task, end: int, scratch: Any) -> None:
        move(task, end, -sign, 0.0, scratch, scratch[2])

    def scratch() -> Any:
        rows = {group.dtype: number_rows(noise, group.real) for group in groups}
        return random_words(noise.width, 1, WIDTH), rows, np.zeros(1, np.int64)

    def delta(leaf: Leaf, begin: int, end: int) -> Array:
        return sign * noise.delta(leaf, key, begin, end)[0]

    def move_all() -> None:
        if not exact:
            refuse_not_finite(store, groups)
        stopped = run_tasks(tasks_of(groups), add, scratch, [undo] if exact else [], finish=not exact)
        if stopped:
            refuse(stopped[0].group, stopped[1])

    def refuse(group: Group, index: int) -> None:
        raise stopped_because(store, noise, group, index, delta, "pass a larger bound= of the noise")

    if exact and is_small(groups):
        rows = scratch()
        stopped = move_at_once(
            store,
            [
                Part(
                    group,
                    perturbation_loop(group.dtype, noise.width),
                    arguments(group, sign, noise.bound, rows),
                    arguments(group, -sign, 0.0, rows),
                )
                for group in groups
            ],
        )
        if stopped:
            refuse(*stopped)
    else:
        write([store.memory], move_all)


def key_of(seed: Seed) -> Array:
    """A seed as a Philox key, shape (1,): an integer as it is, several integers hashed to one."""
    number = whole(seed)
    if not isinstance(number, int):
        return as_keys(seeds(seed, 1))
    if not 0 <= number < 1 << 64:
        raise ValueError(f"expected a seed in 0 .. 2**64 - 1, got {seed}; fix: fs.seeds(seed, 1) hashes larger ones")
    return np.array([number], np.uint64)


def grid_of(group: Group, bound: float) -> tuple[Any, Any, Any]:
    """The grid, its reciprocal and the bits of the bound: what the compiled loop checks parameters against."""
    return _grid_of(group.real, group.grid or 1.0, bound)


@lru_cache(maxsize=64)
def _grid_of(real: Any, grid: float, bound: float) -> tuple[Any, Any, Any]:
    size = real(grid)
    return size, real(1) / size, real(bound).view(BITS[real])


def number_rows(noise: Noise, real: Any) -> tuple[Array, Array]:
    """Scratch for one block: the whole numbers of its draws, and a copy of its parameters before the move."""
    return np.zeros(WIDTH + ROOM, WHOLE_NUMBERS[noise.width][1]), np.zeros(WIDTH, real)


def refuse_16_bit(
    groups: list[Group], fix: str = "es.sample into a second store, or exact=False, which drifts"
) -> None:
    """Raise `ValueError` if there are leaves without a grid."""
    gridless = [group.dtype for group in groups if not group.grid]
    if gridless:
        raise ValueError(
            f"expected float32 or float64 leaves, which have a grid for exact undo, got {', '.join(gridless)}; "
            f"fix: {fix}"
        )


def stopped_because(
    store: Store, noise: Noise, group: Group, index: int, delta: Callable[[Leaf, int, int], Array], fix: str
) -> ValueError:
    """The error for a group that stopped at an index because parameters are off the grid or reach the bound.

    The store is as it was before the move, which was to add `delta(leaf, start, stop)` to its parameters.
    """
    worst = "", 0.0
    for leaf in noisy_leaves(store, noise):
        if leaf.dtype.name != group.dtype or not leaf.index - WIDTH < index < leaf.index + leaf.size:
            continue
        start, stop = max(index - leaf.index, 0), min(index - leaf.index + WIDTH, leaf.size)
        refuse_not_finite(store, [group])
        (values,) = store.leaf_matrix(leaf)
        part = values[start:stop]
        largest = max(float(np.abs(values[a:b]).max()) for a, b in blocks(leaf.size, TASK))
        if largest >= noise.bound:
            return _past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
        if to_grid(part, noise).tobytes() != part.tobytes():
            return ValueError(
                f"{leaf.path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {largest:.6g}; fix: es.snap(store, noise) once"
            )
        move = delta(leaf, start, stop)
        if (largest := float(np.abs(move).max())) >= noise.bound:  # such a move has too many digits for an exact sum
            return ValueError(
                f"{leaf.path!r}: expected a move below the bound {noise.bound:g}, got one of {largest:.6g}; fix: {fix}"
            )
        worst = max(worst, (leaf.path, float(np.abs(part + move).max())), key=lambda found: found[1])
    return _past_the_bound(noise, *worst, fix, " after the move")


def _past_the_bound(noise: Noise, path: str, largest: float, fix: str, when: str = "") -> ValueError:
    return ValueError(
        f"{path!r}: expected parameters below the bound {noise.bound:g}{when}, got a largest magnitude of "
        f"{largest:.6g}; fix: {fix}"
    )


def to_grid(values: Array, noise: Noise, out: Array | None = None) -> Array:
    """The values rounded to the nearest multiples of the grid: a copy, or `out`. Minus zero becomes zero."""
    grid = values.dtype.type(noise.grid(values.dtype))
    out = np.divide(values, grid, out=out)
    np.rint(out, out=out)
    np.multiply(out, grid, out=out)
    return np.add(out, 0, out=out)  # minus zero plus zero is zero
