"""How parameters lie in memory, and how they are computed with, in Triton: the bits of `kernels/cpu/storage.py`.

16-bit floats are read and written as integers, and rounded by arithmetic on their bits.
"""

# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.extras import require
from flatstore.kernels.cpu import ONE_HALF as _ONE_HALF
from flatstore.kernels.cpu import REBIAS as _REBIAS
from flatstore.kernels.cpu import SMALLEST_NORMAL as _SMALLEST_NORMAL
from flatstore.kernels.cpu import TOO_LARGE as _TOO_LARGE

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = (tl.constexpr(i) for i in range(4))
KINDS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 3}
"""The numbers by which kernels know dtypes."""

SMALLEST_NORMAL, TOO_LARGE, REBIAS = (tl.constexpr(int(x)) for x in (_SMALLEST_NORMAL, _TOO_LARGE, _REBIAS))
HALF, UNIT = tl.constexpr(int(_ONE_HALF)), tl.constexpr(float(np.float32(2.0**24)))


@triton.jit
def bits_of(x, dtype: tl.constexpr):
    """The bits of what is computed with, as integers of its width."""
    if dtype == FLOAT64:
        bits = x.to(tl.int64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True)
    return bits


@triton.jit
def load(address, place, mask, dtype: tl.constexpr):
    """The parameters at places from an address on, as what is computed with."""
    if dtype == FLOAT32:
        value = tl.load(address.to(tl.pointer_type(tl.float32)) + place, mask=mask, other=0.0)
    elif dtype == FLOAT64:
        value = tl.load(address.to(tl.pointer_type(tl.float64)) + place, mask=mask, other=0.0)
    else:
        stored = tl.load(address.to(tl.pointer_type(tl.uint16)) + place, mask=mask, other=0).to(tl.uint16)
        if dtype == BFLOAT16:
            value = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
        else:
            value = stored.to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def store(address, place, value, mask, dtype: tl.constexpr):
    """Write parameters: rounded to the nearest."""
    if dtype == FLOAT32:
        tl.store(address.to(tl.pointer_type(tl.float32)) + place, value, mask=mask)
    elif dtype == FLOAT64:
        tl.store(address.to(tl.pointer_type(tl.float64)) + place, value, mask=mask)
    else:
        store_bits(address, place, nearest(value, dtype), mask)


@triton.jit
def store_bits(address, place, bits, mask):
    """Write 16 bits each."""
    tl.store(address.to(tl.pointer_type(tl.uint16)) + place, bits.to(tl.uint16), mask=mask)


@triton.jit
def nearest(value, dtype: tl.constexpr):
    """The bits of a float32 rounded to a dtype of 16 bits, ties to even: uint32."""
    bits = value.to(tl.uint32, bitcast=True)
    x, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    if dtype == BFLOAT16:
        rounded = tl.where(x > 0x7F800000, sign | 0x7FC0, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
    else:
        normal = (x - REBIAS + 0xFFF + ((x >> 13) & 1)) >> 13
        # Next to a half, a float32's last bit is float16's smallest: the addition itself rounds.
        subnormal = (x.to(tl.float32, bitcast=True) + 0.5).to(tl.uint32, bitcast=True) - HALF
        half = tl.where(x < SMALLEST_NORMAL, subnormal, normal)
        special = tl.where(x <= 0x7F800000, 0x7C00, 0x7E00 | ((x >> 13) & 0x3FF))
        rounded = tl.where(x < TOO_LARGE, half, special) | sign
    return rounded


@triton.jit
def dithered(value, word, dtype: tl.constexpr):
    """The bits of a float32 rounded up or down at random to a dtype of 16 bits, by how near each is: uint32."""
    bits = value.to(tl.uint32, bitcast=True)
    x, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    if dtype == BFLOAT16:
        rounded = tl.where(x < 0x7F800000, (bits + (word & 0xFFFF)) >> 16, nearest(value, dtype))
    else:
        random = word & 0x1FFF
        normal = (x - REBIAS + random) >> 13
        small = x.to(tl.float32, bitcast=True) * UNIT + random.to(tl.float32) * (1.0 / 8192.0)
        # What is not small has no such whole number.
        half = tl.where(x < SMALLEST_NORMAL, tl.where(x < SMALLEST_NORMAL, small, 0.0).to(tl.uint32), normal)
        rounded = tl.where(x < TOO_LARGE, half | sign, nearest(value, dtype))
    return rounded


@triton.jit
def on_grid(x, size, per_size, bound, dtype: tl.constexpr):
    """Whether numbers are multiples of the grid, and below the bound in magnitude; minus zero is none."""
    below = tl.abs(x) < bound
    near = tl.where(below, x, 0.0)
    if dtype == FLOAT64:
        multiple = (near * per_size).to(tl.int64).to(tl.float64) * size
    else:
        multiple = (near * per_size).to(tl.int32).to(tl.float32) * size
    return below & (bits_of(multiple, dtype) == bits_of(x, dtype))
