"""How genes lie in memory, and how they are computed with: 16-bit floats in float32, rounded once when they are stored.

A pair of compiled functions per dtype: `load(stored) -> gene` and `store(gene) -> stored`, on one number. 16-bit floats
are passed as uint16, since the compiler has no such numbers; float32 is `sign, 8 bits of exponent, 23 bits`, float16
`sign, 5, 10`, bfloat16 the upper half of float32. Ties round to even.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np

from flatstore.kernels.compiler import COMPILES, compiled
from flatstore.layout import Leaf

_numba: Any = numba
_types: Any = numba.types
_tools: Any = _numba.core.cgutils

_U = np.uint32
SIGN, HALF_SIGN = _U(0x80000000), _U(0x8000)
INFINITY, HALF_INFINITY = _U(0x7F800000), _U(0x7C00)
REBIAS = _U(112 << 23)  # from float16's exponent to float32's
SMALLEST_NORMAL, TOO_LARGE = _U(113 << 23), _U(143 << 23)  # 2**-14 and 2**16, as float32
_SUBNORMAL_UNIT = np.float32(2.0**-24)
ONE_HALF = _U(126 << 23)  # 0.5, as float32


@compiled
def same(number: Any) -> Any:
    """Return the number: it is stored as it is computed with."""
    return number


@compiled
def from_bfloat16(stored: Any) -> Any:
    """Return the stored number as float32, exactly."""
    return np.uint32(_U(stored) << _U(16)).view(np.float32)


@compiled
def to_bfloat16(gene: Any) -> Any:
    """Round a float32 to the nearest bfloat16."""
    x = np.float32(gene).view(np.uint32)
    rounded = (x + _U(0x7FFF) + ((x >> _U(16)) & _U(1))) >> _U(16)
    quiet = ((x & SIGN) >> _U(16)) | _U(0x7FC0)
    return np.uint16(quiet if (x & ~SIGN) > INFINITY else rounded)


def _from_float16(stored: Any) -> Any:
    """Return the stored number as float32, exactly, by arithmetic on its bits."""
    half = _U(stored)
    magnitude = half & _U(0x7FFF)
    subnormal = np.float32(np.float32(magnitude) * _SUBNORMAL_UNIT).view(np.uint32)
    normal = (magnitude << _U(13)) + REBIAS
    normal = normal + REBIAS if magnitude >= HALF_INFINITY else normal
    bits = subnormal if magnitude < _U(0x400) else normal
    return np.uint32(bits | ((half & HALF_SIGN) << _U(16))).view(np.float32)


def _to_float16(gene: Any) -> Any:
    """Round a float32 to the nearest float16, by arithmetic on its bits; what is too large becomes infinite."""
    bits = np.float32(gene).view(np.uint32)
    x = bits & ~SIGN
    normal = (x - REBIAS + _U(0xFFF) + ((x >> _U(13)) & _U(1))) >> _U(13)
    # Next to a half, a float32's last bit is float16's smallest: the addition itself rounds.
    subnormal = np.float32(np.uint32(x).view(np.float32) + np.float32(0.5)).view(np.uint32) - ONE_HALF
    half = subnormal if x < SMALLEST_NORMAL else normal
    special = HALF_INFINITY if x <= INFINITY else _U(0x7E00) | ((x >> _U(13)) & _U(0x3FF))
    half = half if x < TOO_LARGE else special
    return np.uint16(half | ((bits & SIGN) >> _U(16)))


def _converts(context: Any) -> bool:
    """Whether the processor that is compiled for has instructions for float16, which take a ninth of the time."""
    return "+f16c" in context.codegen().magic_tuple()[2].split(",")


@_numba.extending.intrinsic
def _load_float16(_: Any, stored: Any) -> Any:
    """Return the stored number as float32, exactly."""

    def convert(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _converts(context):
            return context.compile_internal(builder, _from_float16, signature, args)
        return builder.fpext(builder.bitcast(args[0], _tools.ir.HalfType()), _tools.ir.FloatType())

    return _types.float32(_types.uint16), convert


@_numba.extending.intrinsic
def _store_float16(_: Any, gene: Any) -> Any:
    """Round a float32 to the nearest float16; a number that is too large becomes infinite."""

    def convert(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _converts(context):
            return context.compile_internal(builder, _to_float16, signature, args)
        return builder.bitcast(builder.fptrunc(args[0], _tools.ir.HalfType()), _tools.ir.IntType(16))

    return _types.uint16(_types.float32), convert


from_float16: Any
to_float16: Any
from_float16, to_float16 = (_load_float16, _store_float16) if COMPILES else (_from_float16, _to_float16)


@compiled
def finite_to_bfloat16(gene: Any) -> Any:
    """Round a float32 below `TOO_LARGE_FOR` in magnitude to the nearest bfloat16, in half of the time."""
    x = np.float32(gene).view(np.uint32)
    return np.uint16(_U(x + _U(0x7FFF) + ((x >> _U(16)) & _U(1))) >> _U(16))


FINITE: dict[str, Any] = {"float16": to_float16, "bfloat16": finite_to_bfloat16}
"""For each 16-bit dtype's name a store for numbers that are known to be finite, and to stay so."""

TOO_LARGE_FOR = {"float16": _U(0x477FF000), "bfloat16": _U(0x7F7F8000)}
"""The bits of the least float32 that is rounded to infinity; those of infinity and NaN are larger."""

STORAGE: dict[str, tuple[Any, Any, Any, Any]] = {
    "float32": (np.float32, np.float32, same, same),
    "float64": (np.float64, np.float64, same, same),
    "float16": (np.uint16, np.float32, from_float16, to_float16),
    "bfloat16": (np.uint16, np.float32, from_bfloat16, to_bfloat16),
}
"""For each dtype's name (type in memory, type that is computed with, load, store)."""


@compiled
def dithered_bfloat16(gene: Any, word: Any) -> Any:
    """Round a float32 up or down at random, by how near each is: the mean is the number. `word` has 32 random bits."""
    bits = np.float32(gene).view(np.uint32)
    up = bits + (_U(word) & _U(0xFFFF))
    return np.uint16(up >> _U(16)) if (bits & ~SIGN) < INFINITY else to_bfloat16(gene)


@compiled
def dithered_float16(gene: Any, word: Any) -> Any:
    """Round a float32 to float16 as `dithered_bfloat16` rounds to bfloat16."""
    bits = np.float32(gene).view(np.uint32)
    x, random = bits & ~SIGN, _U(word) & _U(0x1FFF)
    normal = (x - REBIAS + random) >> _U(13)
    small = np.float32(np.uint32(x).view(np.float32) / _SUBNORMAL_UNIT) + np.float32(random) / np.float32(8192)
    half = np.uint32(small) if x < SMALLEST_NORMAL else normal
    return np.uint16(half | ((bits & SIGN) >> _U(16))) if x < TOO_LARGE else to_float16(gene)


@compiled
def undithered(number: Any, word: Any) -> Any:
    """Return the number: it is stored as it is computed with, so nothing is rounded."""
    return number


DITHERED: dict[str, Any] = {
    "float32": undithered,
    "float64": undithered,
    "float16": dithered_float16,
    "bfloat16": dithered_bfloat16,
}
"""For each dtype's name a store that rounds 16-bit floats at random, by a word."""

BITS: dict[Any, Any] = {np.float32: np.int32, np.float64: np.int64}
"""For each type that is computed with, the integers of its width."""


def refuse_other_dtypes(leaves: Iterable[Leaf], purpose: str, fix: str = "leave it out of trainable=") -> None:
    """Raise `ValueError` for the first leaf of a dtype that cannot be computed with."""
    for leaf in leaves:
        if leaf.dtype.name not in STORAGE:
            raise ValueError(
                f"{leaf.path!r}: expected a leaf of {', '.join(STORAGE)} to {purpose}, got {leaf.spec}; fix: {fix}"
            )
