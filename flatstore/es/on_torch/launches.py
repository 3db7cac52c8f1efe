"""Launches of the kernels that move a store on a card."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from flatstore.es.on_torch.tables import Table, addresses_in, are_aligned, on_device
from flatstore.es.weights import FixedPoint, words
from flatstore.extras import require
from flatstore.kernels.triton import Planned
from flatstore.noise import Noise
from flatstore.store import OnTorch

MEMBERS = 65535
"""Members that a launch goes over: the second number of a program is no larger."""


class Launch:
    """Launches of kernels over the tables of a store. What fails is taken back, in all tables."""

    store: OnTorch
    noise: Noise
    tables: Sequence[Table]
    exact: bool

    def __init__(self, store: OnTorch, noise: Noise, tables: Sequence[Table], exact: bool) -> None:
        self.store, self.noise, self.tables, self.exact = store, noise, tables, exact
        self.failed: list[Table] = []
        """The tables in which something breaks the grid."""
        self._torch = require("torch", "torch")
        self._kernels = require("flatstore.kernels.triton.moves", "triton")

    def _all(self, plan: Callable[[Table, int, Any], Planned], back: ExitStack) -> None:
        """Launch `plan(table, how, done)` for each table. What takes all back is there before, and added to `back`."""
        checked = [table for table in self.tables if self.exact and table.is_gridded]
        unchecked = self._unchecked(plan, [table for table in self.tables if table not in checked])
        like = {"dtype": self._torch.uint8, "device": self.store.device}
        flags = [self._torch.zeros(len(table.programs), **like) for table in checked]
        launches = [plan(table, self._kernels.CHECKED, done) for table, done in zip(checked, flags, strict=True)]
        with ExitStack() as own:
            for launch in launches:
                own.callback(launch.but(how=self._kernels.WHERE_DONE).compiled())
            for launch in launches:
                launch()
            self.failed = [table for table, done in zip(checked, flags, strict=True) if not bool(done.all())]
            if self.failed:
                return
            back.push(own.pop_all())
        for launch in unchecked:  # they have no way back, so they come last
            launch()

    def _unchecked(self, plan: Callable[[Table, int, Any], Planned], tables: Sequence[Table]) -> Sequence[Planned]:
        return [plan(table, self._kernels.AT_ALL, table.programs).compiled() for table in tables]

    def perturb_all(self, key: Any, times: int, back: ExitStack) -> None:
        """Add the noise of a seed so many times, and its way back to `back`; what fails is taken back, and noted."""
        self._all(lambda table, how, done: self.perturb(table, key, times, how, done), back)

    def update_all(self, keys: Any, fixed: FixedPoint, times: int, back: ExitStack) -> None:
        """Add the weighted noise of some seeds, as `perturb_all` does."""
        self._all(lambda table, how, done: self.update(table, keys, fixed, times, how, done), back)

    def perturbing(self, key: Any, times: int) -> Sequence[Planned]:
        """Launches that add the noise of a seed so many times, unchecked."""
        return self._unchecked(lambda table, how, done: self.perturb(table, key, times, how, done), self.tables)

    def updating(self, keys: Any, fixed: FixedPoint, times: int) -> Sequence[Planned]:
        """Launches that add the weighted noise of some seeds, unchecked."""
        return self._unchecked(lambda table, how, done: self.update(table, keys, fixed, times, how, done), self.tables)

    def _on(self, array: Any) -> Any:
        return on_device(self.store, array)

    def _settings(self, unit: float, table: Table) -> Any:
        dtype = table.leaves[0].dtype
        size = self.noise.grid(dtype) if table.is_gridded else 1.0
        return self._on(np.array([unit, size, 1 / size, self.noise.bound]))

    def _common(self, table: Table) -> dict[str, Any]:
        kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
        constants = {"kind": self.noise.kind, "width": self.noise.width, "dtype": kinds[table.dtype]}
        return constants | table.launch

    def perturb(self, table: Table, key: Any, times: int, how: int, done: Any) -> Planned:
        """A launch that adds the noise of a seed so many times."""
        seed, settings = self._on(key.astype(np.int64)), self._settings(times * self.noise.step, table)
        given = table.rows, table.programs, done, seed, settings
        return Planned(self._kernels.perturb, (len(table.programs),), given, {"how": how} | self._common(table))

    def update(self, table: Table, keys: Any, fixed: FixedPoint, times: int, how: int, done: Any) -> Planned:
        """A launch that adds the weighted noise of some seeds."""
        dtype = table.leaves[0].dtype
        gridded = self.exact and table.is_gridded
        finer = round(math.log2(self.noise.step / self.noise.grid(dtype))) if gridded else 0
        drop = max(0, fixed.point - finer) if gridded else 0
        given = (
            table.rows,
            table.programs,
            done,
            self._on(keys.astype(np.int64).reshape(-1, 2)),
            self._on(fixed.whole),
            self._on(np.array([len(fixed.whole), drop])),
            self._on(words(fixed.key).astype(np.int64)),
            self._settings(times * self.noise.step * 2.0 ** (drop - fixed.point), table),
        )
        constants = {"how": how, "gridded": gridded} | self._common(table)
        return Planned(self._kernels.update, (len(table.programs),), given, constants)

    def sampling(self, centre: OnTorch, keys: Any, signs: Any) -> Sequence[Planned]:
        """Launches that write the centre plus noise into each member."""
        return [launch for table in self.tables for launch in self._sampling(table, centre, keys, signs)]

    def _sampling(self, table: Table, centre: OnTorch, keys: Any, signs: Any) -> Iterator[Planned]:
        addresses = addresses_in(centre, table)
        constants = self._common(table) | {"whole": table.is_fast and are_aligned(addresses)}
        centres, seeds = self._on(addresses), self._on(keys.astype(np.int64))
        signed, settings = self._on(signs.astype(np.float64)), self._settings(self.noise.step, table)
        for since in range(0, len(signs), MEMBERS):
            programs = len(table.programs), min(MEMBERS, len(signs) - since)
            given = table.rows, table.programs, centres, seeds, signed, settings, since
            yield Planned(self._kernels.sample, programs, given, constants).compiled()
