"""Moving a store along the noise of many seeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.es.sample import SCRATCH
from flatstore.noise import Noise
from flatstore.store import Store


def update(store: Store, noise: Noise, seeds: Any, weights: Any) -> None:
    """Add `sum_i weights[i] * noise(seeds[i])` to the trainable leaves, in place: what `sample` added, weighted.

    The noise is made again from its seeds, block by block. The sum is taken in float64 and rounded once.

    Raises `ValueError` for a weight that is not finite or another number of them, `LentError` while lent. Nothing is
    written then.
    """
    keys, w = np.asarray(seeds, np.uint64), np.asarray(weights, np.float64)
    if keys.ndim != 1 or w.shape != keys.shape:
        raise ValueError(f"expected a weight for each seed, got shapes {w.shape} and {keys.shape}; fix: match them")
    if not np.isfinite(w).all():
        raise ValueError(f"expected finite weights, got {w[~np.isfinite(w)][:3]}; fix: centred_ranks are finite")
    noise.check(store.layout)
    with store.memory.writing():
        for leaf in store.layout.homes:
            scale = noise.scale_of(leaf.path) if leaf.trainable else 0.0
            if not scale:
                continue
            values = store.writable(leaf)
            width = max(1, SCRATCH // max(1, len(keys)))
            for start in range(0, leaf.size, width):
                part = values[start : start + width]
                first = leaf.index + start
                part += (scale * (w @ noise.draw(keys, first, first + len(part)))).astype(leaf.dtype)
