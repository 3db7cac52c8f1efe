"""Noise: a pure function of (kind, seed, index).

Every random number here is looked up, not streamed. Philox4x32-10 turns a counter and a key into four 32-bit words;
the key is the seed, the counter holds the kind of draw and the parameter's index. So a block of columns of a
population draws what the whole would have drawn there, whatever the blocks, the order or the alignment.

```
counter   number of the block (64 bits) | kind | 0        key   seed (64 bits)
words     four of 32 bits a block
normal    eight numbers of 16 bits: parameter i takes number i % 8 of block i // 8
sign      128 numbers of one bit: parameter i takes bit i % 128 of block i // 128
```

A normal draw looks its 16 bits up in a table of 65,536 equally likely values: the mean of N(0, 1) within each of as
many slices of equal probability. Range ±4.39, every draw one of 65,536 values, variance 0.9999, kurtosis 2.9998.

Source: Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from flatstore.arrays import Array, is_floating
from flatstore.layout import Layout
from flatstore.paths import matcher, refuse_idle_glob
from flatstore.table import Leaf

Seed = int | Sequence[int]

NORMAL, RADEMACHER, CROSSOVER, SPARSE = range(4)
"""Kinds of draw, each with a stream of its own."""

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_SIGNS = np.array([-1, 1], np.float32)
_SIGNS.flags.writeable = False
_MASK, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def seeds(seed: Seed, n: int) -> Array:
    """`n` seeds of 64 bits made from one, shape (n,), uint64: hashed by NumPy's `SeedSequence`.

    Different integers, or different tuples of them, are hashed from different words: 7, (7, 0) and (0, 7) differ.

    >>> seeds((1, 2), 2).tolist() == seeds((1, 2), 3)[:2].tolist()
    True

    Raises `ValueError` for what is no integer, or negative.
    """
    parts: Any = seed
    entropy: list[Any] = [parts] if np.ndim(parts) == 0 else list(parts)
    if not all(isinstance(part, (int, np.integer)) and part >= 0 for part in entropy):
        raise ValueError(f"expected a seed of non-negative integers, got {seed}; fix: like 7, or (run, generation)")
    # NumPy pads with zeros and splits large integers: the counts tell apart what would then be the same words.
    counted = [len(entropy)]
    for part in map(int, entropy):
        counted += [-(-part.bit_length() // 32) or 1, part]
    return np.random.SeedSequence(counted).generate_state(n, np.uint64)


def as_keys(seeds: Any) -> Array:
    """Seeds as Philox keys: shape (n,), uint64. Raises `ValueError` for what is no vector of integers."""
    keys = np.asarray(seeds)
    if keys.ndim != 1 or keys.dtype.kind not in "iu" or (keys.dtype.kind == "i" and (keys < 0).any()):
        raise ValueError(
            f"expected a vector of seeds in 0 .. 2**64 - 1, got {keys.dtype} of shape {keys.shape}; fix: fs.seeds(7, n)"
        )
    return keys.astype(np.uint64)


def philox4x32(counter: Array, key: Array) -> Array:
    """Philox4x32-10 as published: counters (…, 4) and keys (…, 2), uint32, to words (…, 4), uint32.

    >>> [hex(word) for word in philox4x32(np.zeros(4, "u4"), np.zeros(2, "u4")).tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    shape = np.broadcast_shapes(counter.shape[:-1], key.shape[:-1])
    a, b, c, d = (np.broadcast_to(counter[..., i], shape).astype(np.uint64) for i in range(4))
    low, high = (key[..., i].astype(np.uint64) for i in range(2))
    one, two = np.empty_like(a), np.empty_like(a)
    for _ in range(10):
        np.multiply(a, _MULTIPLIERS[0], out=one)
        np.multiply(c, _MULTIPLIERS[1], out=two)
        np.right_shift(two, _SHIFT, out=a)
        np.right_shift(one, _SHIFT, out=c)
        a ^= b
        a ^= low
        c ^= d
        c ^= high
        np.bitwise_and(two, _MASK, out=b)
        np.bitwise_and(one, _MASK, out=d)
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    out = np.empty((*shape, 4), np.uint32)
    for i, word in enumerate((a, b, c, d)):
        out[..., i] = word
    return out


def words(kind: int, keys: Array, start: int, stop: int, sub: int = 0) -> Array:
    """The words of the blocks start .. stop - 1 for each seed of `keys`: shape (len(keys), stop - start, 4), uint32.

    `sub` is the fourth word of the counter, for draws that need more than one block.
    """
    blocks = np.arange(start, stop, dtype=np.uint64)
    counter = np.zeros((1, stop - start, 4), np.uint32)
    counter[0, :, 0], counter[0, :, 1], counter[0, :, 2:] = blocks & _MASK, blocks >> _SHIFT, (kind, sub)
    key = np.stack([keys & _MASK, keys >> _SHIFT], axis=-1).astype(np.uint32)
    return philox4x32(counter, key[:, None, :])


def numbers(kind: int, width: int, keys: Array, start: int, stop: int) -> Array:
    """An integer of `width` bits (1, 8, 16 or 32) for each seed and each index in start .. stop - 1.

    Shape (len(keys), stop - start), unsigned. A block of 128 bits serves 128 // width indices in a row, the lowest bits
    of its first word first.
    """
    per = 128 // width
    first = start // per
    block = words(kind, keys, first, -(-stop // per)).astype("<u4").view(np.uint8).reshape(len(keys), -1)
    every = np.unpackbits(block, axis=1, bitorder="little") if width == 1 else block.view(f"<u{width // 8}")
    return every[:, start - per * first : stop - per * first]


@lru_cache(maxsize=1)
def normal_table() -> Array:
    """The 65,536 conditional means of N(0, 1) over slices of equal probability, ascending: float32, read-only."""
    n = 1 << 16
    normal = NormalDist()
    edges = [normal.inv_cdf(i / n) for i in range(n // 2 + 1, n)]
    density = [normal.pdf(0.0), *map(normal.pdf, edges), 0.0]
    upper = n * -np.diff(np.array(density))
    table = np.concatenate([-upper[::-1], upper]).astype(np.float32)
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class Noise:
    """A distribution of variance 1 and its strength per leaf: one number, or by glob (the first that matches).

    A leaf of scale 0 is not touched. Raises `ValueError` for scales that are not finite, negative, or all zero.
    """

    scale: float | Mapping[str, float] | tuple[tuple[str, float], ...]

    kind: ClassVar[int]
    """The stream that is drawn from."""
    width: ClassVar[int]
    """Bits per draw."""

    def __post_init__(self) -> None:
        """Check the scales, and freeze a mapping as (glob, number) pairs: their order counts."""
        rules = self.scale.items() if isinstance(self.scale, Mapping) else self.rules
        values = [value for _, value in rules]
        numbers = all(isinstance(value, (int, float, np.number)) for value in values)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not numbers or not all(math.isfinite(value) and value >= 0 for value in values) or not any(values):
            raise ValueError(f"expected a scale > 0 (0 for leaves to leave alone), got {self.scale}; fix: give sigma")
        if isinstance(self.scale, Mapping):
            object.__setattr__(self, "scale", tuple(rules))

    @property
    def rules(self) -> tuple[tuple[str, float], ...]:
        """(glob, scale), in order."""
        if isinstance(self.scale, tuple):
            return self.scale
        return tuple(self.scale.items()) if isinstance(self.scale, Mapping) else (("*", self.scale),)

    def scale_of(self, path: str) -> float:
        """The standard deviation for the leaf at `path`. Raises `ValueError` if no glob matches."""
        for glob, value in self.rules:
            if matcher(glob)(path):
                return float(value)
        raise ValueError(f"expected a scale for every leaf, got none for {path!r}; fix: add a glob, like '*'")

    def check(self, layout: Layout) -> None:
        """Raise `ValueError` unless globs and trainable leaves match each other, and these leaves are floating."""
        leaves = [leaf for leaf in layout.homes if leaf.trainable]
        for glob, _ in self.rules:
            refuse_idle_glob("scale", glob, [leaf.path for leaf in leaves])
        for leaf in leaves:
            if self.scale_of(leaf.path) and not is_floating(leaf.dtype):
                raise ValueError(
                    f"{leaf.path!r}: expected a floating leaf to add noise to, got {leaf.spec}; "
                    "fix: give it the scale 0, or leave it out of trainable="
                )

    @property
    def values(self) -> Array:
        """The values that a draw takes, all equally likely: float32, 2 to the power of `width` of them, read-only."""
        raise NotImplementedError

    def draw(self, keys: Array, start: int, stop: int) -> Array:
        """A number for each seed of `keys` and each index in start .. stop - 1, to be multiplied by the scale.

        Shape (len(keys), stop - start), float32.
        """
        return self.values.take(numbers(self.kind, self.width, keys, start, stop))

    def delta(self, leaf: Leaf, keys: Array, start: int, stop: int) -> Array:
        """Scale times draw for each seed and the elements start .. stop - 1 of a leaf: (len(keys), stop - start).

        In float64 for a float64 leaf, else in float32: narrower leaves are rounded when the sum is written, once.
        """
        dtype = np.float64 if leaf.dtype == np.float64 else np.float32
        return dtype(self.scale_of(leaf.path)) * self.draw(keys, leaf.index + start, leaf.index + stop).astype(dtype)


class Normal(Noise):
    """Independent normal noise; `scale` is its standard deviation.

    >>> noise = Normal({"*/bias": 0, "*": 0.02})
    >>> noise.scale_of("dense/bias"), noise.scale_of("dense/kernel")
    (0.0, 0.02)
    """

    kind, width = NORMAL, 16

    @property
    def values(self) -> Array:
        """The table of 65,536 standard normals."""
        return normal_table()


class Rademacher(Noise):
    """Independent signs: plus or minus `scale`, with the same probability. A sixteenth of the words of `Normal`.

    >>> sorted(set(Rademacher(0.5).draw(seeds(1, 1), 0, 100)[0].tolist()))
    [-1.0, 1.0]
    """

    kind, width = RADEMACHER, 1

    @property
    def values(self) -> Array:
        """-1 and 1."""
        return _SIGNS
