"""Noise: a pure function of (kind, seed, index).

The random words of a draw belong to the parameter's index (see `flatstore/noise/philox.py`). So a part of a population
draws what the whole would have drawn there, whatever the blocks, the order or the alignment.

```
normal    eight numbers of 16 bits to a block of words: parameter i takes number i % 8 of block i // 8
sign      128 numbers of one bit: parameter i takes bit i % 128 of block i // 128
```

A number of one bit is a sign, 1 for minus; one of 16 bits becomes a normal number (see `flatstore/noise/normal.py`).
Either is a *whole* number, and a half more is the draw, in parts of its standard deviation: signs are 0 and -1.

**The grid.** What an evolution strategy adds to a parameter is a multiple of a power of two, the noise's *step*, and so
is every parameter once `es.snap` has rounded it to its dtype's *grid*. While no parameter reaches the noise's `bound`,
sums are such numbers, too: they are exact, and so is taking them back.

```
step      bound (rounded up to a power of two) * 2 ** -24
factor    scale / (step * parts) as multiplier * 2 ** -shift
delta     step * round((whole + 1/2) * factor)                    what is added, in integers of 32 bits
grid      multiples of step in float32; of bound * 2 ** -53 in float64; 16-bit leaves have none
```

An exact addition is left, which no compiler can turn into another result. Half a multiplier is odd, of 16 bits: so no
product lies half-way between two steps, and the opposite draw adds just the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from flatstore.checks import real
from flatstore.layout import Array, Layout, Leaf, is_floating
from flatstore.noise.normal import DEVIATION, normals
from flatstore.noise.philox import numbers
from flatstore.trees import matcher, refuse_idle_glob

NORMAL, RADEMACHER, CROSSOVER, SPARSE, ROUNDING, MUTATION = range(6)
"""The kinds of draw. Each has a stream of random words of its own."""

_SIGNS = np.array([0, -1], np.int16)
_SIGNS.flags.writeable = False


class Factor(NamedTuple):
    """What turns whole numbers into steps: `(whole * multiplier + offset) >> shift`, within 32 bits."""

    multiplier: int
    offset: int
    """Half a multiplier, and half of what is shifted out."""
    shift: int

    def steps(self, whole: Array) -> Array:
        """The number of steps that each whole number adds: int32, a copy."""
        return (whole.astype(np.int64) * self.multiplier + self.offset >> self.shift).astype(np.int32)


@dataclass(frozen=True)
class Noise:
    """A distribution of variance 1, and its standard deviation for each leaf: one number, or one for each glob.

    The first glob that matches a leaf counts, and a leaf of scale 0 is not touched. Raises `ValueError` unless the
    scales are finite, not negative and not all zero, and the bound lies in 2 ** -64 .. 2 ** 64.
    """

    scale: float | Mapping[str, float] | tuple[tuple[str, float], ...]

    bound: float = 32.0
    """The magnitude that no parameter may reach, so that `es` can undo exactly; the grid follows from it."""

    kind: ClassVar[int]
    """The kind of draw, which names the stream of random words."""
    width: ClassVar[int]
    """The number of bits of a draw."""

    def __post_init__(self) -> None:
        """Check the numbers, and freeze a mapping of scales as (glob, number) pairs: their order counts."""
        rules = self.scale.items() if isinstance(self.scale, Mapping) else self.rules
        pairs = tuple((glob, real(value)) for glob, value in rules)
        if not all(0 <= value < math.inf for _, value in pairs) or not any(value for _, value in pairs):
            raise ValueError(
                f"expected a scale > 0 (0 for leaves to leave alone), got {self.scale}; "
                "fix: pass a positive standard deviation, such as fs.Normal(0.02)"
            )
        object.__setattr__(self, "scale", pairs if isinstance(self.scale, (Mapping, tuple)) else pairs[0][1])
        if not 2.0**-64 <= real(self.bound) <= 2.0**64:
            raise ValueError(
                f"expected a bound in 2 ** -64 .. 2 ** 64, got {self.bound}; fix: pass 32, which suits most networks"
            )
        object.__setattr__(self, "bound", real(self.bound))

    @cached_property
    def step(self) -> float:
        """The power of two of which everything that is added is a multiple.

        >>> Normal(0.02).step == 2.0**-19
        True
        """
        return self.grid(np.float32)

    def grid(self, dtype: Any) -> float:
        """The power of two of which every snapped parameter of a dtype, float32 or float64, is a multiple."""
        fraction, exponent = math.frexp(self.bound)
        return math.ldexp(1.0, exponent - (fraction == 0.5) - (53 if np.dtype(dtype) == np.float64 else 24))

    @property
    def rules(self) -> tuple[tuple[str, float], ...]:
        """The pairs (glob, scale), in order."""
        if isinstance(self.scale, tuple):
            return self.scale
        return tuple(self.scale.items()) if isinstance(self.scale, Mapping) else (("*", self.scale),)

    def scale_of(self, path: str) -> float:
        """The standard deviation for the leaf at `path`. Raises `ValueError` if no glob matches."""
        for glob, value in self.rules:
            if matcher(glob)(path):
                return float(value)
        raise ValueError(
            f"expected a scale for every leaf, got none for {path!r}; fix: add a glob that matches it, such as '*'"
        )

    def check(self, layout: Layout) -> None:
        """Raise `ValueError` unless globs and trainable leaves match each other, and these leaves are floating."""
        leaves = [leaf for leaf in layout.homes if leaf.trainable]
        for glob, _ in self.rules:
            refuse_idle_glob("scale", glob, [leaf.path for leaf in leaves])
        if leaves and not any(self.scale_of(leaf.path) for leaf in leaves):
            raise ValueError(
                f"expected a scale > 0 for some leaf, got 0 for all by the first glob that matches of {self.scale}; "
                "fix: put '*' last"
            )
        for leaf in leaves:
            if self.scale_of(leaf.path) and not is_floating(leaf.dtype):
                raise ValueError(
                    f"{leaf.path!r}: expected a floating leaf to add noise to, got {leaf.spec}; "
                    "fix: give it the scale 0, or leave it out of trainable="
                )

    parts: ClassVar[float]
    """How many whole numbers a standard deviation of 1 has."""

    @property
    def whole(self) -> Array:
        """The whole numbers that a draw can be, all equally likely: shape (2 ** width,), int16, read-only."""
        raise NotImplementedError

    @property
    def values(self) -> Array:
        """The values that a draw can take, all equally likely: shape (2 ** width,), float32, a copy."""
        return (self.whole + np.float32(0.5)) / np.float32(self.parts)

    def draw(self, keys: Array, start: int, stop: int) -> Array:
        """The draws for each seed of `keys` and each index in start .. stop - 1, not yet multiplied by the scale.

        Shape (len(keys), stop - start), float32.
        """
        return self.values.take(numbers(self.kind, self.width, keys, start, stop))

    @property
    def largest(self) -> float:
        """The largest magnitude of a draw."""
        return float(self.whole.max() + 0.5) / self.parts

    def factor(self, scale: float) -> Factor:
        """What turns whole numbers into steps at a scale."""
        return _factor(Fraction(scale) / Fraction(self.step) / int(self.parts))

    def multiples(self, leaf: Leaf, keys: Array, start: int, stop: int) -> Array:
        """The number of steps that are added for each seed to the elements start .. stop - 1 of a leaf.

        Shape (len(keys), stop - start), int32.
        """
        places = numbers(self.kind, self.width, keys, leaf.index + start, leaf.index + stop)
        return self.factor(self.scale_of(leaf.path)).steps(self.whole).take(places)

    def delta(self, leaf: Leaf, keys: Array, start: int, stop: int) -> Array:
        """What is added for each seed to the elements start .. stop - 1 of a leaf: float32, a row per seed."""
        return self.multiples(leaf, keys, start, stop).astype(np.float32) * np.float32(self.step)

    def check_grid(self, layout: Layout) -> None:
        """Raise `ValueError` as `check` does, and unless scales are 16 steps or more, and no draw reaches the bound."""
        self.check(layout)
        most = self.bound / self.largest
        for leaf in (leaf for leaf in layout.homes if leaf.trainable):
            scale = self.scale_of(leaf.path)
            if scale and not 16 * self.step <= scale < most:
                raise ValueError(
                    f"{leaf.path!r}: expected a scale of {16 * self.step:.3g} .. {most:.3g} for the bound "
                    f"{self.bound:g}, got {scale:g}; fix: pass a {'smaller' if scale < most else 'larger'} bound="
                )


@lru_cache(maxsize=64)
def _factor(exact: Fraction) -> Factor:
    """An odd number of 16 bits, and a shift, next to a ratio below 2 ** 10."""
    shift = 80 - int(exact * (1 << 64)).bit_length()
    half = math.floor(exact * (1 << shift)) | 1
    return Factor(2 * half, half + (1 << shift), shift + 1)


class Normal(Noise):
    """Independent normal noise; `scale` is its standard deviation.

    >>> noise = Normal({"*/bias": 0, "*": 0.02})
    >>> noise.scale_of("dense/bias"), noise.scale_of("dense/kernel")
    (0.0, 0.02)
    """

    kind: ClassVar[int] = NORMAL
    width: ClassVar[int] = 16
    parts: ClassVar[float] = DEVIATION

    @property
    def whole(self) -> Array:
        """The normal numbers of all 16-bit numbers."""
        return _normals()


class Rademacher(Noise):
    """Independent signs: plus or minus `scale`, with the same probability. A sixteenth of the words of `Normal`.

    >>> from flatstore.noise import seeds
    >>> sorted(set(Rademacher(0.5).draw(seeds(1, 1), 0, 100)[0].tolist()))
    [-1.0, 1.0]
    """

    kind: ClassVar[int] = RADEMACHER
    width: ClassVar[int] = 1
    parts: ClassVar[float] = 0.5

    @property
    def whole(self) -> Array:
        """The two signs: 0 and -1."""
        return _SIGNS

    def factor(self, scale: float) -> Factor:
        """The scale in whole steps."""
        steps = round(Fraction(scale) / Fraction(self.step))
        return Factor(2 * steps, steps, 0)


@lru_cache(maxsize=1)
def _normals() -> Array:
    table = normals(np.arange(1 << 16))
    table.flags.writeable = False
    return table


@lru_cache(maxsize=8)
def spans(layout: Layout, noise: Noise | None) -> tuple[Array, Array]:
    """The scale of every parameter that trains: first indices and ends, shape (n, 2), and the scale in each span.

    Neighbouring leaves of the same scale share a span; without noise every scale is 1. Raises `ValueError` as
    `Noise.check` does.
    """
    if noise is not None:
        noise.check(layout)
        if len(noise.rules) == 1 and noise.rules[0][0] == "*":
            bounds, ones = spans(layout, None)
            return bounds, ones * noise.rules[0][1]
    ranges: list[list[int]] = []
    scales: list[float] = []
    for leaf in layout.homes:
        if not leaf.trainable:
            continue
        scale = 1.0 if noise is None else noise.scale_of(leaf.path)
        if scales and scales[-1] == scale and ranges[-1][1] == leaf.index:
            ranges[-1][1] += leaf.size
        else:
            ranges.append([leaf.index, leaf.index + leaf.size])
            scales.append(scale)
    return np.array(ranges, np.int64).reshape(-1, 2), np.array(scales)
