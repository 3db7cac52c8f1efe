# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
"""Moves of 16-bit parameters in Triton that keep what rounding loses in a log, and take it back by one.

A parameter w becomes w' = round(w + d). Taking d back gives round(w' - d), which is w again but where w' has fewer
digits behind the point than w had. A tile's part of a log lies somewhere in a pool of 16-bit words, where the program
found room; all of it is in the order of the tile:

```
header    address of its words | how many parameters are lost, or all are kept, or one for all, 32 bits; checksum, 32
words     for each that is lost its place, 10 bits, and how far it is, 6 bits | the parameters that are further
```
"""

from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.triton.moves import _before, _inside, _range, _row, _start, _steps
from flatstore.kernels.triton.storage import BFLOAT16, nearest, pointer, store_bits

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

HEADER = 2
"""Numbers in the header of a tile, int64."""

ALL, ONE = 1 << 16, 1 << 17
"""What is told in the place of a count: that all parameters are kept, or one that all are."""

WAITS, DONE, TOO_LARGE, OTHERS = range(4)
"""What became of a tile: no room for its words, moved, it would not be finite, it is not as its log left it."""

_HEADER, _ALL, _ONE = (tl.constexpr(x) for x in (HEADER, ALL, ONE))
_WAITS, _DONE, _TOO_LARGE, _OTHERS = (tl.constexpr(x) for x in (WAITS, DONE, TOO_LARGE, OTHERS))
NEAR = tl.constexpr(62)
"""The largest distance that is told beside the place."""
LISTED = tl.constexpr(128)
"""Lost parameters that are given back together."""


@triton.jit
def _ordered(bits):
    """The place of a 16-bit float, given by its bits, among all of them: int32, minus infinity to infinity."""
    signed = bits.to(tl.int32) << 16 >> 16
    return signed ^ ((signed >> 15) & 0x7FFF)


@triton.jit
def _checksum(bits, place, mask):
    """A checksum of a tile: it depends on all of its bits, and on their places."""
    x = (bits.to(tl.uint32) ^ (place.to(tl.uint32) * 0x9E3779B1)) * 0x85EBCA77
    x = (x ^ (x >> 15)) * 0xC2B2AE3D
    return tl.sum(tl.where(mask, (x ^ (x >> 16)).to(tl.int32, bitcast=True), 0), 0)


@triton.jit
def _moved(bits, steps, times, dtype: tl.constexpr):
    """Parameters, given by their bits, plus steps of noise: before they are rounded, and the bits of what is added."""
    return _as_real(bits, dtype) + steps.to(tl.float32) * times


@triton.jit
def _as_real(bits, dtype: tl.constexpr):
    if dtype == BFLOAT16:
        value = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def _bits_at(address, place, mask, whole: tl.constexpr):
    return tl.load(pointer(address, BFLOAT16, whole) + place, mask=mask, other=0).to(tl.uint32)


@triton.jit
def add(
    rows, programs, done, seed, settings, largest, pool_at, room, headers, counters, kind: tl.constexpr,
    width: tl.constexpr, dtype: tl.constexpr, whole: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Add the steps of a seed, and write what takes them back to a pool of words, in tiles that were not done.

    `settings` are what a step adds, float64; `largest` the bits of the least float32 that is rounded to infinity. The
    address of the pool is at `pool_at`, and `room` are its words; `counters` are how many are used, and were missing.
    """
    number, pool = tl.program_id(0).to(tl.int64), tl.load(pool_at)
    if tl.load(done + number) == _WAITS:
        row = _row(rows, programs)
        start = _start(row, tile)
        address = tl.load(row + 6) + _before(row, start, dtype)
        low, high = _range(row, start, whole, tile)
        place = tl.arange(0, tile)
        mask = _inside(place, low, high)
        old = _bits_at(address, place, mask, whole)
        steps = _steps(row, start, seed, kind, width, tile)
        step = tl.load(settings).to(tl.float32)
        moved = _moved(old, steps, step, dtype)
        new = nearest(moved, dtype, True) & 0xFFFF
        back = nearest(_moved(new, steps, -step, dtype), dtype, True) & 0xFFFF
        apart = tl.where(mask, _ordered(old) - _ordered(back), 0)
        code = tl.where(apart > 0, 2 * apart - 1, -2 * apart)
        lost, far = code != 0, code > NEAR
        # Three counts in one number, of which the last is below the size of a tile.
        others = mask & (old != tl.load((address + 2 * low).to(tl.pointer_type(tl.uint16))).to(tl.uint32))
        each = lost.to(tl.uint32) | (far.to(tl.uint32) << 11)
        counts = tl.sum(each | (others.to(tl.uint32) << 22), 0)
        count, further = (counts & 0x7FF).to(tl.int32), ((counts >> 11) & 0x7FF).to(tl.int32)
        size = high - low
        # Numbers, not truth: which of the three ways the tile is kept in.
        all_ways = tl.where(count + further >= size, 1, 0)
        one = tl.where(counts >> 22 == 0, tl.minimum(count, 1), 0)
        every = all_ways * (1 - one) * tl.minimum(count, 1)
        listed = (1 - one) * (1 - every)
        words = one + every * size + listed * (count + further)
        told = one * _ONE + every * _ALL + listed * count
        bits = moved.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
        is_large = tl.max(tl.where(mask & (bits >= largest), 1, 0), 0)
        at = tl.full([], 0, tl.int64)
        if is_large == 0:
            at = tl.atomic_add(counters, words.to(tl.int64))
        if is_large != 0:
            tl.store(done + number, _TOO_LARGE)
        elif at + words > room:
            tl.atomic_add(counters + 1, words.to(tl.int64))
        else:
            out = (pool + 2 * at).to(tl.pointer_type(tl.uint16))
            if told >= _ALL:
                tl.store(out + place - low, old.to(tl.uint16), mask=mask & (place < low + words))
            elif words != 0:
                rank = tl.cumsum(each, 0)
                entry = place.to(tl.uint32) | (tl.minimum(code, NEAR + 1).to(tl.uint32) << 10)
                tl.store(out + (rank & 0x7FF).to(tl.int32) - 1, entry.to(tl.uint16), mask=lost)
                if further != 0:
                    tl.store(out + (rank >> 11).to(tl.int32) + count - 1, old.to(tl.uint16), mask=far)
            store_bits(address, place, new, mask, whole)
            tl.store(headers + number * _HEADER, pool + 2 * at)
            checksum = _checksum(new, place, mask).to(tl.int64) & 0xFFFFFFFF
            tl.store(headers + number * _HEADER + 1, (told.to(tl.int64) << 32) | checksum)
            tl.store(done + number, _DONE)


@triton.jit
def check(rows, programs, done, headers, whole: tl.constexpr, tile: tl.constexpr):
    """Look whether tiles that were moved are as their log left them."""
    number = tl.program_id(0).to(tl.int64)
    if tl.load(done + number) == _DONE:
        row = _row(rows, programs)
        start = _start(row, tile)
        low, high = _range(row, start, whole, tile)
        place = tl.arange(0, tile)
        mask = _inside(place, low, high)
        now = _bits_at(tl.load(row + 6) + _before(row, start, BFLOAT16), place, mask, whole)
        was = tl.load(headers + number * _HEADER + 1).to(tl.int32)
        if _checksum(now, place, mask) != was:
            tl.store(done + number, _OTHERS)


@triton.jit
def take_back(
    rows, programs, done, seed, settings, headers, kind: tl.constexpr, width: tl.constexpr, dtype: tl.constexpr,
    whole: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Take the steps of a seed back, by a log, in tiles that were moved."""
    number = tl.program_id(0).to(tl.int64)
    if tl.load(done + number) == _DONE:
        row = _row(rows, programs)
        start = _start(row, tile)
        address = tl.load(row + 6) + _before(row, start, dtype)
        low, high = _range(row, start, whole, tile)
        place = tl.arange(0, tile)
        mask = _inside(place, low, high)
        at = tl.load(headers + number * _HEADER)
        told = (tl.load(headers + number * _HEADER + 1) >> 32).to(tl.int32)
        words = at.to(tl.pointer_type(tl.uint16))
        if told >= _ALL:
            from_place = tl.where(told == _ONE, 0, place - low)
            store_bits(address, place, tl.load(words + from_place, mask=mask, other=0), mask, whole)
        else:
            steps = _steps(row, start, seed, kind, width, tile)
            now = _bits_at(address, place, mask, whole)
            step = tl.load(settings).to(tl.float32)
            back = nearest(_moved(now, steps, -step, dtype), dtype, True) & 0xFFFF
            store_bits(address, place, back, mask, whole)
            tl.debug_barrier()
            further = tl.full([], 0, tl.int32)
            begin = told * 0
            while begin < told:
                one = begin + tl.arange(0, LISTED)
                is_one = one < told
                entry = tl.load(words + one, mask=is_one, other=0).to(tl.int32) & 0xFFFF
                lost_at, code = entry & 0x3FF, entry >> 10
                far = is_one & (code > NEAR)
                rank = tl.cumsum(far.to(tl.int32), 0) - 1 + further
                further += tl.sum(far.to(tl.int32), 0)
                told_value = tl.load(words + told + rank, mask=far, other=0).to(tl.uint32) & 0xFFFF
                apart = tl.where(code % 2 == 1, (code + 1) // 2, -(code // 2))
                near = _ordered(tl.gather(back, lost_at, 0)) + apart
                near_bits = ((near ^ ((near >> 15) & 0x7FFF)) & 0xFFFF).to(tl.uint32)
                value = tl.where(far, told_value, near_bits)
                store_bits(address, lost_at, value, is_one)
                begin += LISTED
