"""Launches of the kernels that move a store on a card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flatstore.es.on_torch.tables import TILE, Table, addresses_in, on_device
from flatstore.es.weights import FixedPoint, words
from flatstore.extras import require
from flatstore.noise import Noise
from flatstore.store import OnTorch

MEMBERS = 65535
"""Members that a launch goes over: the second number of a program is no larger."""


class Launch:
    """Launches of kernels over the tables of a store. What fails is taken back, in all tables."""

    def __init__(self, store: OnTorch, noise: Noise, tables: Sequence[Table], exact: bool) -> None:
        self.store, self.noise, self.tables, self.exact = store, noise, tables, exact
        self.failed: list[Table] = []
        """The tables in which something breaks the grid."""
        self._torch = require("torch", "torch")
        self._kernels = require("flatstore.kernels.triton.moves", "triton")

    def _all(self, kernel: Callable[[Table, int, int, Any], None]) -> None:
        """Launch `kernel(table, times, how, done)` for each table; if one fails, take all back."""
        checked = [table for table in self.tables if self.exact and table.is_gridded]
        unchecked = [table for table in self.tables if table not in checked]
        like = {"dtype": self._torch.uint8, "device": self.store.device}
        flags = [(table, self._torch.zeros(len(table.programs), **like)) for table in checked]
        try:
            for table, done in flags:
                kernel(table, 1, self._kernels.CHECKED, done)
        except BaseException:
            self._take_back(kernel, flags)
            raise
        self.failed = [table for table, done in flags if not bool(done.all())]
        if self.failed:
            self._take_back(kernel, flags)
            return
        for table in unchecked:  # they have no way back, so they come last
            kernel(table, 1, self._kernels.AT_ALL, table.programs)

    def _take_back(self, kernel: Callable[[Table, int, int, Any], None], flags: Sequence[tuple[Table, Any]]) -> None:
        for table, done in flags:
            if bool(done.any()):
                kernel(table, -1, self._kernels.WHERE_DONE, done)

    def perturb_all(self, key: Any, times: int) -> None:
        """Add the noise of a seed so many times; what fails is taken back, and noted."""
        self._all(lambda table, sign, how, done: self.perturb(table, key, times * sign, how, done))

    def update_all(self, keys: Any, fixed: FixedPoint, times: int) -> None:
        """Add the weighted noise of some seeds; what fails is taken back, and noted."""
        self._all(lambda table, sign, how, done: self.update(table, keys, fixed, times * sign, how, done))

    def _on(self, array: Any) -> Any:
        return on_device(self.store, array)

    def _settings(self, unit: float, table: Table) -> Any:
        dtype = table.leaves[0].dtype
        size = self.noise.grid(dtype) if table.is_gridded else 1.0
        return self._on(np.array([unit, size, 1 / size, self.noise.bound]))

    def _common(self, table: Table) -> dict[str, Any]:
        kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
        constants = {"kind": self.noise.kind, "width": self.noise.width, "dtype": kinds[table.dtype], "tile": TILE}
        return constants | {"enable_fp_fusion": False}

    def perturb(self, table: Table, key: Any, times: int, how: int, done: Any) -> None:
        """Add the noise of a seed so many times."""
        self._kernels.perturb[(len(table.programs),)](
            table.rows,
            table.programs,
            done,
            self._on(key.astype(np.int64)),
            self._settings(times * self.noise.step, table),
            how=how,
            **self._common(table),
        )

    def update(self, table: Table, keys: Any, fixed: FixedPoint, times: int, how: int, done: Any) -> None:
        """Add the weighted noise of some seeds."""
        dtype = table.leaves[0].dtype
        gridded = self.exact and table.is_gridded
        finer = round(math.log2(self.noise.step / self.noise.grid(dtype))) if gridded else 0
        drop = max(0, fixed.point - finer) if gridded else 0
        self._kernels.update[(len(table.programs),)](
            table.rows,
            table.programs,
            done,
            self._on(keys.astype(np.int64).reshape(-1, 2)),
            self._on(fixed.whole),
            self._on(np.array([len(fixed.whole), drop])),
            self._on(words(fixed.key).astype(np.int64)),
            self._settings(times * self.noise.step * 2.0 ** (drop - fixed.point), table),
            how=how,
            gridded=gridded,
            **self._common(table),
        )

    def sample(self, table: Table, centre: OnTorch, keys: Any, signs: Any) -> None:
        """Write the centre plus noise into each member."""
        centres, seeds = self._on(addresses_in(centre, table)), self._on(keys.astype(np.int64))
        signed, settings = self._on(signs.astype(np.float64)), self._settings(self.noise.step, table)
        for since in range(0, len(signs), MEMBERS):
            self._kernels.sample[(len(table.programs), min(MEMBERS, len(signs) - since))](
                table.rows, table.programs, centres, seeds, signed, settings, since, **self._common(table)
            )
