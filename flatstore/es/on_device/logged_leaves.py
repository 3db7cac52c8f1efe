"""The 16-bit leaves of a store on a device: moved with a log of what rounding lost, and taken back by it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from flatstore.es.on_device.looking import of_16_bits, refuse_not_finite
from flatstore.es.on_device.steps_back import steps_back
from flatstore.es.on_device.undo_log import (
    Change,
    Kind,
    Survey,
    added_again,
    checksum,
    moved,
    restored,
    room_for,
    survey,
)
from flatstore.es.undo_log import UndoLog
from flatstore.es.weights import words
from flatstore.layout import Leaf
from flatstore.noise import Noise
from flatstore.store import JaxStore


class LoggedLeaves:
    """The leaves of a store that have no grid."""

    def __init__(self, store: JaxStore, noise: Noise) -> None:
        """Raise `ValueError` for a leaf that is too large for a log."""
        self._store, self._noise = store, noise
        self._leaves = of_16_bits(store.layout, noise)
        for leaf in self._leaves:
            if leaf.size >= 1 << 31:
                raise ValueError(
                    f"{leaf.path!r}: expected fewer than 2**31 parameters, got {leaf.size}; "
                    "fix: split the leaf, or pass exact=False"
                )

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._leaves)

    @property
    def dtypes(self) -> list[str]:
        """Their dtypes."""
        return list(dict.fromkeys(leaf.dtype.name for leaf in self._leaves))

    def refuse_changed(self, undo: UndoLog) -> None:
        """Raise `ValueError` unless the leaves are as a log left them."""
        for leaf in self._leaves:
            log = undo.chunks[leaf.path, leaf.size]
            if not np.array_equal(checksum(self._store[leaf.path]), log.checksum):
                raise ValueError(
                    f"{leaf.path!r}: expected parameters as the undo log left them, got others; fix: take later moves "
                    "back first, and assign nothing in between"
                )

    def take_back(self, change: Change, undo: UndoLog) -> None:
        """Give all of them back by a log, or none."""
        with steps_back() as back:
            for leaf in self._leaves:
                self._replace(leaf, partial(restored, log=undo.chunks[leaf.path, leaf.size]), change)
                back.callback(self._replace, leaf, added_again, change)

    def add(self, change: Change, log: UndoLog) -> None:
        """Move them, and fill a log. Raises `ValueError`, with nothing written, unless they stay finite."""
        found = {leaf.path: survey(*self._arguments(leaf, change)) for leaf in self._leaves}
        for leaf in self._leaves:
            largest = found[leaf.path].largest
            with np.errstate(over="ignore"):
                is_finite = np.isfinite(np.float32(largest).astype(leaf.dtype))
            if not is_finite:
                refuse_not_finite(self._store, self._noise)
                raise ValueError(
                    f"{leaf.path!r}: expected parameters that stay finite in {leaf.dtype}, got a magnitude of "
                    f"{largest:.6g} after the move; fix: pass a noise of a smaller scale"
                )
        chunks: dict[tuple[str, int], Any] = {}
        with steps_back() as back:
            for leaf in self._leaves:
                self._replace(leaf, partial(self._moved, leaf, found[leaf.path], chunks), change)
                own = partial(restored, log=chunks[leaf.path, leaf.size])
                back.callback(self._replace, leaf, own, change)
        log.chunks |= chunks

    def _moved(
        self,
        leaf: Leaf,
        seen: Survey,
        chunks: dict[tuple[str, int], Any],
        kind: Kind,
        x: Any,
        index: Any,
        change: Change,
    ) -> Any:
        room, numbers = room_for(seen)
        x, chunks[leaf.path, leaf.size] = moved(kind, room, x, index, change, numbers)
        return x

    def add_again(self, change: Change) -> None:
        """Move them as they were moved before; the log of that takes them back."""
        for leaf in self._leaves:
            self._replace(leaf, added_again, change)

    def _replace(self, leaf: Leaf, function: Any, change: Change) -> None:
        def move(homes: Any) -> Any:
            kind, _, *rest = self._arguments(leaf, change)
            return {leaf.path: function(kind, homes[leaf.path], *rest)}

        self._store.replace(move)

    def _arguments(self, leaf: Leaf, change: Change) -> tuple[Kind, Any, Any, Change]:
        kind = Kind(self._noise, self._noise.scale_of(leaf.path), leaf.dtype.name)
        return kind, self._store[leaf.path], words([leaf.index])[0], change
