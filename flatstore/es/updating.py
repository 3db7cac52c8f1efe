"""Moving a store along the noise of many seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.checks import real
from flatstore.es.grid import grid_of, stopped_because
from flatstore.es.groups import (
    IN_WEIGHTS,
    ROOM,
    SEEDS_PER_DRAW,
    Group,
    check_movable,
    check_sign,
    factors_of,
    is_small,
    noisy_groups,
    noisy_leaves,
    on_host,
    random_words,
    refuse_not_finite,
    tasks_of,
)
from flatstore.es.logged_updates import LoggedUpdate, check_update_log
from flatstore.es.small_moves import Part, move_at_once
from flatstore.es.undo_log import UndoLog, check_blocks, check_log, chunk_tasks, refuse_used
from flatstore.es.weights import fixed_point
from flatstore.kernels.cpu import BLOCK, SEEDS_AT_ONCE, WHOLE_NUMBERS, update_loop
from flatstore.layout import Array, Leaf
from flatstore.memory import write
from flatstore.noise import Noise
from flatstore.store import AnyStore, moves_of
from flatstore.threads import Task, run_tasks

WIDTH = 4096
"""Parameters in a block: their sums stay in a cache."""


def update(
    store: AnyStore,
    noise: Noise,
    seeds: Any,
    weights: Any,
    *,
    sign: int = 1,
    exact: bool = True,
    perturbed: int = 0,
    undo: UndoLog | None = None,
    keep: bool = False,
) -> UndoLog | None:
    """Add `sum_i weights[i] * noise(seeds[i])` to the store, in place: what `perturb` adds, weighted.

    The noise is made again from its seeds, block by block, so that no matrix of it is ever held. Weights become whole
    numbers (of 30 bits for the largest), so that the sum is a sum of integers, the same on every machine. It is rounded
    once, to the noise's grid: up or down at random, with probabilities by distance. So an update far below a step of
    the grid is not lost in the mean, and the parameters stay on the grid. The random bits come from the seeds and the
    weights: the same update is always rounded in the same way.

    >>> import flatstore as fs
    >>> store, noise = fs.Store.from_tree({"w": np.linspace(-1, 1, 5, dtype="f4")}), fs.Normal(0.02)
    >>> snap = fs.es.snap(store, noise)
    >>> before = store.flat.tobytes()
    >>> update(store, noise, fs.seeds(1, 3), [0.5, -0.25, 0.125])
    >>> update(store, noise, fs.seeds(1, 3), [0.5, -0.25, 0.125], sign=-1)
    >>> store.flat.tobytes() == before
    True

    16-bit leaves have no grid: their sum is taken in float32 and rounded at random to the dtype. There, and with
    `exact=False`, numbers that are too large become infinite, as in any float sum. With `keep` what rounding loses
    there is returned as a log, which takes the update back. If there are many equal weights, their whole numbers have
    fewer bits, so that the sum fits into 62; weights below 2 ** -62 count as zero.

    Args:
        store: the parameters, on the grid of the noise.
        noise: `fs.Normal` or `fs.Rademacher`, with the bound that no parameter may reach.
        seeds: non-negative integers below 2**64, shape (n,).
        weights: a finite real number for each seed, shape (n,).
        sign: 1, or -1 to take an update back, to the bit.
        exact: False for a float sum that is rounded to the dtype: it needs no grid and no bound, but has no exact way
            back. For parameters that are not on a grid, such as a gradient.
        perturbed: 1 or -1 if the store is perturbed by the first seed with that sign, which is then taken back in the
            same pass; 0 if it is not.
        undo: if it is, and has 16-bit leaves, the log that `perturb` returned; with `sign=-1` and 16-bit leaves the log
            that this update returned.
        keep: True to return what takes the update of 16-bit leaves back, an `UndoLog`. It takes half as long again.

    Returns None, or the log that was asked for, if there are 16-bit leaves.

    Raises `ValueError` unless there is a finite weight for each seed, for parameters that are not finite, off the grid
    or that reach the bound before or after the move, for `sign=-1` with `exact=False`, and for `sign=-1` or `perturbed`
    with 16-bit leaves without their log, or that are not as it left them; `LentError` while the store is lent. In all
    these cases the store is left as it was.
    """
    keys, fixed = fixed_point(noise, seeds, weights)
    check_sign(sign, IN_WEIGHTS)
    if real(perturbed) not in (0, 1, -1):
        raise ValueError(f"expected perturbed in (0, 1, -1), got {perturbed}; fix: pass the sign of the perturbation")
    check_movable(store, noise)
    gridless = list(dict.fromkeys(leaf.dtype.name for leaf in noisy_leaves(store, noise) if leaf.dtype.itemsize == 2))
    if (sign < 0 or perturbed or keep) and not exact:
        raise ValueError(
            "expected float32 or float64 leaves on a grid to take back to the bit, got exact=False; fix: leave that "
            "out, or es.sample into a second store instead"
        )
    if keep and (sign < 0 or perturbed):
        raise ValueError(
            "expected keep=True at the centre, got sign=-1 or perturbed; fix: take the perturbation back first"
        )
    if sign > 0:
        _check_perturbed(store, noise, keys, perturbed, gridless, undo)
    elif undo is not None or gridless:
        check_update_log(store, noise, fixed.key, gridless, undo)
    if (kind := moves_of(store)) is not None:
        how = {"sign": sign, "exact": exact, "perturbed": perturbed, "undo": undo, "keep": keep}
        return kind.update(store, noise, keys, weights, how)
    store = on_host(store)
    groups = noisy_groups(store, noise)
    on_grid, off_grid = ([x for x in groups if bool(exact and x.grid) == wanted] for wanted in (True, False))
    draw = noise.kind, keys, factors_of(store.whole, noise).rows

    def arguments(
        group: Group, whole: Array, sign: int, taken_back: int, checked: bool, scratch: Any, log: Any = None
    ) -> tuple[Any, ...]:
        words, drawn, dither, sums, numbers, restored, _ = scratch
        gridded = exact and group.grid > 0
        # A float64 grid is 2**29 times as fine as a step.
        drop = max(0, fixed.point - round(np.log2(noise.step / group.grid))) if gridded else 0
        unit = group.real(noise.step * 2.0 ** (drop - fixed.point))
        rounding = group.real(sign), drop, unit, fixed.key, group.real(taken_back), group.real(noise.step)
        grid = grid_of(group, noise.bound if gridded and checked else 0.0)
        rows = words, drawn, numbers[group.real], sums, dither
        return group.raw, group.pieces, draw, whole, rounding, grid, (*(log or no_log), *restored), rows

    def loop_of(group: Group) -> Any:
        return update_loop(group.dtype, noise.width, exact and group.grid > 0, bool(perturbed and not group.grid))

    def move(
        task: Task, end: int, whole: Array, sign: int, taken_back: int, checked: bool, scratch: Any, note: Any
    ) -> None:
        log = chunks.get((task.group.dtype, task.stop))
        given = arguments(task.group, whole, sign, taken_back, checked, scratch, log)
        loop_of(task.group)(task.start, end, *given, note)

    def add(task: Task, scratch: Any, note: Any) -> None:
        move(task, task.stop, fixed.whole, sign, perturbed, True, scratch, note)

    def take_back(task: Task, end: int, scratch: Any) -> None:
        move(task, end, fixed.whole, -sign, 0, False, scratch, scratch[-1])

    def perturb_again(task: Task, end: int, scratch: Any) -> None:
        move(task, end, no_weights, 1, -perturbed, False, scratch, scratch[-1])

    def scratch(width: int = 0) -> Any:
        width = width or WIDTH
        return (
            random_words(noise.width, min(SEEDS_PER_DRAW, max(1, len(keys))), width),
            np.zeros((SEEDS_AT_ONCE, width + ROOM), WHOLE_NUMBERS[noise.width][1]),
            random_words(32, 1, width),
            np.zeros(width, np.int64),
            {group.real: np.zeros(width, group.real) for group in groups},
            (np.zeros(width if undo else 0, np.float32), np.zeros(width if undo else 0, np.uint16)),
            np.zeros(1, np.int64),
        )

    def delta(leaf: Leaf, begin: int, end: int) -> Array:
        moves = [(sign * float(w), key) for w, key in zip(np.asarray(weights, np.float64), keys, strict=True)]
        if perturbed:
            moves.append((-float(perturbed), keys[0]))
        parts = (w * noise.delta(leaf, np.array([key]), begin, end)[0].astype(np.float64) for w, key in moves)
        return sum(parts, np.zeros(end - begin))

    no_weights, no_log = np.zeros_like(fixed.whole), (np.zeros(0, np.uint8), 0)
    chunks = {key: (chunk.data, chunk.start) for key, chunk in (undo.chunks if undo else {}).items()}
    steps = [take_back, perturb_again] if perturbed else [take_back]

    logged = LoggedUpdate(store, off_grid, noise, keys, fixed, sign, undo) if keep or sign < 0 else None

    def of(task: Task) -> bool:
        return not task.group.grid

    def add_any(task: Task, scratch: Any, note: Any) -> None:
        (logged.add if logged and of(task) else add)(task, scratch[of(task)], note)

    def take_any_back(task: Task, end: int, scratch: Any) -> None:
        (logged.take_back if logged and of(task) else take_back)(task, end, scratch[of(task)])

    def move_with_log(logged: LoggedUpdate) -> None:
        refuse_not_finite(store, off_grid if keep else [])
        tasks = [*tasks_of(on_grid, len(keys)), *logged.tasks()]
        stopped = run_tasks(tasks, add_any, lambda: (scratch(), logged.scratch()), [take_any_back])
        if stopped and of(stopped[0]):
            raise logged.stopped_because(stopped[0].group, stopped[1])
        if stopped:
            refuse(stopped[0].group, stopped[1])
        logged.end()

    def move_all() -> None:
        refuse_used(undo)
        if logged and off_grid:
            return move_with_log(logged)
        refuse_not_finite(store, off_grid)
        if undo:
            check_blocks(store, noise, off_grid, undo)
        stopped = run_tasks(tasks_of(on_grid, len(keys)), add, scratch, steps)
        if stopped:
            refuse(stopped[0].group, stopped[1])
        # These groups cannot be taken back, so they come last, when nothing but a lack of memory can fail any more.
        if undo:
            run_tasks(chunk_tasks(off_grid, undo), add, lambda: scratch(BLOCK), finish=Exception)
            undo.close()
        elif len(keys):  # else -0.0 would become 0.0
            run_tasks(tasks_of(off_grid, len(keys)), add, scratch, finish=Exception)

    def refuse(group: Group, index: int) -> None:
        raise stopped_because(
            store, noise, group, index, delta, "pass smaller weights, or a larger bound= of the noise"
        )

    if not off_grid and not perturbed and is_small(on_grid, len(keys)):
        rows = scratch()
        stopped = move_at_once(
            store,
            [
                Part(
                    group,
                    loop_of(group),
                    arguments(group, fixed.whole, sign, 0, True, rows),
                    arguments(group, fixed.whole, -sign, 0, False, rows),
                )
                for group in on_grid
            ],
        )
        if stopped:
            refuse(*stopped)
    else:
        write([store.memory], move_all)
    return logged.new_log if logged else None


def _check_perturbed(
    store: AnyStore, noise: Noise, keys: Array, perturbed: int, gridless: list[str], undo: UndoLog | None
) -> None:
    """Raise unless what is to be taken back first has a seed and, for 16-bit leaves, a log."""
    if perturbed and not len(keys):
        raise ValueError(
            "expected the seed that the store is perturbed by, got none; fix: pass its seed first, or perturbed=0"
        )
    if undo is None and perturbed and gridless:
        raise ValueError(
            f"expected the undo log of {' and '.join(gridless)} leaves to take the perturbation back, got none; "
            "fix: undo=, what es.perturb returned"
        )
    if undo is not None:
        check_log(store, noise, keys[:1], undo)
        if undo.at != perturbed:
            raise ValueError(
                f"expected perturbed={undo.at}, as the undo log says, got {perturbed}; fix: pass that, with its seed "
                "first"
            )
