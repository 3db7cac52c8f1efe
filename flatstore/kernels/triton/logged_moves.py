# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
"""Moves of 16-bit parameters in Triton that keep what rounding loses in a log, and take it back by one.

A parameter w becomes w' = round(w + d). Taking d back gives round(w' - d), which is w again but where w' has fewer
digits behind the point than w had. A tile's part of a log lies somewhere in a pool of 16-bit words, where the program
found room; all of it is in the order of the tile:

```
header    address of its words | how many parameters are lost, or all are kept, or one for all, 24 bits; checksum, 40
words     for each that is lost its place, 10 bits, and how far it is, 6 bits | the parameters that are further
```
"""

from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.triton.moves import _inside, _row, _start, _steps
from flatstore.kernels.triton.storage import BFLOAT16, nearest, store_bits

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

LOGGED_TILE = 1024
"""Parameters of a tile: a place in it has ten bits."""

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
    return tl.sum(tl.where(mask, (x ^ (x >> 16)).to(tl.int64), 0), 0) & 0xFFFFFFFFFF


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
def _bits_at(address, place, mask):
    return tl.load(address.to(tl.pointer_type(tl.uint16)) + place, mask=mask, other=0).to(tl.uint32)


@triton.jit
def add(
    rows, programs, done, seed, settings, largest, pool_at, room, headers, counters, kind: tl.constexpr,
    width: tl.constexpr, dtype: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Add the steps of a seed, and write what takes them back to a pool of words, in tiles that were not done.

    `settings` are what a step adds, float64; `largest` the bits of the least float32 that is rounded to infinity. The
    address of the pool is at `pool_at`, and `room` are its words; `counters` are how many are used, and were missing.
    """
    number, pool = tl.program_id(0).to(tl.int64), tl.load(pool_at)
    if tl.load(done + number) == _WAITS:
        row = _row(rows, programs)
        start, address = _start(row, tile), tl.load(row + 6)
        index = start + tl.arange(0, tile)
        first, end = tl.load(row), tl.load(row + 1)
        mask, place = _inside(index, first, end), (index - start).to(tl.int32)
        old = _bits_at(address, index - first, mask)
        steps = _steps(row, start, seed, kind, width, tile)
        step = tl.load(settings).to(tl.float32)
        moved = _moved(old, steps, step, dtype)
        new = nearest(moved, dtype) & 0xFFFF
        back = nearest(_moved(new, steps, -step, dtype), dtype) & 0xFFFF
        apart = tl.where(mask, _ordered(old) - _ordered(back), 0)
        code = tl.where(apart > 0, 2 * apart - 1, -2 * apart)
        lost, far = (code != 0).to(tl.int32), (code > NEAR).to(tl.int32)
        count, further = tl.sum(lost, 0), tl.sum(far, 0)
        low_place = tl.maximum(first - start, 0).to(tl.int32)
        size = tl.minimum(end - start, tile).to(tl.int32) - low_place
        low, high = tl.min(tl.where(mask, old, 0x10000), 0), tl.max(tl.where(mask, old, 0), 0)
        # Numbers, not truth: which of the three ways the tile is kept in.
        all_ways = tl.where(count + further >= size, 1, 0)
        one = tl.where(low == high, tl.minimum(count, 1), 0)
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
            rank, beyond = tl.cumsum(lost, 0) - 1, tl.cumsum(far, 0) - 1 + count
            entry = place.to(tl.uint32) | (tl.minimum(code, NEAR + 1).to(tl.uint32) << 10)
            tl.store(out + rank, entry.to(tl.uint16), mask=lost * listed != 0)
            tl.store(out + beyond, old.to(tl.uint16), mask=far * listed != 0)
            kept = tl.where(mask, every + one * (place == low_place).to(tl.int32), 0)
            tl.store(out + place - low_place, old.to(tl.uint16), mask=kept != 0)
            store_bits(address, index - first, new, mask)
            tl.store(headers + number * _HEADER, pool + 2 * at)
            tl.store(headers + number * _HEADER + 1, (told.to(tl.int64) << 40) | _checksum(new, place, mask))
            tl.store(done + number, _DONE)


@triton.jit
def check(rows, programs, done, headers, tile: tl.constexpr):
    """Look whether tiles that were moved are as their log left them."""
    number = tl.program_id(0).to(tl.int64)
    if tl.load(done + number) == _DONE:
        row = _row(rows, programs)
        start, address = _start(row, tile), tl.load(row + 6)
        index = start + tl.arange(0, tile)
        mask = _inside(index, tl.load(row), tl.load(row + 1))
        now = _bits_at(address, index - tl.load(row), mask)
        was = tl.load(headers + number * _HEADER + 1) & 0xFFFFFFFFFF
        if _checksum(now, (index - start).to(tl.int32), mask) != was:
            tl.store(done + number, _OTHERS)


@triton.jit
def take_back(
    rows, programs, done, seed, settings, headers, kind: tl.constexpr, width: tl.constexpr, dtype: tl.constexpr,
    tile: tl.constexpr,
):  # fmt: skip
    """Take the steps of a seed back, by a log, in tiles that were moved."""
    number = tl.program_id(0).to(tl.int64)
    if tl.load(done + number) == _DONE:
        row = _row(rows, programs)
        start, address = _start(row, tile), tl.load(row + 6)
        index = start + tl.arange(0, tile)
        first, end = tl.load(row), tl.load(row + 1)
        mask, place = _inside(index, first, end), (index - start).to(tl.int32)
        at = tl.load(headers + number * _HEADER)
        told = (tl.load(headers + number * _HEADER + 1) >> 40).to(tl.int32)
        words = at.to(tl.pointer_type(tl.uint16))
        if told >= _ALL:
            first_place = tl.maximum(first - start, 0).to(tl.int32)
            from_place = tl.where(told == _ONE, 0, place - first_place)
            store_bits(address, index - first, tl.load(words + from_place, mask=mask, other=0), mask)
        else:
            steps = _steps(row, start, seed, kind, width, tile)
            now = _bits_at(address, index - first, mask)
            step = tl.load(settings).to(tl.float32)
            back = nearest(_moved(now, steps, -step, dtype), dtype) & 0xFFFF
            store_bits(address, index - first, back, mask)
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
                store_bits(address, start - first + lost_at, value, is_one)
                begin += LISTED
