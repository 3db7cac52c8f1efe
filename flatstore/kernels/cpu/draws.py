"""Random numbers in compiled loops: the same bits as `flatstore.noise`, at the speed of memory.

A loop becomes vector instructions if it is plain arithmetic over arrays. So each step fills a small array that stays in
the processor's first caches: words, then numbers of the wanted width, then what becomes of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled, inlined
from flatstore.kernels.cpu.normal import AT_ONCE, normal_block, sign_block
from flatstore.kernels.cpu.prefetch import fetch
from flatstore.noise import ROUNDS

NUMBERS, WHOLE, TABLE = range(3)
"""What a draw is: a number of so many bits, the whole number of a noise, or what stands in a table at the number."""

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def _philox_pairs(a: Any, b: Any, c: Any, d: Any, key: Any) -> Any:
    """Return the four words that Philox4x32-7 makes of a counter and a key (64 bits) as two of 64 bits, low word first.

    All are uint64, since a product has 64 bits; the upper halves of `b` and `d` are ignored.
    """
    low, high = key & _LOW, key >> _HALF
    for _ in range(ROUNDS - 1):
        one, two = (a & _LOW) * _M0, (c & _LOW) * _M1
        a, b = (two >> _HALF) ^ b ^ low, two
        c, d = (one >> _HALF) ^ d ^ high, one
        low, high = (low + _W0) & _LOW, (high + _W1) & _LOW
    one, two = (a & _LOW) * _M0, (c & _LOW) * _M1
    first = (two >> _HALF | two << _HALF) ^ ((b ^ low) & _LOW)  # a rotation, which processors have
    second = (one >> _HALF | one << _HALF) ^ ((d ^ high) & _LOW)
    return first, second


# In a loop over blocks the rounds become vector instructions; between branches a call is faster, as measured.
_pairs_in_loop, _pairs_called = inlined(_philox_pairs), compiled(_philox_pairs)


@compiled
def philox(kind: int, keys: Any, start: int, blocks: int, out: Any) -> None:
    """Fill a row of `out` (uint32) for each key with the words of the blocks start .. start + blocks - 1, four each."""
    pairs = out.view(np.uint64)
    for row in range(keys.size):
        key = keys[row]
        for i in range(np.uint64(blocks)):
            block = np.uint64(start) + i
            first, second = _pairs_in_loop(block, block >> _HALF, np.uint64(kind), np.uint64(0), key)
            pairs[row, np.uint64(2) * i], pairs[row, np.uint64(2) * i + np.uint64(1)] = first, second


@compiled
def philox_block(kind: int, keys: Any, first: int, last: int, block: int, sub: int, out: Any) -> None:
    """Write one block for each of the keys first .. last - 1, into columns 4 * sub .. 4 * sub + 3 of its row in `out`.

    `sub` is the fourth word of the counter, for draws that need more than one block.
    """
    for row in range(np.uint64(first), np.uint64(last)):
        b = np.uint64(block)
        first, second = _pairs_called(b, b >> _HALF, np.uint64(kind), np.uint64(sub), keys[row])
        out[row, 4 * sub], out[row, 4 * sub + 1] = np.uint32(first), np.uint32(first >> _HALF)
        out[row, 4 * sub + 2], out[row, 4 * sub + 3] = np.uint32(second), np.uint32(second >> _HALF)


@compiled
def xor_of_blocks(counters: Any, key: Any) -> Any:
    """Return the first two words, as 64 bits, of the XOR of the blocks of `counters` (uint32, shape (n, 4))."""
    total = np.uint64(0)
    for i in range(counters.shape[0]):
        a, b = np.uint64(counters[i, 0]), np.uint64(counters[i, 1])
        first, _ = _pairs_called(a, b, np.uint64(counters[i, 2]), np.uint64(counters[i, 3]), key)
        total = np.uint64(total ^ first)
    return total


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
    octets, signs = words.view(np.uint8), small.view(np.int8)
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
            for w in range(4 * blocks):
                sign_block(words[row, w], signs[row], np.uint64(32 * w))
            for i in range(128 * blocks):
                small[row, i] &= np.uint8(1)
    return column


@compiled
def whole_normals(words: Any, row: int, first: int, count: int, out: Any, ahead: Any) -> int:
    """Write the normal numbers (int16) of `count` numbers, from number `first` on in a row of `words`.

    32 are made at a time, from whole words: returns the column of `out` that belongs to number `first`. `ahead` is
    None, or (array, places): the elements from each place on, which will be written soon, are fetched meanwhile.
    """
    begin, column = first // 2, first % 2
    at = np.uint64(0)
    for w in range(np.uint64(0), np.uint64((column + count + 1) // 2), np.uint64(AT_ONCE // 2)):
        if ahead is not None:
            array, places = ahead
            for place in places:
                for line in range(np.uint64(0), np.uint64(AT_ONCE), np.uint64(64 // array.itemsize)):
                    fetch(array, np.uint64(place) + at + line)
        normal_block(words, row, np.uint64(begin) + w, out, at)
        at += np.uint64(AT_ONCE)
    return column


@compiled
def whole_signs(words: Any, row: int, first: int, count: int, out: Any, ahead: Any) -> int:
    """Write the signs (int8: 0 or -1) of `count` bits, from bit `first` on in a row of `words`, as `whole_normals`.

    Nothing is fetched: this takes so little time that it costs more than it saves.
    """
    begin, column = first // 32, first % 32
    for w in range(np.uint64((column + count + 31) // 32)):
        sign_block(words[row, np.uint64(begin) + w], out, np.uint64(32) * w)
    return column


WHOLE_NUMBERS: dict[int, Any] = {16: (whole_normals, np.int16), 1: (whole_signs, np.int8)}
"""For the width of a noise in bits: what writes the whole numbers of its draws, and their dtype."""


@compiled
def looked_up(row: int, count: int, width: int, table: Any, random: Any, out: Any) -> None:
    """Look up the first `count` numbers of a row that `numbers` has drawn in a table, and write the values to `out`."""
    _, small, large = random
    if width == 1:
        zero, one = table[0], table[1]
        for i in range(count):
            out[i] = one if small[row, i] else zero
    elif width == 8:
        for i in range(count):
            out[i] = table[small[row, i]]
    else:
        for i in range(count):
            out[i] = table[large[row, i]]
