# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
"""The rules of the optimisers in Triton: the bits of `kernels/cpu/optimisers.py`, each operation rounded once."""

from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.triton.moves import ROUNDING, _inside, _real, _row, _start
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
def _rounded(address, place, value, start, key, mask, dtype: tl.constexpr, tile: tl.constexpr):
    """Write numbers: those of 16 bits are rounded up or down at random, by the words of a key."""
    if dtype == FLOAT16 or dtype == BFLOAT16:
        store_bits(address, place, dithered(value, dither(start, key, ROUNDING, tile), dtype), mask)
    else:
        store(address, place, value, mask, dtype)


@triton.jit
def step(rows, programs, others, settings, keys, rule: tl.constexpr, dtype: tl.constexpr, tile: tl.constexpr):
    """Move parameters and the states of a rule. `others` are the addresses of gradient and states, three for a row."""
    row = _row(rows, programs)
    start, address = _start(row, tile), tl.load(row + 6)
    index = start + tl.arange(0, tile)
    first, end = tl.load(row), tl.load(row + 1)
    mask, place = _inside(index, first, end), index - first
    beside = others + tl.load(programs + tl.program_id(0)) * 3
    x = load(address, place, mask, dtype)
    gradient = load(tl.load(beside), place, mask, dtype)
    state = load(tl.load(beside + 1), place, mask, dtype)
    rate = _setting(settings, 0, dtype)
    if rule == _ADAM:
        square = load(tl.load(beside + 2), place, mask, dtype)
        state = _setting(settings, 3, dtype) * state + _setting(settings, 4, dtype) * gradient
        square = _setting(settings, 5, dtype) * square + _setting(settings, 6, dtype) * (gradient * gradient)
        below = _root(_setting(settings, 1, dtype) * square, dtype) + _setting(settings, 2, dtype)
        x = x + _quotient(rate * state, below, dtype)
        _rounded(tl.load(beside + 2), place, square, start, keys + 4, mask, dtype, tile)
    else:
        state = _setting(settings, 1, dtype) * state + gradient
        x = x + rate * state
    _rounded(address, place, x, start, keys, mask, dtype, tile)
    _rounded(tl.load(beside + 1), place, state, start, keys + 2, mask, dtype, tile)
