"""Weights as whole numbers, so that a weighted sum of noise is the same in any order and on every backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from flatstore.kernels.cpu import xor_of_blocks
from flatstore.layout import Array, as_array
from flatstore.noise import ROUNDING, Noise, as_keys
from flatstore.threads import rounded_to_nearest


class FixedPoint(NamedTuple):
    """Weights in fixed point: `whole * 2 ** -point`.

    The largest has 30 bits, and the sum of `whole` times numbers of steps (at most 2 ** 24) stays below 2 ** 62.
    """

    whole: Array
    """Shape (n,), int32."""
    point: int
    key: Array
    """The Philox key for the rounding of their sum, shape (1,), uint64: a hash of seeds, weights and their order."""


class WeightedSeeds(NamedTuple):
    """Seeds and their weights as whole numbers, in dtypes that JAX has: a pytree, the argument of `es.updated`."""

    seeds: Array
    """Shape (n, 2), uint32: low and high words."""
    whole: Array
    """The weights times `2 ** point`, shape (n,), int32."""
    point: Array
    """Shape (), int32."""
    key: Array
    """The two words of the key for the rounding, shape (2,), uint32."""


def weighted_seeds(noise: Noise, seeds: Any, weights: Any) -> WeightedSeeds:
    """Seeds and a weight for each, made on the host for `es.updated` inside `jit`.

    As in `es.update`, weights are rounded to 30 bits of the largest, in float64. So only integers are passed to the
    compiled function, and other weights do not compile it again. It takes a few microseconds per seed.

    >>> import flatstore as fs
    >>> weighted_seeds(fs.Normal(0.02), fs.seeds(1, 2), [0.5, -0.25]).whole.tolist()
    [536870912, -268435456]

    Raises `ValueError` unless `seeds` is a one-dimensional array of non-negative integers, with a finite weight for
    each.
    """
    keys, fixed = fixed_point(noise, seeds, weights)
    return WeightedSeeds(words(keys), fixed.whole, np.asarray(fixed.point, np.int32), words(fixed.key)[0])


def words(seeds: Any) -> Array:
    """Seeds in a dtype that JAX has: low and high words, shape (n, 2), uint32. A copy.

    >>> words([7, 2**40 + 1]).tolist()
    [[7, 0], [1, 256]]

    Raises `ValueError` unless `seeds` is a one-dimensional array of non-negative integers.
    """
    keys = as_keys(seeds)
    return np.stack([keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)], axis=1).astype(np.uint32)


def fixed_point(noise: Noise, seeds: Any, weights: Any) -> tuple[Array, FixedPoint]:
    """Seeds as keys and their weights in fixed point.

    Raises `ValueError` unless there is a finite weight for each, `TypeError` for a mask.
    """
    keys, values = as_keys(seeds), as_array(weights, "weights")
    return keys, _fixed_point(noise, keys, values)


@rounded_to_nearest
def _fixed_point(noise: Noise, keys: Array, values: Array) -> FixedPoint:
    if values.shape != keys.shape or values.dtype.kind not in "fiu":
        raise ValueError(
            f"expected a weight for each seed, a real vector of shape {keys.shape}, got {values.dtype} of shape "
            f"{values.shape}; fix: pass a seed and a weight for each noise"
        )
    w = values.astype(np.float64)
    refuse_infinite(w)
    with np.errstate(over="ignore"):
        largest, total = float(np.abs(w).max(initial=0)), float(np.abs(w).sum())
    if total > 2.0**64:
        raise ValueError(
            f"expected weights whose magnitudes sum to 2 ** 64 at most, got {total:.3g}; fix: pass smaller ones"
        )
    # The unit is at least 2 ** -120, so that no backend flushes a small sum to zero.
    finest = min(62, 120 + round(math.log2(noise.step)))
    point = min(30 - math.frexp(largest)[1], 37 - math.frexp(total)[1], finest)
    whole = np.rint(np.ldexp(w, point)).astype(np.int32)
    return FixedPoint(whole, point, _key(keys, whole, point))


def refuse_infinite(weights: Array) -> None:
    """Raise `ValueError` unless all weights are finite."""
    odd = weights[~np.isfinite(weights)]
    if odd.size:
        raise ValueError(f"expected finite weights, got {odd[:3]}; fix: pass finite ones, such as centred_ranks gives")


def _key(keys: Array, whole: Array, point: int) -> Array:
    """The XOR of one block of random words per seed; the counter of a block is the seed, its weight and its number."""
    counters = np.empty((len(keys), 4), np.uint32)
    counters[:, 0], counters[:, 1] = keys & np.uint64(0xFFFFFFFF), keys >> np.uint64(32)
    counters[:, 2], counters[:, 3] = whole.view(np.uint32), np.arange(len(keys))
    key = np.uint64((point & 0xFFFFFFFF) | ROUNDING << 32)
    return np.array([xor_of_blocks(counters, key)], np.uint64)
