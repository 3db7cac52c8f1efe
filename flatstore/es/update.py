"""Moving a store along the noise of many seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.es.sample import SCRATCH
from flatstore.noise import Noise, as_keys
from flatstore.store import Store


def update(store: Store, noise: Noise, seeds: Any, weights: Any) -> None:
    """Add `sum_i weights[i] * noise(seeds[i])` to the trainable leaves, in place: what `sample` adds, weighted.

    The noise is made again from its seeds, block by block. The sum is taken in float64 and rounded once. It is a float
    sum: taking an update back does not give the same bits.

    Raises `ValueError` for a weight that is not finite or another number of them, `LentError` while lent. Nothing is
    written then.
    """
    keys, w = as_keys(seeds), np.asarray(weights, np.float64)
    if w.shape != keys.shape:
        raise ValueError(f"expected a weight for each seed, got shapes {w.shape} and {keys.shape}; fix: match them")
    if not np.isfinite(w).all():
        raise ValueError(f"expected finite weights, got {w[~np.isfinite(w)][:3]}; fix: centred_ranks are finite")
    noise.check_grid(store.layout)
    width = max(128, SCRATCH // max(1, len(keys)))
    rows = max(1, SCRATCH // width)
    with store.memory.writing():
        for leaf in store.layout.homes:
            if not leaf.trainable or not noise.scale_of(leaf.path):
                continue
            (values,) = store.columns(leaf)
            for start in range(0, leaf.size, width):
                stop = min(start + width, leaf.size)
                total = np.zeros(stop - start)
                for row in range(0, len(keys), rows):
                    total += w[row : row + rows] @ noise.delta(leaf, keys[row : row + rows], start, stop)
                values[start:stop] = values[start:stop] + total
