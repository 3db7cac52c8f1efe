"""Optimisers on a card: the store and the states of a rule moved along a gradient, one launch for a dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatstore.es.on_torch.tables import TILE, Table, addresses_in, on_device, trained_tables
from flatstore.es.weights import words
from flatstore.extras import require
from flatstore.kernels.cpu import STORAGE, adam
from flatstore.layout import Array
from flatstore.store import TorchStore


def move_by_rule(rule: Any, stores: Sequence[TorchStore], settings: Sequence[float], keys: Array) -> None:
    """Move a store along a gradient; `stores` are these two, and the states of the rule."""
    kernels = require("flatstore.kernels.triton.optimisers", "triton")
    kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
    store, gradient, *states = stores
    rounding = on_device(store, words(keys).astype(np.int64))

    def launch(table: Table) -> None:
        real = STORAGE[table.dtype][1]
        columns = [addresses_in(x, table) for x in (gradient, states[0], states[-1])]
        kernels.step[(len(table.programs),)](
            table.rows,
            table.programs,
            on_device(store, np.stack(columns, 1)),
            on_device(store, np.array(settings, real).astype(np.float64)),
            rounding,
            rule=kernels.ADAM if rule is adam else kernels.MOMENTUM,
            dtype=kinds[table.dtype],
            tile=TILE,
            enable_fp_fusion=False,
        )

    for table in trained_tables(store):
        launch(table)
