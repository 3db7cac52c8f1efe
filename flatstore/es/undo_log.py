"""Undo logs: what it takes to give 16-bit leaves back to the bit, and moves of such leaves that keep and use them.

bfloat16 and float16 have no room for a grid: what is added is rounded, and taking it back gives another number where
the sum had fewer digits. A log holds what is missing there, block by block (`flatstore/kernels/cpu/undo_log.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flatstore.es.groups import (
    ROOM,
    TASK,
    Group,
    blocks,
    factors_of,
    noisy_leaves,
    random_words,
    refuse_not_finite,
)
from flatstore.kernels.cpu import (
    BLOCK,
    FOUND_OTHERS,
    LENGTH,
    READ_BEYOND,
    WHOLE_NUMBERS,
    WHY,
    checking_loop,
    log_bytes,
    logged_loop,
)
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import Noise
from flatstore.store import AnyStore, Moves, Store, moves_of
from flatstore.threads import REACHED, Task, run_tasks

LOGGED_TASK = 1 << 18
"""Parameters in a task: each thread has room for the largest log of one."""


class Chunk(NamedTuple):
    """The log of the parameters start .. stop - 1 of a dtype."""

    dtype: str
    start: int
    stop: int
    data: Array
    """uint8, with a few bytes more than are used."""

    @property
    def nbytes(self) -> int:
        """The bytes that it holds."""
        return self.data.nbytes


class UndoLog:
    """What `es.perturb` returns for a store with 16-bit leaves, and takes to go back to the bit; `es.update`, if asked.

    It holds what rounding lost: for normal noise of 1e-3 on weights around 0.02 about 3 % of the bytes of the leaves.
    It is used up as the noise is taken back. Logs nest: the last is used first.

    >>> import ml_dtypes, flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.linspace(-1, 1, 1000).astype(ml_dtypes.bfloat16)})
    >>> before = store.flat.tobytes()
    >>> log = fs.es.perturb(store, fs.Normal(0.02), 7)
    >>> log
    UndoLog(seed 7, at +1, 51 bytes)
    >>> fs.es.perturb(store, fs.Normal(0.02), 7, sign=-1, undo=log)
    >>> store.flat.tobytes() == before
    True
    """

    def __init__(self, store: AnyStore, noise: Noise, key: Array, at: int, of_update: bool) -> None:
        self.layout: Layout = store.layout
        self.kind: Moves | None = moves_of(store)
        self.noise: Noise = noise
        self.key: Array = key
        self.at = at
        """How many times the noise has been added, negative if it has been subtracted; 0 when it is taken back."""
        self.of_update = of_update
        """Whether it takes an update back, not a perturbation."""
        self.chunks: dict[tuple[str, int], Any] = {}
        """The chunks by dtype and end; of a store on a device what its kind keeps, by path and size."""

    @property
    def nbytes(self) -> int:
        """The bytes that it holds."""
        return sum(chunk.nbytes for chunk in self.chunks.values())

    def close(self) -> None:
        """Use it up."""
        self.at: int = 0
        self.chunks.clear()

    def __repr__(self) -> str:
        """Its seed, where it leads back from, and its size."""
        of = "an update" if self.of_update else f"seed {int(self.key[0])}"
        at = "" if self.of_update else f"at {self.at:+d}, "
        return f"UndoLog({of}, {f'{at}{self.nbytes:,} bytes' if self.at else 'taken back'})"


def hand_over(error: Any, log: UndoLog) -> str:
    """Add a log to those that an exception carries, in the list `error.undo`; return the expression for it."""
    error.undo = [*getattr(error, "undo", ()), log]
    return f"error.undo[{len(error.undo) - 1}]"


def check_log(store: AnyStore, noise: Noise, key: Array, undo: Any, *, of_update: bool = False) -> None:
    """Raise `TypeError` or `ValueError` unless `undo` is a log of this store's layout, and of this noise and seed.

    The key of an update is a hash of its seeds and weights.
    """
    if not isinstance(undo, UndoLog):
        raise TypeError(f"expected an undo log, got {type(undo).__name__}; fix: pass what es.perturb returned")
    if undo.of_update != of_update:
        names = "an update", "a perturbation"
        want, got = names if of_update else reversed(names)
        raise ValueError(f"expected the undo log of {want}, got that of {got}; fix: pass what this call returned")
    refuse_used(undo)
    if undo.kind is not moves_of(store):
        raise ValueError(
            "expected an undo log of a store of this kind, got that of another; fix: pass that of the store"
        )
    if undo.layout != store.layout:
        raise ValueError("expected an undo log of this store, got one of another layout; fix: pass the store it is of")
    if of_update and undo.key[0] != key[0]:
        raise ValueError("expected the seeds and weights of the undo log, got others; fix: pass those of the update")
    for name, want, got in (("noise", undo.noise, noise), ("seed", int(undo.key[0]), int(key[0]))):
        if want != got:
            raise ValueError(f"expected the {name} of the undo log, {want}, got {got}; fix: pass that {name}")


def refuse_used(undo: UndoLog | None) -> None:
    """Raise `ValueError` for a log that was used: by another thread, perhaps, while this one waited to write."""
    if undo and not undo.at:
        raise ValueError("expected an undo log that was not used, got one that was; fix: use each log once")


def chunk_tasks(groups: Sequence[Group], undo: UndoLog) -> list[Task]:
    """A task for each chunk of a log."""
    by_dtype = {group.dtype: group for group in groups}
    return [Task(by_dtype[chunk.dtype], chunk.start, chunk.stop) for chunk in undo.chunks.values()]


def check_blocks(store: Store, noise: Noise, groups: Sequence[Group], undo: UndoLog) -> None:
    """Raise `ValueError` if the store is not as a log left it."""

    def look(task: Task, block: Array, note: Any) -> None:
        group, start, stop = task
        chunk = undo.chunks[group.dtype, stop]
        checking_loop(start, stop, group.raw, group.pieces, chunk.data, chunk.start, block, note)

    stopped = run_tasks(chunk_tasks(groups, undo), look, lambda: np.zeros(BLOCK, np.uint16))
    if stopped:
        raise changed_since(store, noise, stopped[0].group, stopped[1])


def changed_since(store: Store, noise: Noise, group: Group, index: int) -> ValueError:
    """The error for a block that is not as its log left it."""
    paths = [repr(leaf.path) for leaf in _leaves_in(store, noise, group, index)]
    where = " or ".join(paths) if len(paths) < 9 else f"one of {len(paths)} leaves, {paths[0]} to {paths[-1]}"
    return ValueError(
        f"{where}: expected parameters as the undo log left them, got others; fix: take later moves back first, and "
        "write nothing in between"
    )


def _leaves_in(store: Store, noise: Noise, group: Group, index: int) -> list[Leaf]:
    """The leaves of a group that have parameters in the block that begins at an index."""
    return [
        leaf
        for leaf in noisy_leaves(store, noise)
        if leaf.dtype.name == group.dtype and any(store.stretches(leaf, index, index + BLOCK))
    ]


class LoggedMove:
    """A move of 16-bit leaves by `sign` times the noise, from where a log says, or the centre: in tasks for threads."""

    _is_update = False

    def __init__(
        self, store: Store, groups: Sequence[Group], noise: Noise, key: Array, sign: int, undo: UndoLog | None
    ) -> None:
        self.at: int = undo.at if undo else 0
        self.target: int = self.at + sign
        self._store, self._groups, self._noise, self._key, self._undo = store, groups, noise, key, undo
        self._rows = factors_of(store.whole, noise).rows
        # Made before anything is moved: when all is, there may be no memory to make it.
        self._made = UndoLog(store, noise, key, self.target, self._is_update)
        self._old, self._new = undo.chunks if undo else {}, self._made.chunks
        self._why: dict[int, int] = {}  # by the index at which a task stopped
        self.new_log: UndoLog | None = None
        """What takes the move back, when it is made."""

    def tasks(self) -> list[Task]:
        """The tasks: those of the log, or new ones."""
        if self._undo:
            return chunk_tasks(self._groups, self._undo)
        return [
            Task(group, begin + start, begin + stop)
            for group in self._groups
            for begin, end in group.ranges.tolist()
            for start, stop in blocks(end - begin, min(LOGGED_TASK, max(BLOCK, TASK // BLOCK * BLOCK)))
        ]

    def scratch(self) -> Any:
        """What a thread works in."""
        numbers = WHOLE_NUMBERS[self._noise.width][1]
        longest = max((task.stop - task.start for task in self.tasks()), default=0)
        return (
            (
                random_words(self._noise.width, 1, BLOCK),
                np.zeros(BLOCK + ROOM, numbers),
                np.zeros(BLOCK, np.float32),
                *np.zeros((4, BLOCK + 64), np.uint16),
                np.zeros(2, np.int64),
            ),
            np.zeros(log_bytes(longest), np.uint8),
            np.zeros(1, np.int64),
        )

    def add(self, task: Task, scratch: Any, note: Any) -> None:
        """Do a task, and keep its new log. It stops where a block is not as the log left it, or would not be finite."""
        rows, out, _ = scratch
        key = task.group.dtype, task.stop
        self._run(task.group, task.start, task.stop, self.at, self.target, self._old.get(key), scratch, note)
        try:
            if rows[-1][WHY]:
                self._why[int(note[REACHED])] = int(rows[-1][WHY])
            if self.target:
                used = int(rows[-1][LENGTH]) + READ_BEYOND
                self._new[key] = Chunk(task.group.dtype, task.start, task.stop, out[:used].copy())
        except MemoryError:
            if not self.target:  # it leads back by the log that was given
                raise
            made = Chunk(task.group.dtype, task.start, task.stop, out)
            self._run(task.group, task.start, int(note[REACHED]), self.target, 0, made, scratch, scratch[2])
            if self.at:
                self._add(task, int(note[REACHED]), scratch)
            note[REACHED] = task.start
            raise

    def take_back(self, task: Task, end: int, scratch: Any) -> None:
        """Undo a task that has come to `end`."""
        made = self._new.get((task.group.dtype, task.stop))
        if made is None and self.target and end > task.start:
            raise MemoryError("expected memory for the log of what was moved, got none; fix: free some")
        if made is not None:
            self._run(task.group, task.start, end, self.target, 0, made, scratch, scratch[2])
        if self.at:
            self._add(task, end, scratch)

    def stopped_because(self, group: Group, index: int) -> ValueError:
        """The error for a move that has stopped at a block, when it is taken back."""
        store = self._store
        if self._why[index] == FOUND_OTHERS:
            return changed_since(store, self._noise, group, index)
        refuse_not_finite(store, [group])
        leaf = max(_leaves_in(store, self._noise, group, index), key=self._largest)
        return ValueError(
            f"{leaf.path!r}: expected parameters that stay finite in {leaf.dtype}, got a magnitude of "
            f"{self._largest(leaf):.6g} after the move; fix: pass a noise of a smaller scale"
        )

    def end(self) -> None:
        """Hand out the new log, if there is anything to take back, and use up the one that was given."""
        if self.target and self._groups:
            self.new_log = self._made
        if self._undo:
            self._undo.close()

    def _largest(self, leaf: Leaf) -> float:
        """The largest magnitude of a leaf after the move, before it is rounded."""
        (values,) = self._store.leaf_matrix(leaf)
        change = self.target - self.at
        largest = 0.0
        for stretch in self._store.stretches(leaf, 0, self._store.whole.size):
            for start, stop in blocks(stretch.end - stretch.begin, TASK):
                delta = self._noise.delta(stretch.leaf, self._key, stretch.at + start, stretch.at + stop)[0]
                part = values[stretch.begin + start : stretch.begin + stop].astype(np.float32)
                largest = max(largest, float(np.abs(part + change * delta).max()))
        return largest

    def _run(
        self, group: Group, start: int, stop: int, at: int, target: int, whole: Chunk | None, scratch: Any, note: Any
    ) -> None:
        rows, out, _ = scratch
        loop = logged_loop(group.dtype, self._noise.width, at != 0, target != 0)
        draw = self._noise.kind, self._key, self._rows
        steps = np.float32(at * self._noise.step), np.float32(target * self._noise.step)
        data = (whole.data, whole.start) if whole else (out[:0], start)
        loop(start, stop, group.raw, group.pieces, draw, steps, data, out, rows, note)

    def _add(self, task: Task, end: int, scratch: Any) -> None:
        """Add the noise to the centre as it had been added before: the same bits. The log that is made is not kept."""
        self._run(task.group, task.start, end, 0, self.at, None, scratch, scratch[2])
