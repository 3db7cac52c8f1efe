"""Counter-based random words: each is a function of its place, so that any can be had without those before it.

Philox4x32-7 turns a counter and a key into four 32-bit words. The key is a seed, the counter holds the number of
a block, the kind of draw and, where a block is not enough, which one of several:

```
counter   number of the block (64 bits) | kind | sub      key   seed (64 bits)
words     four of 32 bits in a block: numbers of `width` bits for 128 // width indices in a row
```

This is the readable version; the compiled one in `flatstore/kernels/cpu/draws.py` gives the same bits.

Source: Salmon, Moraes, Dror and Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3*, SC 2011. Seven rounds are the
fewest that pass all tests of TestU01's BigCrush there; ten make a `perturb` a tenth slower.
"""

from __future__ import annotations

import numpy as np

from flatstore.layout import Array

ROUNDS = 7

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: Array, key: Array) -> Array:
    """Philox4x32-7 as published: counters (…, 4) and keys (…, 2), uint32, to words (…, 4), uint32.

    >>> [hex(word) for word in philox4x32(np.zeros(4, "u4"), np.zeros(2, "u4")).tolist()]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    shape = np.broadcast_shapes(counter.shape[:-1], key.shape[:-1])
    a, b, c, d = (np.broadcast_to(counter[..., i], shape).astype(np.uint64) for i in range(4))
    low, high = (key[..., i].astype(np.uint64) for i in range(2))
    one, two = np.empty_like(a), np.empty_like(a)
    for _ in range(ROUNDS):
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
