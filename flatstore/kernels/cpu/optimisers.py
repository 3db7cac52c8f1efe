"""Optimisers in compiled loops: a store and its state, moved together, each number read once and written once.

A rule is plain arithmetic in a fixed order on one number of each. So the bits do not depend on threads or blocks, and
are those of the same arithmetic in NumPy. 16-bit numbers are computed with in float32, and rounded at random when they
are stored: what is far below the last bit of a number is not lost in the mean.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import blocks_of
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.storage import BITS, DITHERED, STORAGE
from flatstore.noise import ROUNDING


@compiled
def adam(x: Any, gradient: Any, mean: Any, square: Any, how: Any) -> Any:
    """The new (x, mean, square); `how` is (rate, unbias, epsilon, beta1, 1 - beta1, beta2, 1 - beta2).

    The rate makes up for the mean's bias already, `unbias` for the square's.
    """
    rate, unbias, epsilon, beta1, rest1, beta2, rest2 = how
    mean = beta1 * mean + rest1 * gradient
    square = beta2 * square + rest2 * (gradient * gradient)
    return x + rate * mean / (np.sqrt(unbias * square) + epsilon), mean, square


@compiled
def momentum(x: Any, gradient: Any, velocity: Any, unused: Any, how: Any) -> Any:
    """The new (x, velocity); `how` is (rate, beta)."""
    rate, beta = how
    velocity = beta * velocity + gradient
    return x + rate * velocity, velocity, unused


@cache
def optimiser_loop(rule: Any, states: int, dtype: str) -> Any:
    """The compiled loop of a rule with one state or two."""
    stored, real, load, _ = STORAGE[dtype]
    narrow, two, rounded = stored is not real, states == 2, DITHERED[dtype]

    @compiled
    def optimise(begin: int, end: int, width: int, pieces: Any, raws: Any, how: Any, keys: Any, words: Any) -> None:
        """Move the parameters begin .. end - 1; places in `pieces` and `raws` are store, gradient, state, state."""
        to, slope, one, other = raws
        for start in range(begin, end, width):
            stop, k, first = min(start + width, end), first_run(pieces, start), 0
            if narrow:
                first = blocks_of(ROUNDING, 32, keys, start, stop - start, words)
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                skip, ahead = low - pieces[k, 0], first + low - start
                x, g, a, b = pieces[k, 3] + skip, pieces[k, 5] + skip, pieces[k, 7] + skip, pieces[k, 9] + skip
                for i in range(high - low):
                    new, state, another = rule(
                        real(load(to[np.uint64(x + i)])),
                        real(load(slope[np.uint64(g + i)])),
                        real(load(one[np.uint64(a + i)])),
                        real(load(other[np.uint64(b + i)])),
                        how,
                    )
                    to[np.uint64(x + i)] = rounded(new, words[0, np.uint64(ahead + i)])
                    one[np.uint64(a + i)] = rounded(state, words[1, np.uint64(ahead + i)])
                    if two:
                        other[np.uint64(b + i)] = rounded(another, words[2, np.uint64(ahead + i)])
                k += 1

    return optimise


@cache
def finite(dtype: str) -> Any:
    """The compiled check that all numbers are finite."""
    _, real, load, _ = STORAGE[dtype]
    bits = BITS[real]
    magnitude, infinity = bits(np.iinfo(bits).max), bits(real(np.inf).view(bits))

    @compiled
    def are_finite(begin: int, end: int, raw: Any, pieces: Any) -> Any:
        """Look at the parameters begin .. end - 1. As integers: from infinity on the difference is negative."""
        found, k = bits(0), first_run(pieces, begin)
        while k < pieces.shape[0] and pieces[k, 0] < end:
            low, high = max(begin, pieces[k, 0]), min(end, pieces[k, 1])
            place = pieces[k, 3] + low - pieces[k, 0]
            for i in range(high - low):
                number = real(load(raw[np.uint64(place + i)])).view(bits) & magnitude
                found = bits(found | bits(infinity - bits(1) - number))
            k += 1
        return found >= 0

    return are_finite
