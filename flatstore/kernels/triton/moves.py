"""Moves of parameters in Triton: noise added in place, copies with noise, weighted noise of many seeds.

One launch goes over any number of ranges of addresses. A program has a tile of the index, within a *row* of the table:

```
row       first index | end | its first program | factor: multiplier | offset | shift | address | bytes to a member
programs  the row of each
```

Where something breaks the grid, a program writes nothing, and says so in `done`. Those that have written are then taken
back: on the grid that is exact.
"""

# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.triton.numbers import dither, whole_numbers
from flatstore.kernels.triton.storage import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    dithered,
    load,
    on_grid,
    store,
    store_bits,
)
from flatstore.noise import ROUNDING as _ROUNDING

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

COLUMNS = 8
"""Numbers in a row of the table, int64."""

AT_ALL, CHECKED, WHERE_DONE = range(3)
"""How a move is made: unchecked, checked, or back where a checked one was done."""

_COLUMNS, _CHECKED, _WHERE_DONE = tl.constexpr(COLUMNS), tl.constexpr(CHECKED), tl.constexpr(WHERE_DONE)
ROUNDING = tl.constexpr(_ROUNDING)


@triton.jit
def _row(rows, programs):
    return rows + tl.load(programs + tl.program_id(0)) * _COLUMNS


@triton.jit
def _start(row, tile: tl.constexpr):
    """The first index of a program's tile."""
    return (tl.load(row) // tile + tl.program_id(0) - tl.load(row + 2)) * tile


@triton.jit
def _steps(row, start, seed, kind: tl.constexpr, width: tl.constexpr, tile: tl.constexpr):
    """The steps that a seed adds to the parameters of a tile: int32."""
    multiplier, offset, shift = (tl.load(row + 3), tl.load(row + 4), tl.load(row + 5))
    whole = whole_numbers(start, seed, kind, width, tile)
    return (whole * multiplier.to(tl.int32) + offset.to(tl.int32)) >> shift.to(tl.int32)


@triton.jit
def _range(row, start, whole: tl.constexpr, tile: tl.constexpr):
    """The first place of a tile that is in a row, and the one behind the last: int32."""
    if whole:
        low, high = tl.full([], 0, tl.int32), tl.full([], tile, tl.int32)
    else:
        low = tl.maximum(tl.load(row) - start, 0).to(tl.int32)
        high = tl.minimum(tl.load(row + 1) - start, tile).to(tl.int32)
    return low, high


@triton.jit
def _inside(place, low, high):
    return (place >= low) & (place < high)


@triton.jit
def _before(row, start, dtype: tl.constexpr):
    """The bytes from the first parameter of a row to the first place of a tile, which may be before it."""
    itemsize: tl.constexpr = 8 if dtype == FLOAT64 else 4 if dtype == FLOAT32 else 2
    return (start - tl.load(row)) * itemsize


@triton.jit
def _real(x, dtype: tl.constexpr):
    if dtype == FLOAT64:
        real = x.to(tl.float64)
    else:
        real = x.to(tl.float32)
    return real


@triton.jit
def _is_good(old, new, change, settings, low, high, place, dtype: tl.constexpr):
    """Whether all parameters of a tile were on the grid and below the bound, as are what is added and they are now."""
    size, per_size = _real(tl.load(settings + 1), dtype), _real(tl.load(settings + 2), dtype)
    bound = _real(tl.load(settings + 3), dtype)
    good = on_grid(old, size, per_size, bound, dtype) & (tl.abs(change) < bound) & (tl.abs(new) < bound)
    return tl.min((good | (place < low) | (place >= high)).to(tl.int32), 0) != 0


@triton.jit
def perturb(
    rows,
    programs,
    done,
    seed,
    settings,
    kind: tl.constexpr,
    how: tl.constexpr,
    width: tl.constexpr,
    dtype: tl.constexpr,
    whole: tl.constexpr,
    tile: tl.constexpr,
):
    """Add the steps of a seed. `settings` are what a step adds, the grid, its reciprocal and the bound: float64."""
    row = _row(rows, programs)
    start = _start(row, tile)
    address = tl.load(row + 6) + _before(row, start, dtype)
    low, high = _range(row, start, whole, tile)
    place = tl.arange(0, tile)
    old = load(address, place, _inside(place, low, high), dtype, whole)
    change = _real(_steps(row, start, seed, kind, width, tile), dtype) * _real(tl.load(settings), dtype)
    if how == _WHERE_DONE:
        change = -change
    new = old + change
    if how == _CHECKED:
        is_done = _is_good(old, new, old, settings, low, high, place, dtype)
        tl.store(done + tl.program_id(0), is_done.to(tl.uint8))
        high = tl.where(is_done, high, low)
    elif how == _WHERE_DONE:
        high = tl.where(tl.load(done + tl.program_id(0)) != 0, high, low)
    store(address, place, new, _inside(place, low, high), dtype, whole, True)


@triton.jit
def sample(
    rows,
    programs,
    centre,
    seeds,
    signs,
    settings,
    since,
    kind: tl.constexpr,
    width: tl.constexpr,
    dtype: tl.constexpr,
    whole: tl.constexpr,
    tile: tl.constexpr,
):
    """Write the centre plus the noise of a seed into members, number `since` and on: a program for each and each tile.

    `centre` are addresses by row; `seeds` and `signs` are those of each member.
    """
    row, member = _row(rows, programs), tl.program_id(1) + since
    start = _start(row, tile)
    before = _before(row, start, dtype)
    low, high = _range(row, start, whole, tile)
    place = tl.arange(0, tile)
    mask = _inside(place, low, high)
    old = load(tl.load(centre + tl.load(programs + tl.program_id(0))) + before, place, mask, dtype, whole)
    steps = _steps(row, start, seeds + 2 * member, kind, width, tile)
    signed = _real(tl.load(settings) * tl.load(signs + member), dtype)
    address = tl.load(row + 6) + member * tl.load(row + 7) + before
    store(address, place, old + signed * _real(steps, dtype), mask, dtype, whole, True)


@triton.jit
def update(
    rows,
    programs,
    done,
    seeds,
    weights,
    numbers,
    key,
    settings,
    kind: tl.constexpr,
    how: tl.constexpr,
    gridded: tl.constexpr,
    width: tl.constexpr,
    dtype: tl.constexpr,
    whole: tl.constexpr,
    tile: tl.constexpr,
):
    """Add the weighted noise of many seeds, summed in whole numbers and rounded once, to the grid or the dtype.

    `weights` are whole numbers, int32. `numbers` are how many there are, and the bits of the sum that are rounded off
    at random, by the words of `key`. `settings` are what one of the rest adds, the grid, its reciprocal and the bound.
    """
    row = _row(rows, programs)
    start = _start(row, tile)
    address = tl.load(row + 6) + _before(row, start, dtype)
    low, high = _range(row, start, whole, tile)
    place = tl.arange(0, tile)
    count, drop = tl.load(numbers), tl.load(numbers + 1)
    total = tl.zeros([tile], tl.int64)
    number = count * 0
    while number < count:
        steps = _steps(row, start, seeds + 2 * number, kind, width, tile)
        total += steps.to(tl.int64) * tl.load(weights + number).to(tl.int64)
        number += 1
    word = dither(start, key, ROUNDING, tile)
    if gridded:
        random = word.to(tl.int64)
        if drop <= 32:
            random = random >> (32 - drop)
        else:
            random = (2 * random + 1) << (drop - 33)
        total = (total + random) >> drop
    change = _real(total, dtype) * _real(tl.load(settings), dtype)
    if how == _WHERE_DONE:
        change = -change
    old = load(address, place, _inside(place, low, high), dtype, whole)
    new = old + change
    if how == _CHECKED:
        is_done = _is_good(old, new, change, settings, low, high, place, dtype)
        tl.store(done + tl.program_id(0), is_done.to(tl.uint8))
        high = tl.where(is_done, high, low)
    elif how == _WHERE_DONE:
        high = tl.where(tl.load(done + tl.program_id(0)) != 0, high, low)
    if dtype == FLOAT16 or dtype == BFLOAT16:
        store_bits(address, place, dithered(new, word, dtype), _inside(place, low, high), whole)
    else:
        store(address, place, new, _inside(place, low, high), dtype, whole)


@triton.jit
def look(rows, programs, largest, dtype: tl.constexpr, whole: tl.constexpr, tile: tl.constexpr):
    """The largest magnitude in each tile, as what is computed with; infinity also where there is NaN."""
    row = _row(rows, programs)
    start = _start(row, tile)
    low, high = _range(row, start, whole, tile)
    place = tl.arange(0, tile)
    address = tl.load(row + 6) + _before(row, start, dtype)
    x = tl.abs(load(address, place, _inside(place, low, high), dtype, whole))
    tl.store(largest + tl.program_id(0), tl.max(tl.where(x == x, x, float("inf")), 0))
