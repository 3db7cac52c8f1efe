"""Optimisers on a card: the store and the states of a rule moved along a gradient, table by table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatstore.es.on_torch.tables import Table, addresses_in, are_aligned, on_device, trained_tables
from flatstore.es.weights import words
from flatstore.extras import require
from flatstore.kernels.cpu import STORAGE, adam
from flatstore.kernels.triton import Planned
from flatstore.layout import Array
from flatstore.store import TorchStore


def move_by_rule(rule: Any, stores: Sequence[TorchStore], settings: Sequence[float], keys: Array) -> None:
    """Move a store along a gradient; `stores` are these two, and the states of the rule."""
    kernels = require("flatstore.kernels.triton.optimisers", "triton")
    kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
    store, gradient, *states = stores
    rounding = on_device(store, words(keys).astype(np.int64))

    def plan(table: Table) -> Planned:
        real = STORAGE[table.dtype][1]
        columns = np.stack([addresses_in(x, table) for x in (gradient, states[0], states[-1])], 1)
        given = (
            table.rows,
            table.programs,
            on_device(store, columns),
            on_device(store, np.array(settings, real).astype(np.float64)),
            rounding,
        )
        constants = {"rule": kernels.ADAM if rule is adam else kernels.MOMENTUM, "dtype": kinds[table.dtype]}
        constants |= table.launch | {"whole": table.is_fast and are_aligned(columns)}
        return Planned(kernels.step, (len(table.programs),), given, constants).compiled()

    for launch in [plan(table) for table in trained_tables(store)]:
        launch()
