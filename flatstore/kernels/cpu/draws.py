"""Random numbers in compiled loops: the same bits as `flatstore.noise`, at the speed of memory.

A loop becomes vector instructions if it is plain arithmetic over arrays. So each step fills a small array that stays in
the processor's first caches: words, then numbers of the wanted width, then what becomes of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled, inlined
from flatstore.noise import ROUNDS

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_HALF = np.uint64(32)
_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8), bitorder="little").view(np.uint64)


def _philox_rounds(a: Any, b: Any, c: Any, d: Any, key: Any) -> Any:
    """Return the four words that Philox4x32-7 makes of a counter (four words) and a key (64 bits)."""
    low, high = np.uint32(key), np.uint32(key >> _HALF)
    for _ in range(ROUNDS):
        one, two = np.uint64(a) * _M0, np.uint64(c) * _M1
        a, b = np.uint32(two >> _HALF) ^ b ^ low, np.uint32(two)
        c, d = np.uint32(one >> _HALF) ^ d ^ high, np.uint32(one)
        low, high = np.uint32(low + _W0), np.uint32(high + _W1)
    return a, b, c, d


# In a loop over blocks the rounds become vector instructions; between branches a call is faster, as measured.
_rounds_in_loop, _rounds_called = inlined(_philox_rounds), compiled(_philox_rounds)


@compiled
def philox(kind: int, keys: Any, start: int, blocks: int, out: Any) -> None:
    """Fill a row of `out` (uint32) for each key with the words of the blocks start .. start + blocks - 1, four each."""
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
    """Write one block for each of the keys first .. last - 1, into columns 4 * sub .. 4 * sub + 3 of its row in `out`.

    `sub` is the fourth word of the counter, for draws that need more than one block.
    """
    for row in range(np.uint64(first), np.uint64(last)):
        b = np.uint64(block)
        words = _rounds_called(np.uint32(b), np.uint32(b >> _HALF), np.uint32(kind), np.uint32(sub), keys[row])
        out[row, 4 * sub], out[row, 4 * sub + 1], out[row, 4 * sub + 2], out[row, 4 * sub + 3] = words


@compiled
def xor_of_blocks(counters: Any, key: Any) -> Any:
    """Return the first two words, as 64 bits, of the XOR of the blocks of `counters` (uint32, shape (n, 4))."""
    low, high = np.uint32(0), np.uint32(0)
    for i in range(counters.shape[0]):
        a, b, _, _ = _rounds_called(counters[i, 0], counters[i, 1], counters[i, 2], counters[i, 3], key)
        low, high = np.uint32(low ^ a), np.uint32(high ^ b)
    return np.uint64(low) | np.uint64(high) << _HALF


@compiled
def draw_words(kind: int, width: int, keys: Any, start: int, size: int, words: Any) -> int:
    """Draw the words that hold a number of `width` bits for each of `size` indices from `start` on.

    They fill a row of `words` for each key. Whole blocks of 128 bits are drawn: returns how many numbers stand before
    the one that belongs to index `start`.
    """
    per_block = 128 // width
    first = start // per_block
    philox(kind, keys, first, -(-(start + size) // per_block) - first, words)
    return start - per_block * first


@compiled
def numbers(kind: int, width: int, keys: Any, start: int, size: int, scratch: Any) -> int:
    """Draw a number of `width` bits (1, 8, 16 or 32) for each of `size` indices from `start` on, a row for each key.

    Scratch is (words, small, large): numbers of up to 8 bits go into `small` (uint8), others into `large` (uint32).
    Whole blocks are drawn: returns the column of index `start`. All three need room for up to 254 numbers more than
    `size`.
    """
    words, small, large = scratch
    column = draw_words(kind, width, keys, start, size, words)
    blocks = ((column + size) * width + 127) // 128
    octets, by_eight = words.view(np.uint8), small.view(np.uint64)
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
                by_eight[row, i] = _BITS_OF_BYTE[octets[row, i]]
    return column


@compiled
def draws(kind: int, width: int, keys: Any, start: int, size: int, random: Any) -> Any:
    """Draw numbers for `looked_up` as `numbers` does, but leave those of 16 bits in their words; returns the column."""
    if width == 16:
        return draw_words(kind, width, keys, start, size, random[0])
    return numbers(kind, width, keys, start, size, random)


@compiled
def looked_up(row: int, count: int, width: int, table: Any, random: Any, out: Any) -> None:
    """Look up the first `count` numbers of a row that `draws` has drawn in a table, and write the values to `out`.

    Numbers of 16 bits are looked up straight from their words, which saves a pass over the cache.
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
