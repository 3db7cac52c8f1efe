"""The grid of a noise: parameters rounded to it, and the errors for those that are off it or reach its bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from flatstore.es.groups import TASK, WIDTH, Group, blocks, noisy_groups, noisy_leaves, on_host, refuse_not_finite
from flatstore.kernels.cpu import BITS
from flatstore.layout import Array, Leaf
from flatstore.memory import write
from flatstore.noise import Noise
from flatstore.store import AnyStore, Store, moves_of
from flatstore.threads import REACHED, Task, refuse_waiting_at_the_end, run_tasks

AT_ONCE = 2 * WIDTH
"""Parameters that a compiled loop moves together at most: among them is what it stopped at."""


def snap(store: AnyStore, noise: Noise) -> None:
    """Round the parameters that `noise` moves to its grid, in place: to the nearest multiple, minus zero to zero.

    Call it once, before the first `perturb`: `perturb` and `update` keep parameters on the grid. float32 parameters
    move by at most `noise.step / 2`.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.array([0.1, -0.0], "f4")})
    >>> snap(store, fs.Normal(0.02, bound=1.0))
    >>> (store["w"] / fs.Normal(0.02, bound=1.0).grid("f4")).tolist()
    [1677722.0, 0.0]

    16-bit leaves have no grid, and are left alone.

    Raises `ValueError` for parameters that are not finite or reach the bound; `LentError` while the store is lent. In
    both cases nothing is written.
    """
    refuse_waiting_at_the_end()
    if (kind := moves_of(store)) is not None:
        return kind.snap(store, noise)
    store = on_host(store)
    groups = [group for group in noisy_groups(store, noise) if group.grid]
    dtypes = {group.dtype for group in groups}
    leaves = [leaf for leaf in noisy_leaves(store, noise) if leaf.dtype.name in dtypes]
    views = [(leaf, *store.leaf_matrix(leaf)) for leaf in leaves]
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
                raise past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
        run_tasks(tasks, round_part, scratch, finish=Exception)

    write([store.memory], round_all)


def grid_of(group: Group, bound: float) -> tuple[Any, Any, Any]:
    """The grid, its reciprocal and the bits of the bound: what the compiled loop checks parameters against."""
    return _grid_of(group.real, group.grid or 1.0, bound)


@lru_cache(maxsize=64)
def _grid_of(real: Any, grid: float, bound: float) -> tuple[Any, Any, Any]:
    size = real(grid)
    return size, real(1) / size, real(bound).view(BITS[real])


def stopped_because(
    store: Store, noise: Noise, group: Group, index: int, delta: Callable[[Leaf, int, int], Array], fix: str
) -> ValueError:
    """The error for a group that stopped at an index because parameters are off the grid or reach the bound.

    The store is as it was before the move, which was to add `delta(leaf, start, stop)` to its parameters.
    """
    worst = "", 0.0
    for leaf in noisy_leaves(store, noise):
        near = list(store.stretches(leaf, index, index + AT_ONCE)) if leaf.dtype.name == group.dtype else []
        if not near:
            continue
        refuse_not_finite(store, [group])
        (values,) = store.leaf_matrix(leaf)
        part = values[near[0].begin : near[-1].end]
        largest = max(float(np.abs(values[a:b]).max()) for a, b in blocks(leaf.size, TASK))
        if largest >= noise.bound:
            return past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
        if to_grid(part, noise).tobytes() != part.tobytes():
            return ValueError(
                f"{leaf.path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {largest:.6g}; fix: es.snap(store, noise) once"
            )
        move = np.concatenate([delta(x.leaf, x.at, x.at + x.end - x.begin) for x in near])
        if (largest := float(np.abs(move).max())) >= noise.bound:  # such a move has too many digits for an exact sum
            return ValueError(
                f"{leaf.path!r}: expected a move below the bound {noise.bound:g}, got one of {largest:.6g}; fix: {fix}"
            )
        worst = max(worst, (leaf.path, float(np.abs(part + move).max())), key=lambda found: found[1])
    return past_the_bound(noise, *worst, fix, " after the move")


def past_the_bound(noise: Noise, path: str, largest: float, fix: str, when: str = "") -> ValueError:
    """The error for parameters that reach the bound."""
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
