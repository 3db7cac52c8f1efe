"""Seeds: hashed from integers, and as the keys of Philox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatstore.layout import Array, as_array

Seed = int | Sequence[int]


def seeds(seed: Seed, n: int) -> Array:
    """`n` seeds of 64 bits made from one, shape (n,), uint64: hashed by NumPy's `SeedSequence`.

    Different integers, or different tuples of them, are hashed from different words: 7, (7, 0) and (0, 7) differ.

    >>> seeds((1, 2), 2).tolist() == seeds((1, 2), 3)[:2].tolist()
    True

    Raises `ValueError` unless `seed` is a non-negative integer, or a sequence of them.
    """
    parts: Any = seed
    entropy: list[Any] = [parts] if np.ndim(parts) == 0 else list(parts)
    if not entropy or any(isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < 0 for x in entropy):
        raise ValueError(
            f"expected a seed of non-negative integers, got {seed}; fix: pass 7, say, or (run, generation)"
        )
    # NumPy pads with zeros and splits large integers: the counts tell apart what would then be the same words.
    counted = [len(entropy)]
    for part in map(int, entropy):
        counted += [-(-part.bit_length() // 32) or 1, part]
    return np.random.SeedSequence(counted).generate_state(n, np.uint64)


def as_keys(seeds: Any) -> Array:
    """Seeds as Philox keys, shape (n,), uint64.

    Raises `ValueError` unless `seeds` is a one-dimensional array of integers in 0 .. 2**64 - 1, `TypeError` for a mask.
    """
    # NumPy alone makes floats of a list with 1 and 2**63.
    plain = type(seeds) in (list, tuple) and all(type(seed) is int and 0 <= seed < 1 << 64 for seed in seeds)
    keys = np.array(seeds, np.uint64) if plain else as_array(seeds, "seeds")
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or (keys.dtype.kind == "i" and (keys < 0).any()):
        raise ValueError(
            f"expected a vector of seeds in 0 .. 2**64 - 1, got {keys.dtype} of shape {keys.shape}; "
            "fix: pass fs.seeds(7, n)"
        )
    return keys.astype(np.uint64)
