"""A normal number from 16 random bits, in whole numbers: the same on every processor, whatever it does to fractions.

With u a number of 16 bits in two's complement, about uniform, and p = u / 2**15, a normal number is p * R(t), where R
is smooth, and t = -log2(1 - p * p) the surprise at something as far out. All of it is arithmetic of 16 bits, which
processors do for 16 or 32 numbers at a time, and `high`, the upper half of a product:

```
square    2**30 - u * (u + 1), without its last six bits        1 - p * p, exact as a float32
t         the bits of that float32: exponent and fraction       log2, with a straight line between powers of two;
          less a cubic in the fraction                          to within 0.002. 12 bits behind the point
rate      a polynomial of t, by Horner's rule                   R(t)
normal    high(u | 1, rate)                                     p * R(t): one less for the opposite of u
```

The whole number w stands for (w + 1/2) / 3686, since all is rounded down. So -1 - u gives the opposite of u, and mean,
third and fifth moment are 0. The constants are those, of all that were tried, that bring the distribution nearest to
the normal one: its function is within 1.2e-4 of that, the variance is 0.9999998, the fourth moment 3.0000, the sixth
14.9935. The numbers are 2.7e-4 apart; the largest is 4.396.

This is the readable version; `flatstore/kernels/cpu/normal.py` and `flatstore/noise/in_jax.py` give the same bits.

Source: the form p * R(t) is that of Giles, *Approximating the erfinv Function*, GPU Computing Gems 2, 2011.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.layout import Array

DEVIATION = 3686
"""The whole number that stands for a standard deviation of 1."""

MIDDLE = (127 + 30 << 12) - (15 << 11)
"""The bits of 2.0 ** 30 as float32 without the last 11, less 7.5: t is counted from the middle of 0 .. 15."""

BEND = 1390, 627
"""The cubic between powers of two: its constant and linear part, divided by fraction * (1 - fraction)."""

RATE = 22130, 24273, -10425, 2035, 20328
"""The polynomial R around the middle of the range of t, lowest power first."""


def high(a: Any, b: Any) -> Any:
    """The upper half of the product of two numbers of 16 bits, rounded down."""
    return (a * b) >> 16


def normals(numbers: Array) -> Array:
    """The normal numbers of numbers of 16 bits, times `DEVIATION` and less a half: int16. A copy.

    >>> normals(np.array([0, 1, 30000, 32767, 32768, 65535])).tolist()
    [-16204, -15081, -391, -1, 0, 16203]
    """
    u = np.asarray(numbers, np.int64) - 32768
    square = ((1 << 30) - u * (u + 1)) & -64
    t = MIDDLE - (square.astype(np.float32).view(np.int32).astype(np.int64) >> 11)
    middle = ((t & 4095) ^ 2048) - 2048 << 4  # the fraction, less a half
    t -= high(16384 - high(middle, middle), BEND[0] + high(middle, BEND[1]))
    rate = RATE[-1]
    for constant in RATE[-2::-1]:
        rate = constant + high(rate, t)
    return high(u | 1, rate).astype(np.int16)
