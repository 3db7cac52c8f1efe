"""Updates of 16-bit leaves that can be taken back, by a log of what rounding lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatstore.es.groups import ROOM, SEEDS_PER_DRAW, Group, random_words
from flatstore.es.undo_log import Chunk, LoggedMove, UndoLog, check_log
from flatstore.es.weights import FixedPoint
from flatstore.kernels.cpu import BLOCK, SEEDS_AT_ONCE, WHOLE_NUMBERS, logged_update_loop
from flatstore.layout import Array
from flatstore.noise import Noise
from flatstore.store import AnyStore, Store


def check_update_log(store: AnyStore, noise: Noise, key: Array, gridless: list[str], undo: UndoLog | None) -> None:
    """Raise unless an update of 16-bit leaves is taken back by its log."""
    if undo is None:
        raise ValueError(
            f"expected the undo log of {' and '.join(gridless)} leaves to take an update back, got none; "
            "fix: undo=, what es.update(..., keep=True) returned"
        )
    check_log(store, noise, key, undo, of_update=True)


class LoggedUpdate(LoggedMove):
    """An update of 16-bit leaves, or the way back from it."""

    _is_update = True

    def __init__(
        self,
        store: Store,
        groups: Sequence[Group],
        noise: Noise,
        keys: Array,
        fixed: FixedPoint,
        sign: int,
        undo: UndoLog | None,
    ) -> None:
        super().__init__(store, groups, noise, fixed.key, sign, undo)
        self._draw = noise.kind, keys, self._rows
        self._whole = fixed.whole
        self._rounding = np.float32(noise.step * 2.0**-fixed.point), fixed.key
        self._seeds = min(SEEDS_PER_DRAW, max(1, len(keys)))

    def scratch(self) -> Any:
        """What a thread works in."""
        (_, _, _, *halves), out, note = super().scratch()
        rows = (
            random_words(self._noise.width, self._seeds, BLOCK),
            np.zeros((SEEDS_AT_ONCE, BLOCK + ROOM), WHOLE_NUMBERS[self._noise.width][1]),
            np.zeros(BLOCK, np.int64),
            random_words(32, 1, BLOCK),
            np.zeros(BLOCK, np.float32),
            np.zeros(BLOCK, np.uint32),
            *halves,
        )
        return rows, out, note

    def _run(
        self, group: Group, start: int, stop: int, at: int, target: int, whole: Chunk | None, scratch: Any, note: Any
    ) -> None:
        rows, out, _ = scratch
        loop = logged_update_loop(group.dtype, self._noise.width, at != 0)
        data = (whole.data, whole.start) if whole else (out[:0], start)
        given = group.raw, group.pieces, self._draw, self._whole, self._rounding, data, out, rows
        loop(start, stop, *given, note)
