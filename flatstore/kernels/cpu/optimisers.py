"""Optimisers in compiled loops: a store and its state, moved together, each number read once and written once.

A rule is plain arithmetic in a fixed order on one number of each. So the bits do not depend on threads or blocks, and
are those of the same arithmetic in NumPy. 16-bit numbers are computed with in float32 and rounded at random when they
are stored, so that changes far below a number's last bit are not lost in the mean.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.storage import BITS, DITHERED, STORAGE
from flatstore.noise import ROUNDING


@compiled
def adam(x: Any, gradient: Any, mean: Any, square: Any, settings: Any) -> Any:
    """Return the new (x, mean, square). `settings` are (rate, unbias, epsilon, beta1, 1 - beta1, beta2, 1 - beta2).

    The rate already corrects the mean's bias; `unbias` corrects that of the square.
    """
    rate, unbias, epsilon, beta1, rest1, beta2, rest2 = settings
    mean = beta1 * mean + rest1 * gradient
    square = beta2 * square + rest2 * (gradient * gradient)
    return x + rate * mean / (np.sqrt(unbias * square) + epsilon), mean, square


@compiled
def momentum(x: Any, gradient: Any, velocity: Any, unused: Any, settings: Any) -> Any:
    """Return the new (x, velocity) and `unused` as it is. `settings` are (rate, beta)."""
    rate, beta = settings
    velocity = beta * velocity + gradient
    return x + rate * velocity, velocity, unused


@cache
def optimiser_loop(rule: Any, states: int, dtype: str) -> Any:
    """The compiled loop of a rule, such as `adam`, that has one state or two for each parameter."""
    stored, real, load, _ = STORAGE[dtype]
    narrow, two, rounded = stored is not real, states == 2, DITHERED[dtype]

    @compiled
    def optimise(
        begin: int, end: int, width: int, pieces: Any, raw: Any, settings: Any, keys: Any, words: Any, note: Any
    ) -> None:
        """Move the parameters begin .. end - 1; places in `pieces` and `raw` are store, gradient, state, state.

        `note[0]` becomes the index that was reached.
        """
        store, gradient, state, second_state = raw
        for start in range(begin, end, width):
            stop, k, first = min(start + width, end), first_run(pieces, start), 0
            if narrow:
                first = draw_words(ROUNDING, 32, keys, start, stop - start, words)
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                skip, word = low - pieces[k, 0], first + low - start
                x, g, a, b = pieces[k, 3] + skip, pieces[k, 5] + skip, pieces[k, 7] + skip, pieces[k, 9] + skip
                for i in range(high - low):
                    new_x, new_a, new_b = rule(
                        real(load(store[np.uint64(x + i)])),
                        real(load(gradient[np.uint64(g + i)])),
                        real(load(state[np.uint64(a + i)])),
                        real(load(second_state[np.uint64(b + i)])),
                        settings,
                    )
                    store[np.uint64(x + i)] = rounded(new_x, words[0, np.uint64(word + i)])
                    state[np.uint64(a + i)] = rounded(new_a, words[1, np.uint64(word + i)])
                    if two:
                        second_state[np.uint64(b + i)] = rounded(new_b, words[2, np.uint64(word + i)])
                k += 1
        note[0] = end

    return optimise


@cache
def finite_check(dtype: str) -> Any:
    """The compiled check that all numbers are finite."""
    _, real, load, _ = STORAGE[dtype]
    bits = BITS[real]
    magnitude, infinity = bits(np.iinfo(bits).max), bits(real(np.inf).view(bits))

    @compiled
    def are_finite(begin: int, end: int, raw: Any, pieces: Any) -> Any:
        """Return whether the parameters begin .. end - 1 are finite: as integers, magnitudes below infinity."""
        beyond, k = bits(0), first_run(pieces, begin)
        while k < pieces.shape[0] and pieces[k, 0] < end:
            low, high = max(begin, pieces[k, 0]), min(end, pieces[k, 1])
            place = pieces[k, 3] + low - pieces[k, 0]
            for i in range(high - low):
                number = real(load(raw[np.uint64(place + i)])).view(bits) & magnitude
                beyond = bits(beyond | bits(infinity - bits(1) - number))
            k += 1
        return beyond >= 0  # a magnitude from infinity on has made it negative

    return are_finite
