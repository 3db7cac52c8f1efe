"""Random numbers in Triton: the bits of `flatstore/noise/philox.py` and `flatstore/noise/normal.py`, a tile at a time.

A tile is a power of two of neighbours in the index, from a multiple of it on. So it holds whole blocks of random words,
and each block is computed once:

```
index   0 ... 7 | 8 ... 15 | ...      eight numbers of 16 bits to a block; four of 32 bits; 128 of one bit
block   0       | 1        | ...
```
"""

# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.noise import BEND as _BEND
from flatstore.noise import MIDDLE as _MIDDLE
from flatstore.noise import RATE as _RATE
from flatstore.noise import ROUNDS as _ROUNDS

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

ROUNDS = tl.constexpr(_ROUNDS)
MIDDLE = tl.constexpr(_MIDDLE)
BEND_0, BEND_1 = (tl.constexpr(x) for x in _BEND)
RATE_0, RATE_1, RATE_2, RATE_3, RATE_4 = (tl.constexpr(x) for x in _RATE)


@triton.jit
def philox(a, b, c, d, low, high):
    """Philox4x32-7 as published: four words for the words of counters, and of a seed, uint32."""
    for _ in tl.static_range(ROUNDS):
        one, two = tl.umulhi(a, 0xD2511F53), tl.umulhi(c, 0xCD9E8D57)
        a, b, c, d = two ^ b ^ low, c * 0xCD9E8D57, one ^ d ^ high, a * 0xD2511F53
        low += 0x9E3779B9
        high += 0xBB67AE85
    return a, b, c, d


@triton.jit
def random_words(start, low, high, kind: tl.constexpr, blocks: tl.constexpr, bits: tl.constexpr):
    """The words of so many blocks, the first of which holds the index `start`; 2 ** `bits` numbers are in a block.

    `low` and `high` are the words of the seed, uint32. Shape (4 * blocks,), uint32.
    """
    number = (start >> bits) + tl.arange(0, blocks)
    a, b = (number & 0xFFFFFFFF).to(tl.uint32), (number >> 32).to(tl.uint32)
    a, b, c, d = philox(a, b, tl.full([blocks], kind, tl.uint32), tl.zeros([blocks], tl.uint32), low, high)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def upper(a, b):
    """The upper half of the product of two numbers of 16 bits, rounded down."""
    return (a * b) >> 16


@triton.jit
def normals(numbers):
    """The normal numbers of numbers of 16 bits, uint32: whole numbers, int32."""
    u = numbers.to(tl.int32) - 32768
    square = ((1 << 30) - u * (u + 1)) & -64
    t = MIDDLE - (square.to(tl.float32).to(tl.int32, bitcast=True) >> 11)
    middle = (((t & 4095) ^ 2048) - 2048) << 4
    t = t - upper(16384 - upper(middle, middle), BEND_0 + upper(middle, BEND_1))
    rate = RATE_3 + upper(RATE_4, t)
    rate = RATE_2 + upper(rate, t)
    rate = RATE_1 + upper(rate, t)
    rate = RATE_0 + upper(rate, t)
    return upper(u | 1, rate)


@triton.jit
def whole_numbers(start, seed, kind: tl.constexpr, width: tl.constexpr, tile: tl.constexpr):
    """What a noise of `width` bits draws for the indices from `start` on, a multiple of the tile: int32.

    `seed` points to its two words.
    """
    low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    if width == 16:
        words = random_words(start, low, high, kind, tile // 8, 3)
        whole = normals(tl.interleave(words & 0xFFFF, words >> 16))
    else:
        words = random_words(start, low, high, kind, tile // 128, 7)
        whole = -tl.reshape((words[:, None] >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1, [tile]).to(tl.int32)
    return whole


@triton.jit
def dither(start, seed, kind: tl.constexpr, tile: tl.constexpr):
    """A random word for each index from `start` on: uint32."""
    low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    return random_words(start, low, high, kind, tile // 4, 2)
