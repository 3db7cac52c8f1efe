"""Moves of 16-bit leaves on a card that keep what rounding loses: their undo logs stay on the card, too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from flatstore.es.on_torch.launches import Launch
from flatstore.es.on_torch.looking import not_finite_after
from flatstore.es.on_torch.tables import Table, on_device
from flatstore.es.undo_log import UndoLog
from flatstore.es.weights import words
from flatstore.extras import require
from flatstore.kernels.cpu import TOO_LARGE_FOR
from flatstore.kernels.triton import Planned
from flatstore.layout import Array
from flatstore.noise import Noise
from flatstore.store import Parts, TorchStore

SHARE = 16
"""The part of the leaves' words that the first pool has: most logs are smaller."""


class _Part(NamedTuple):
    """The log of one table."""

    table: Table
    done: Any
    """What became of each tile, uint8."""
    headers: Any
    """As `flatstore/kernels/triton/logged_moves.py` describes, int64."""
    pools: list[Any]
    """The words, uint16."""


class CardLog(UndoLog):
    """An undo log on a card."""

    def __init__(self, store: TorchStore, noise: Noise, key: Array, at: int) -> None:
        super().__init__(store, noise, key, at, False)
        self.indices: Parts | None = store.parts
        self.parts: list[_Part] = []

    def keep(self, part: _Part) -> None:
        """Add the log of a table."""
        self.parts.append(part)
        for number, array in enumerate((part.done, part.headers, *part.pools)):
            self.chunks[part.table.name, number] = array

    def close(self) -> None:
        """Use it up."""
        super().close()
        self.parts.clear()


class LoggedMoves:
    """Moves of the 16-bit tables of a store by the noise of one seed, from where a log says that they are."""

    def __init__(self, store: TorchStore, noise: Noise, key: Array, tables: Sequence[Table]) -> None:
        self._store, self._noise, self._key, self._tables = store, noise, key, tables
        self._torch = require("torch", "torch")
        self._kernels = require("flatstore.kernels.triton.logged_moves", "triton")
        self._kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
        self._seed = on_device(store, words(key).astype(np.int64)) if tables else None

    def go(self, undo: CardLog | None, made: CardLog) -> None:
        """Go back to the centre by a log, if there is one, and to where a new one leads back from; or stay.

        Raises `ValueError` for parameters that would not be finite.
        """
        key, at = words(self._key), undo.at if undo else 0
        again = Launch(self._store, self._noise, self._tables, False).perturbing(key, at) if undo else ()
        for launch in self.taking_back(undo) if undo else ():
            launch()
        with ExitStack() as to_the_side:  # where the bits are the same as before, for which its log is right
            for launch in again:
                to_the_side.callback(launch)
            with ExitStack() as back:
                too_large = self._add(made, back) if made.at else []
                if not too_large:
                    back.pop_all()
            if too_large:
                raise not_finite_after(self._store, self._noise, self._key, made.at, too_large)
            to_the_side.pop_all()
        if undo:
            undo.close()

    def refuse_others(self, undo: CardLog) -> None:
        """Raise `ValueError` if the store is not as a log left it."""
        if undo.indices != self._store.parts:
            raise ValueError(
                "expected an undo log of this store, got one of other parts of a model; fix: pass the store it is of"
            )
        device = undo.parts[0].done.device if undo.parts else self._store.device
        if device != self._store.device:
            raise ValueError(
                f"expected an undo log on {self._store.device}, as the store, got one on {device}; "
                "fix: pass the store it is of"
            )
        for part in undo.parts:
            done = part.done.clone()
            table = self._table_of(part)
            self._kernels.check[(len(table.programs),)](table.rows, table.programs, done, part.headers, **table.launch)
            others = (done == self._kernels.OTHERS).nonzero()
            if len(others):
                leaf = table.stretches[int(table.programs[others[0, 0]])][0]
                raise ValueError(
                    f"{leaf.path!r}: expected parameters as the undo log left them, got others; fix: take later moves "
                    "back first, and write nothing in between"
                )

    def _table_of(self, part: _Part) -> Table:
        """The table of this store for the log of one, which may have been made of another store of the same layout."""
        return next(table for table in self._tables if table.name == part.table.name)

    def taking_back(self, undo: CardLog) -> Sequence[Planned]:
        """Launches that go back to the centre."""
        return [self._taking_back(part, undo.at) for part in undo.parts]

    def _taking_back(self, part: _Part, at: int) -> Planned:
        table = self._table_of(part)
        given = table.rows, table.programs, part.done, self._seed, self._step(at), part.headers
        return Planned(self._kernels.take_back, (len(table.programs),), given, self._constants(table)).compiled()

    def _add(self, made: CardLog, back: ExitStack) -> list[Table]:
        """Add the noise `made.at` times to the centre, and keep the log. Returns the tables that would not be finite.

        What takes back what was moved is there before, and added to `back`.
        """
        for table in self._tables:
            tiles = len(table.programs)
            words = sum(leaf.size for leaf in table.leaves)
            done = self._torch.zeros(tiles, dtype=self._torch.uint8, device=self._store.device)
            headers = self._torch.zeros((tiles, self._kernels.HEADER), dtype=self._torch.int64, device=done.device)
            part = _Part(table, done, headers, [])
            back.callback(self._taking_back(part, made.at))
            missing = words // SHARE + 1024
            while missing:
                missing = self._fill(part, missing, made.at)
            made.keep(part)
        return [part.table for part in made.parts if bool((part.done == self._kernels.TOO_LARGE).any())]

    def _fill(self, part: _Part, room: int, at: int) -> int:
        """Move the tiles of a table that were not moved, with a new pool of words; return how many were missing."""
        table, torch = part.table, self._torch
        pool = torch.empty(room, dtype=torch.uint16, device=part.done.device)
        part.pools.append(pool)
        counters = torch.zeros(2, dtype=torch.int64, device=part.done.device)
        waiting = part.done == self._kernels.WAITS
        self._kernels.add[(len(table.programs),)](
            table.rows,
            table.programs,
            part.done,
            self._seed,
            self._step(at),
            int(TOO_LARGE_FOR[table.dtype]),
            on_device(self._store, np.array([pool.data_ptr()])),
            room,
            part.headers,
            counters,
            **self._constants(table),
        )
        used, missing = counters.tolist()
        used -= missing
        if not missing and used < room * 7 // 8:  # what is not used is given back
            kept = pool[:used].clone()
            part.headers[:, 0] += waiting * (kept.data_ptr() - pool.data_ptr())
            part.pools[-1] = kept
        return missing

    def _step(self, at: int) -> Any:
        return on_device(self._store, np.array([at * self._noise.step]))

    def _constants(self, table: Table) -> dict[str, Any]:
        constants = {"kind": self._noise.kind, "width": self._noise.width, "dtype": self._kinds[table.dtype]}
        return constants | table.launch
