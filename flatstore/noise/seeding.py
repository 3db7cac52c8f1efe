"""Seeds: hashed from integers, and as the keys of Philox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.layout import Array, as_array
from flatstore.threads import refuse_waiting_at_the_end

Seed = int | Sequence[int]


def seeds(seed: Seed, n: int) -> Array:
    """`n` seeds of 64 bits made from one, shape (n,), uint64: hashed by NumPy's `SeedSequence`.

    Different integers, or different tuples of them, are hashed from different words: 7, (7, 0) and (0, 7) differ.

    >>> seeds((1, 2), 2).tolist() == seeds((1, 2), 3)[:2].tolist()
    True

    Raises `ValueError` unless `seed` is a non-negative integer, or a sequence of them, and `n` a number of seeds.
    """
    entropy = integers_of(seed)
    if not whole(n) >= 0:
        raise ValueError(f"expected a number of seeds, 0 or more, got {n!r}; fix: pass a count, such as pop.size")
    # NumPy pads with zeros and splits large integers: the counts tell apart what would then be the same words.
    counted = [len(entropy)]
    for part in entropy:
        counted += [-(-part.bit_length() // 32) or 1, part]
    return np.random.SeedSequence(counted).generate_state(n, np.uint64)


def integers_of(seed: Seed) -> list[int]:
    """The integers of a seed, one or several. Raises `ValueError` unless all are non-negative integers."""
    parts: Any = seed
    entropy: list[Any] = [parts] if np.ndim(parts) == 0 else list(parts)
    if not entropy or not all(whole(x) >= 0 for x in entropy):
        raise ValueError(
            f"expected a seed of non-negative integers, got {seed}; fix: pass 7, say, or (run, generation)"
        )
    return list(map(int, entropy))


def as_keys(seeds: Any) -> Array:
    """Seeds as Philox keys, shape (n,), uint64.

    Raises `ValueError` unless `seeds` is a one-dimensional array of integers in 0 .. 2**64 - 1, `TypeError` for a mask.
    """
    refuse_waiting_at_the_end()
    is_list = type(seeds) in (list, tuple)
    odd = [seed for seed in seeds if not 0 <= whole(seed) < 1 << 64] if is_list else []
    # NumPy alone makes floats of a list with 1 and 2**63.
    keys = np.array(list(map(int, seeds)), np.uint64) if is_list and not odd else as_array(seeds, "seeds")
    if odd or keys.ndim != 1 or keys.dtype.kind not in "iu" or (keys.dtype.kind == "i" and (keys < 0).any()):
        among = f", with {odd[0]!r} in it" if odd else ""
        raise ValueError(
            f"expected a vector of seeds in 0 .. 2**64 - 1, got {keys.dtype} of shape {keys.shape}{among}; "
            "fix: pass fs.seeds(7, n)"
        )
    return keys.astype(np.uint64)
