"""Perturbing a store in place, by noise that the opposite sign takes back to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.es.grid import grid_of, stopped_because
from flatstore.es.groups import (
    IN_NOISE,
    ROOM,
    SIGNS_ACROSS,
    WIDTH,
    Group,
    check_sign,
    factors_of,
    is_small,
    noisy_groups,
    on_host,
    random_words,
    refuse_not_finite,
    tasks_of,
)
from flatstore.es.small_moves import Part, move_at_once
from flatstore.es.undo_log import LoggedMove, UndoLog, check_log, hand_over, refuse_used
from flatstore.kernels.cpu import WHOLE_NUMBERS, perturbation_loop
from flatstore.layout import Array, Leaf
from flatstore.memory import write
from flatstore.noise import Noise, Seed, as_keys, seeds
from flatstore.store import AnyStore, OnDevice, Store, moves_of
from flatstore.threads import Task, run_tasks


def perturb(
    store: AnyStore, noise: Noise, seed: Seed, *, sign: int = 1, exact: bool = True, undo: UndoLog | None = None
) -> UndoLog | None:
    """Add `sign` times the noise of a seed to the store, in place. The opposite sign takes it back, to the bit.

    On the noise's grid (see `snap`) every sum is exact, so any number of perturbations may be nested and undone in any
    order. Frozen leaves and leaves of scale 0 are not touched. No memory is needed that grows with the store.

    16-bit leaves have no grid, and their sums are rounded. What is lost is returned as a log, a few per cent of the
    bytes of the leaves, and has to be passed as `undo` to go back to the bit; see `UndoLog`.

    >>> import flatstore as fs
    >>> store, noise = fs.Store.from_tree({"w": np.linspace(-1, 1, 5, dtype="f4")}), fs.Normal(0.02)
    >>> fs.es.snap(store, noise)
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
        exact: False for rounded float sums: they need no grid, no bound and no log, but have no exact way back. What is
            perturbed and "undone" so ends slightly elsewhere.
        undo: what the perturbation that is to be taken back returned; with it `sign` leads back to the centre, or
            across it.

    Returns None, or the log that leads back to the centre if there are 16-bit leaves and they are not there now. If an
    interrupt was held back until they had moved, it has the log: the last of its attribute `undo`, a list.

    Raises `ValueError` for parameters that are off the grid, or that reach the bound before or after the move, with the
    leaf and its largest magnitude; for 16-bit leaves that are not finite before or after it, or not as their log left
    them; for a log of another noise, seed or layout; `LentError` while the store is lent. In all these cases the store
    is left as it was, and the log can still be used.
    """
    if (kind := moves_of(store)) is not None:
        return kind.perturb(store, noise, seed, sign, exact, undo)
    store = on_host(store)
    check_sign(sign, IN_NOISE, SIGNS_ACROSS)
    sign = int(sign)
    noisy = noisy_groups(store, noise)
    groups, gridless = ([x for x in noisy if bool(x.grid or not exact) == wanted] for wanted in (True, False))
    key = key_of(seed)
    check_way_back(store, noise, key, sign, bool(gridless), undo)
    plain = _PlainMove(store, groups, noise, key, sign, exact)
    logged = LoggedMove(store, gridless, noise, key, sign, undo)
    if exact and not gridless and is_small(groups):
        plain.move_at_once()
    elif not exact:
        write([store.memory], plain.move_for_good)
    else:
        try:
            write([store.memory], lambda: _move(plain, logged, undo))
        except BaseException as interrupt:
            if logged.new_log:  # the store has moved, and what came meanwhile is raised now
                interrupt.add_note(f"the store is perturbed; {hand_over(interrupt, logged.new_log)} takes it back")
            raise
    return logged.new_log


def _move(plain: _PlainMove, logged: LoggedMove, undo: UndoLog | None) -> None:
    """Move all leaves, or raise and leave them as they were."""
    refuse_used(undo)

    def of(task: Task) -> _PlainMove | LoggedMove:
        return plain if task.group.grid else logged

    def add(task: Task, scratch: Any, note: Any) -> None:
        of(task).add(task, scratch[of(task)], note)

    def take_back(task: Task, end: int, scratch: Any) -> None:
        of(task).take_back(task, end, scratch[of(task)])

    tasks = [*plain.tasks(), *logged.tasks()]
    parts = {of(task): None for task in tasks}
    stopped = run_tasks(tasks, add, lambda: {part: part.scratch() for part in parts}, [take_back])
    if stopped:
        raise of(stopped[0]).stopped_because(stopped[0].group, stopped[1])
    logged.end()


class _PlainMove:
    """A move of leaves by sums that are exact, on the grid; or by rounded sums, which are not taken back."""

    def __init__(self, store: Store, groups: Sequence[Group], noise: Noise, key: Array, sign: int, exact: bool) -> None:
        self._store, self._groups, self._noise, self._key, self._sign = store, groups, noise, key, sign
        self._bound = noise.bound if exact else 0.0
        self._draw = noise.kind, key, *factors_of(store.whole, noise)

    def tasks(self) -> list[Task]:
        """The tasks for the threads."""
        return tasks_of(self._groups)

    def scratch(self) -> Any:
        """What a thread works in."""
        rows = {group.dtype: number_rows(self._noise, group.real) for group in self._groups}
        return random_words(self._noise.width, 1, WIDTH), rows, np.zeros(1, np.int64)

    def add(self, task: Task, scratch: Any, note: Any) -> None:
        """Do a task. It stops where a parameter is off the grid, or reaches the bound."""
        given = self._arguments(task.group, self._sign, self._bound, scratch)
        self._loop(task.group)(task.start, task.stop, *given, note)

    def take_back(self, task: Task, end: int, scratch: Any) -> None:
        """Undo a task that has come to `end`."""
        given = self._arguments(task.group, -self._sign, 0.0, scratch)
        self._loop(task.group)(task.start, end, *given, scratch[2])

    def move_at_once(self) -> None:
        """Do all tasks in this thread. Raises the error of a task that stops."""
        rows, sign = self.scratch(), self._sign
        parts = [
            Part(
                group,
                self._loop(group),
                self._arguments(group, sign, self._bound, rows),
                self._arguments(group, -sign, 0.0, rows),
            )
            for group in self._groups
        ]
        if stopped := move_at_once(self._store, parts):
            raise self.stopped_because(*stopped)

    def move_for_good(self) -> None:
        """Do all tasks; what is begun is finished."""
        refuse_not_finite(self._store, self._groups)
        run_tasks(self.tasks(), self.add, self.scratch, finish=Exception)

    def stopped_because(self, group: Group, index: int) -> ValueError:
        """The error for a move that has stopped at an index, when it is taken back."""

        def delta(leaf: Leaf, begin: int, end: int) -> Array:
            return self._sign * self._noise.delta(leaf, self._key, begin, end)[0]

        return stopped_because(self._store, self._noise, group, index, delta, "pass a larger bound= of the noise")

    def _loop(self, group: Group) -> Any:
        return perturbation_loop(group.dtype, self._noise.width)

    def _arguments(self, group: Group, sign: int, bound: float, scratch: Any) -> tuple[Any, ...]:
        rows = scratch[0], *scratch[1][group.dtype]
        step = group.real(sign * self._noise.step)
        return group.raw, group.pieces, self._draw, step, grid_of(group, bound), rows


def check_way_back(store: AnyStore, noise: Noise, key: Array, sign: int, logged: bool, undo: UndoLog | None) -> None:
    """Raise unless a log that is given leads where `sign` says, and is given if it is needed."""
    if undo is not None:
        check_log(store, noise, key, undo)
        if sign not in (-undo.at, -2 * undo.at) or not logged:
            raise ValueError(
                f"expected sign {-undo.at}, to take back what was added {undo.at} times, or {-2 * undo.at}, to go "
                f"across, and exact=True, got sign {sign}{'' if logged else ' and exact=False'}; fix: pass one of these"
            )
    elif logged and abs(sign) > 1:
        raise ValueError(
            f"expected the undo log of 16-bit leaves to go across the centre, got sign {sign} without one; "
            f"fix: perturb by sign {sign // -2} first, and pass undo=, what that returned"
        )


def key_of(seed: Seed) -> Array:
    """A seed as a Philox key, shape (1,): an integer as it is, several integers hashed to one."""
    number = whole(seed)
    if not isinstance(number, int):
        return as_keys(seeds(seed, 1))
    if not 0 <= number < 1 << 64:
        raise ValueError(f"expected a seed in 0 .. 2**64 - 1, got {seed}; fix: fs.seeds(seed, 1) hashes larger ones")
    return np.array([number], np.uint64)


def number_rows(noise: Noise, real: Any) -> tuple[Array, Array]:
    """Scratch for one block: the whole numbers of its draws, and a copy of its parameters before the move."""
    return np.zeros(WIDTH + ROOM, WHOLE_NUMBERS[noise.width][1]), np.zeros(WIDTH, real)


def as_one(store: AnyStore, work: Callable[[], object]) -> None:
    """Do several verbs as one, uninterrupted. Of leaves on a device that moved it is said when all is done."""
    if isinstance(store, OnDevice):
        store.write(work)
    else:
        write([store.memory], work)
