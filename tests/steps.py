"""What noise adds to parameters, in fractions of Python: an oracle for whole numbers and steps."""

from fractions import Fraction

import numpy as np

PARTS = 3686
"""How many whole numbers a standard deviation of normal noise has."""


def odd_multiplier(ratio):
    """An odd number of 16 bits and a power of two whose quotient is next to a ratio."""
    shift = 0
    while ratio * 2**shift < 2**15:
        shift += 1
    return int(ratio * 2**shift) | 1, 2**shift


def normal_steps(scale, step, whole):
    """The steps that normal noise adds where its draws are `whole`: the nearest to (whole + 1/2) * ratio, int64."""
    over, under = odd_multiplier(Fraction(scale) / Fraction(step) / PARTS)
    return np.array([((2 * w + 1) * over + under) // (2 * under) for w in whole.tolist()], np.int64)
