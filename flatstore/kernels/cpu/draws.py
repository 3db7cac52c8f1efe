"""Random numbers in compiled loops: the same bits as `flatstore.philox`, at the speed of memory.

A loop becomes vector instructions if it is plain arithmetic over arrays. So each step fills a small array that stays in
the processor's first caches: words, then numbers of the wanted width, then what is done with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled, inlined
from flatstore.noise import ROUNDS

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)


_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).reshape(-1)


def _rounds(a: Any, b: Any, c: Any, d: Any, key: Any) -> Any:
    """Philox4x32-7: the four words of a counter and a key, to four words."""
    low, high = np.uint32(key), np.uint32(key >> _HALF)
    for _ in range(ROUNDS):
        one, two = np.uint64(a) * _M0, np.uint64(c) * _M1
        a, b = np.uint32(two >> _HALF) ^ b ^ low, np.uint32(two)
        c, d = np.uint32(one >> _HALF) ^ d ^ high, np.uint32(one)
        low, high = np.uint32(low + _W0), np.uint32(high + _W1)
    return a, b, c, d


# In a loop over blocks the rounds become vector instructions; between branches a call is faster, as measured.
_rounds_in_loop, _rounds_called = inlined(_rounds), compiled(_rounds)


@compiled
def philox(kind: int, keys: Any, start: int, blocks: int, out: Any) -> None:
    """For each key a row of `out` (uint32): the words of so many blocks from `start` on, four each."""
    for row in range(keys.size):
        key = keys[row]
        for i in range(blocks):
            block = np.uint64(start + i)
            a, b, c, d = _rounds_in_loop(
                np.uint32(block), np.uint32(block >> _HALF), np.uint32(kind), np.uint32(0), key
            )
            out[row, 4 * i], out[row, 4 * i + 1], out[row, 4 * i + 2], out[row, 4 * i + 3] = a, b, c, d


@compiled
def philox_block(kind: int, keys: Any, first: int, last: int, block: int, sub: int, out: Any) -> None:
    """The same block for the keys first .. last - 1: into the columns 4 * sub and on of their rows in `out`.

    `sub` is the fourth word of the counter, for draws that need more than one block.
    """
    for row in range(np.uint64(first), np.uint64(last)):
        b = np.uint64(block)
        words = _rounds_called(np.uint32(b), np.uint32(b >> _HALF), np.uint32(kind), np.uint32(sub), keys[row])
        out[row, 4 * sub], out[row, 4 * sub + 1], out[row, 4 * sub + 2], out[row, 4 * sub + 3] = words


@compiled
def combined(counters: Any, key: Any) -> Any:
    """The XOR of the blocks of many counters, uint32 of shape (n, 4): its first two words, as 64 bits."""
    low, high = np.uint32(0), np.uint32(0)
    for i in range(counters.shape[0]):
        a, b, _, _ = _rounds_called(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], key)
        low, high = np.uint32(low ^ a), np.uint32(high ^ b)
    return np.uint64(low) | np.uint64(high) << _HALF


@compiled
def blocks_of(kind: int, width: int, keys: Any, start: int, size: int, words: Any) -> int:
    """The words that hold a number of `width` bits for each key and each index from `start` on, in rows of `words`.

    Whole blocks of 128 bits: returns how many numbers stand before that of index `start`.
    """
    per = 128 // width
    first = start // per
    philox(kind, keys, first, -(-(start + size) // per) - first, words)
    return start - per * first


@compiled
def numbers(kind: int, width: int, keys: Any, start: int, size: int, scratch: Any) -> int:
    """A number of `width` bits (1, 8, 16 or 32) for each key and each index from `start` on, in a row of scratch.

    Scratch is (words, small, large): numbers of up to 8 bits go into `small` (uint8), others into `large` (uint32).
    Whole blocks are drawn: those of index `start` stand in the column that is returned. All three need room for up to
    254 numbers more than `size`.
    """
    words, small, large = scratch
    skip = blocks_of(kind, width, keys, start, size, words)
    blocks = ((skip + size) * width + 127) // 128
    octets, spread = words.view(np.uint8), small.view(np.uint64)
    for row in range(keys.size):
        if width == 32:
            for w in range(4 * blocks):
                large[row, w] = words[row, w]
        elif width == 16:
            for w in range(4 * blocks):
                word = words[row, w]
                large[row, 2 * w], large[row, 2 * w + 1] = word & np.uint32(0xFFFF), word >> np.uint32(16)
        elif width == 8:
            for i in range(16 * blocks):
                small[row, i] = octets[row, i]
        else:
            for i in range(16 * blocks):
                spread[row, i] = _SPREAD[octets[row, i]]
    return skip


@compiled
def draws(kind: int, width: int, keys: Any, start: int, size: int, random: Any) -> Any:
    """Random numbers for `looked_up`, for each key and each index from `start` on; returns what `numbers` does."""
    if width == 16:
        return blocks_of(kind, width, keys, start, size, random[0])
    return numbers(kind, width, keys, start, size, random)


@compiled
def looked_up(row: int, count: int, width: int, table: Any, random: Any, out: Any) -> None:
    """The values in a table at the first `count` numbers of a row that `draws` has drawn.

    Numbers of 16 bits are looked up straight from the words: one pass less over the cache.
    """
    words, small, large = random
    if width == 16:
        for w in range((count + 1) // 2):
            word = words[row, w]
            out[2 * w], out[2 * w + 1] = table[word & np.uint32(0xFFFF)], table[word >> np.uint32(16)]
    elif width == 1:
        zero, one = table[0], table[1]
        for i in range(count):
            out[i] = one if small[row, i] else zero
    elif width == 8:
        for i in range(count):
            out[i] = table[small[row, i]]
    else:
        for i in range(count):
            out[i] = table[large[row, i]]
