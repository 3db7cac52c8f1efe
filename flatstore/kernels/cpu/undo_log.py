"""What rounding loses when noise is added to 16-bit floats, block by block, and the loops that keep it and use it.

A parameter w becomes w' = round(w + d). Taking d back gives round(w' - d), which is w again but where w' has fewer
digits behind the point than w had. A log holds what is missing there. A block of the index is a header of eight bytes,
and codes:

```
header    checksum of what was written, 32 bits | length of the codes, 14 | how many, 13 | kind of block, 5
codes     parameters between this one and the one before  |  how far w is from round(w' - d), in 16-bit floats:
          as a Rice code                                     two bits for a neighbour, else an exponential Golomb code
```

The Rice codes' order, which suits the gaps, is the kind of the block. A block whose parameters were all the same is
that one value; one in which nearly all was lost holds the parameters themselves.

Source of the codes: Rice and Plaunt, *Adaptive Variable-Length Coding*, IEEE Transactions on Communications, 1971;
Teuhola, *A Compression Method for Clustered Bit-Vectors*, Information Processing Letters 7, 1978.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.bits import bit_length, not_zero, put_word, trailing_zeros, word_at

BLOCK = 4096
"""Parameters in a block."""

READ_BEYOND, WRITTEN_BEYOND = 8, 512
"""Bytes that are read beyond the end of a log, and that are written beyond it at times."""

_U, _W, _H, _S = np.uint32, np.uint64, np.uint16, np.int16
_WHOLE, _CONSTANT = _W(30), _W(31)  # kinds of block; others are the order of the codes of its gaps
_HEADER = _W(8)
_ONE, _ZERO = _W(1), _W(0)


def log_bytes(size: int) -> int:
    """The most bytes that the log of `size` parameters may have, if they are neighbours in the index."""
    return 2 * size + (int(_HEADER) * (-(-size // BLOCK) + 1)) + WRITTEN_BEYOND


@compiled
def checksum(block: Any, count: int) -> Any:
    """Return 32 bits that depend on each of the first `count` numbers of a block, and on its place."""
    pairs, total = block.view(np.uint32), _U(0)
    for i in range(_W(count // 2)):
        x = _U(_U(pairs[i] ^ _U(_U(i) * _U(0x9E3779B1))) * _U(0x85EBCA77))
        x = _U(_U(x ^ _U(x >> _U(15))) * _U(0xC2B2AE3D))
        total = _U(total + _U(x ^ _U(x >> _U(16))))
    if count % 2:
        total = _U(total + _U(_U(block[count - 1]) * _U(0x9E3779B1)))
    return total


@compiled
def _ordered(bits: Any) -> Any:
    """Return the place of a 16-bit float, given by its bits, among all of them: int16, minus infinity to infinity."""
    signed = _S(bits)
    return _S(signed ^ _S(_S(signed >> _S(15)) & _S(0x7FFF)))


@compiled
def apart(old: Any, back: Any) -> Any:
    """Return how many 16-bit floats `old` is from `back`, as 0, 1, 2, 3, 4 for 0, -1, 1, -2, 2."""
    steps = _S(_ordered(old) - _ordered(back))
    return _H(_S(_S(steps << _S(1)) ^ _S(steps >> _S(15))))


@compiled
def _from(back: Any, distance: Any) -> Any:
    """Return the 16-bit float that is so far from `back`."""
    steps = _S(_S(_H(distance) >> _H(1)) ^ _S(-_S(_H(distance) & _H(1))))
    return _H(_ordered(_S(_ordered(back) + steps)))


@compiled
def _long_code(number: Any) -> Any:
    """Return the exponential Golomb code of a number, lowest bit first, and its length."""
    shifted = _W(number + _ONE)
    length = bit_length(shifted)
    zeros = _W(length - _ONE)
    return _W((_W(shifted ^ (_ONE << zeros)) << length) | (_ONE << zeros)), _W(zeros + length)


@compiled
def _long_number(bits: Any) -> Any:
    """Return the number whose exponential Golomb code the bits begin with, and the length of the code."""
    zeros = trailing_zeros(bits)
    top = _ONE << zeros
    return _W(((bits >> _W(zeros + _ONE)) & _W(top - _ONE)) + top - _ONE), _W(_W(2) * zeros + _ONE)


@compiled
def _lost_places(distance: Any, count: int, places: Any) -> Any:
    """Write the places at which `distance` is not 0 to `places`, which has room for eight more; return how many."""
    lost = _ZERO
    for sixty_four in range(_ZERO, _W(count), _W(64)):
        mask = not_zero(distance, sixty_four)
        while mask:
            for _ in range(6):  # some in vain: that is faster than to find out
                places[lost] = _H(sixty_four + trailing_zeros(mask))
                lost += _W(mask != _ZERO)
                mask &= _W(mask - _ONE)
    return lost


@compiled
def _flushed(out: Any, place: Any, pending: Any, held: Any) -> Any:
    """Write pending bits; return the place of the first byte that is not full, its bits, and how many they are."""
    put_word(out, place, pending)
    return _W(place + (held >> _W(3))), _W(pending >> _W(held & ~_W(7))), _W(held & _W(7))


@compiled
def write_block(old: Any, distance: Any, count: int, total: Any, out: Any, at: Any, places: Any) -> Any:
    """Write what gives the first `count` of `old`, which are `apart` from what is left of them, and a checksum.

    Returns the place behind it. `distance` is to be 0 from `count` on to the next multiple of 64; `places` is scratch.
    """
    some, others = _H(0), _H(0)
    for i in range(_W(count)):
        some, others = _H(some | distance[i]), _H(others | _H(old[i] ^ old[0]))
    if some and others == 0:
        put_word(out, at, _W(total) | (_W(old[0]) << _W(32)) | (_CONSTANT << _W(59)))
        return _W(at + _HEADER)
    start, limit, order = _W(at + _HEADER), _W(at + _HEADER + _W(2 * count)), _ZERO
    lost = _lost_places(distance, count, places)
    if lost:
        largest, last = _W(places[0]), _W(places[0])
        for n in range(_ONE, lost):
            largest, last = max(largest, _W(places[n]) - last), _W(places[n])
        order = max(bit_length(_W(_W(count) // lost)), bit_length(largest >> _W(3))) - _ONE
    place, pending, held, next_place = start, _ZERO, _ZERO, _ZERO
    for n in range(lost):
        i = _W(places[n])
        gap, far = _W(i - next_place), _W(distance[i])
        next_place = _W(i + _ONE)
        ones = _W(gap >> order)
        pending = _W(pending | _W((_W((gap ^ (ones << order)) << _ONE) | _ONE) << _W(ones + held)))
        held = _W(held + ones + order + _ONE)
        if far <= _W(2):
            pending = _W(pending | _W(_W((far << _ONE) - _ONE) << held))
            held = _W(held + _W(2))
        else:
            place, pending, held = _flushed(out, place, pending, held)
            code, length = _long_code(_W(far - _W(3)))
            pending = _W(pending | _W(code << _W(held + _ONE)))
            held = _W(held + length + _ONE)
        place, pending, held = _flushed(out, place, pending, held)
        if place >= limit:
            break
    place = _W(place + (held > 0))
    kind = order
    if place >= limit:
        for i in range(_W(count)):
            out[start + _W(2) * i], out[start + _W(2) * i + _ONE] = old[i] & _H(0xFF), old[i] >> _H(8)
        place, lost, kind = limit, _ZERO, _WHOLE
    put_word(out, at, _W(total) | (_W(place - start) << _W(32)) | (lost << _W(46)) | (kind << _W(59)))
    return place


@compiled
def behind_block(log: Any, at: Any) -> Any:
    """Return the place behind the block that begins at a place of a log."""
    header = word_at(log, at)
    length = (header >> _W(32)) & _W(0x3FFF)
    return _W(at + _HEADER + (_ZERO if header >> _W(59) == _CONSTANT else length))


@compiled
def restore_block(back: Any, count: int, log: Any, at: Any) -> Any:
    """Turn the first `count` of `back` into what they were, by the block at a place of a log."""
    header = word_at(log, at)
    kind, lost, place = header >> _W(59), (header >> _W(46)) & _W(0x1FFF), _W(at + _HEADER)
    if kind == _CONSTANT:
        for i in range(_W(count)):
            back[i] = _H(header >> _W(32))
    elif kind == _WHOLE:
        for i in range(_W(count)):
            back[i] = _H(log[place + _W(2) * i]) | _H(_H(log[place + _W(2) * i + _ONE]) << _H(8))
    else:
        bit, i = _W(place << _W(3)), _ZERO
        for _ in range(lost):
            bits = _W(word_at(log, _W(bit >> _W(3))) >> _W(bit & _W(7)))
            ones = trailing_zeros(bits)
            bits = _W(bits >> _W(ones + _ONE))
            i = _W(i + ((ones << kind) | (bits & _W((_ONE << kind) - _ONE))))
            bits = _W(bits >> kind)
            bit = _W(bit + ones + kind + _ONE)
            if bits & _ONE:
                far = _W(_ONE + ((bits >> _ONE) & _ONE))
                bit = _W(bit + _W(2))
            else:
                bit = _W(bit + _ONE)
                far, length = _long_number(_W(word_at(log, _W(bit >> _W(3))) >> _W(bit & _W(7))))
                far = _W(far + _W(3))
                bit = _W(bit + length)
            back[i] = _from(back[i], far)
            i = _W(i + _ONE)
