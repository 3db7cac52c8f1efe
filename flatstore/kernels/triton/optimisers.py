# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
"""The rules of the optimisers in Triton: the bits of `kernels/cpu/optimisers.py`, each operation rounded once."""

from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.triton.moves import ROUNDING, _before, _inside, _range, _real, _row, _start
from flatstore.kernels.triton.numbers import dither
from flatstore.kernels.triton.storage import BFLOAT16, FLOAT16, FLOAT64, dithered, load, store, store_bits

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

ADAM, MOMENTUM = range(2)
_ADAM = tl.constexpr(ADAM)


@triton.jit
def _setting(settings, number: tl.constexpr, dtype: tl.constexpr):
    return _real(tl.load(settings + number), dtype)


@triton.jit
def _root(x, dtype: tl.constexpr):
    if dtype == FLOAT64:
        root = tl.sqrt(x)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def _quotient(x, y, dtype: tl.constexpr):
    if dtype == FLOAT64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def _rounded(address, place, value, start, key, mask, dtype: tl.constexpr, whole: tl.constexpr, tile: tl.constexpr):
    """Write numbers: those of 16 bits are rounded up or down at random, by the words of a key."""
    if dtype == FLOAT16 or dtype == BFLOAT16:
        store_bits(address, place, dithered(value, dither(start, key, ROUNDING, tile), dtype), mask, whole)
    else:
        store(address, place, value, mask, dtype, whole)


@triton.jit
def step(
    rows, programs, others, settings, keys, rule: tl.constexpr, dtype: tl.constexpr, whole: tl.constexpr,
    tile: tl.constexpr,
):  # fmt: skip
    """Move parameters and the states of a rule. `others` are the addresses of gradient and states, three for a row."""
    row = _row(rows, programs)
    start = _start(row, tile)
    before = _before(row, start, dtype)
    low, high = _range(row, start, whole, tile)
    place = tl.arange(0, tile)
    mask = _inside(place, low, high)
    beside = others + tl.load(programs + tl.program_id(0)) * 3
    address, first, second = tl.load(row + 6) + before, tl.load(beside + 1) + before, tl.load(beside + 2) + before
    x = load(address, place, mask, dtype, whole)
    gradient = load(tl.load(beside) + before, place, mask, dtype, whole)
    state = load(first, place, mask, dtype, whole)
    rate = _setting(settings, 0, dtype)
    if rule == _ADAM:
        square = load(second, place, mask, dtype, whole)
        state = _setting(settings, 3, dtype) * state + _setting(settings, 4, dtype) * gradient
        square = _setting(settings, 5, dtype) * square + _setting(settings, 6, dtype) * (gradient * gradient)
        below = _root(_setting(settings, 1, dtype) * square, dtype) + _setting(settings, 2, dtype)
        x = x + _quotient(rate * state, below, dtype)
        _rounded(second, place, square, start, keys + 4, mask, dtype, whole, tile)
    else:
        state = _setting(settings, 1, dtype) * state + gradient
        x = x + rate * state
    _rounded(address, place, x, start, keys, mask, dtype, whole, tile)
    _rounded(first, place, state, start, keys + 2, mask, dtype, whole, tile)
