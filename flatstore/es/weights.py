"""Weights as whole numbers, so that a weighted sum of noise is the same in any order and on every backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from flatstore.kernels.cpu import xor_of_blocks
from flatstore.layout import Array
from flatstore.noise import ROUNDING, Noise, as_keys


class FixedPoint(NamedTuple):
    """Weights in fixed point: `whole * 2 ** -point`.

    The largest has 30 bits, and the sum of `whole` times numbers of steps (at most 2 ** 24) stays below 2 ** 62.
    """

    whole: Array
    """Shape (n,), int32."""
    point: int
    key: Array
    """The Philox key of the rounding of their sum, shape (1,), uint64: a hash of seeds, weights and their order."""


class WeightedSeeds(NamedTuple):
    """Seeds and their weights as whole numbers, in the dtypes that JAX has: what `es.updated` takes. A pytree."""

    seeds: Array
    """Shape (n, 2), uint32: low and high words."""
    whole: Array
    """The weights times `2 ** point`, shape (n,), int32."""
    point: Array
    """Shape (), int32."""
    key: Array
    """The words of the key of the rounding, shape (2,), uint32."""


def weighted_seeds(noise: Noise, seeds: Any, weights: Any) -> WeightedSeeds:
    """Seeds and a weight for each, made on the host for `es.updated` inside `jit`.

    Weights are rounded to 30 bits of the largest here, in float64, as `es.update` does; so only integers travel, and
    other weights compile nothing anew. Takes a few microseconds a seed.

    >>> import flatstore as fs
    >>> weighted_seeds(fs.Normal(0.02), fs.seeds(1, 2), [0.5, -0.25]).whole.tolist()
    [536870912, -268435456]

    Raises `ValueError` for what is no seed, or no finite weight for each.
    """
    keys, fixed = fixed_point(noise, seeds, weights)
    return WeightedSeeds(words(keys), fixed.whole, np.asarray(fixed.point, np.int32), words(fixed.key)[0])


def words(seeds: Any) -> Array:
    """Seeds as JAX can hold them: low and high words, shape (n, 2), uint32. A copy.

    >>> words([7, 2**40 + 1]).tolist()
    [[7, 0], [1, 256]]

    Raises `ValueError` for what is no vector of seeds.
    """
    keys = as_keys(seeds)
    return np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)], axis=1).astype(np.uint32)


def fixed_point(noise: Noise, seeds: Any, weights: Any) -> tuple[Array, FixedPoint]:
    """Seeds as keys, and their weights in fixed point. Raises `ValueError` for what is no weight for each seed."""
    keys, values = as_keys(seeds), np.asarray(weights)
    if values.shape != keys.shape or values.dtype.kind not in "fiu":
        raise ValueError(
            f"expected a weight for each seed, a real vector of shape {keys.shape}, got {values.dtype} of shape "
            f"{values.shape}; fix: match them"
        )
    w = values.astype(np.float64)
    if not np.isfinite(w).all():
        raise ValueError(f"expected finite weights, got {w[~np.isfinite(w)][:3]}; fix: centred_ranks are finite")
    with np.errstate(over="ignore"):
        largest, total = float(np.abs(w).max(initial=0)), float(np.abs(w).sum())
    if total > 2.0**64:
        raise ValueError(f"expected weights whose magnitudes sum to 2 ** 64 at most, got {total:.3g}; fix: scale them")
    # Down to a unit of 2 ** -120, so that no backend flushes what is left to zero.
    finest = min(62, 120 + round(math.log2(noise.step)))
    point = min(30 - math.frexp(largest)[1], 37 - math.frexp(total)[1], finest)
    whole = np.rint(np.ldexp(w, point)).astype(np.int32)
    return keys, FixedPoint(whole, point, _key(keys, whole, point))


def _key(keys: Array, whole: Array, point: int) -> Array:
    """The XOR of a block of random words for each seed: its counter is the seed, the weight, and the number of it."""
    counters = np.empty((len(keys), 4), np.uint32)
    counters[:, 0], counters[:, 1] = keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)
    counters[:, 2], counters[:, 3] = whole.view(np.uint32), np.arange(len(keys))
    key = np.uint64((point & 0xFFFFFFFF) | ROUNDING << 32)
    return np.array([xor_of_blocks(counters, key)], np.uint64)
