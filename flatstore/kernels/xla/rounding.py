"""Sums and roundings in JAX with the bits of the compiled loops, however XLA compiles the code around them.

XLA may keep more digits than a 16-bit dtype has, so that a rounding to it must be written in integers; and on CPU it
takes numbers below float32's smallest normal one for zero, so that those must not enter an addition.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatstore.kernels.cpu import HALF_INFINITY, HALF_SIGN, INFINITY, ONE_HALF, REBIAS, SIGN, SMALLEST_NORMAL, TOO_LARGE

jnp: Any = jax.numpy
_lax: Any = jax.lax
_default_backend: Any = jax.default_backend
_U = np.uint32


def bits_of(x: Any) -> Any:
    """The bits of a float32, uint32."""
    return _lax.bitcast_convert_type(x, _U)


def float_of(bits: Any) -> Any:
    """The float32 of bits, uint32."""
    return _lax.bitcast_convert_type(bits, np.float32)


def is_held_as_bits(dtype: Any) -> bool:
    """Whether an array that is written part by part is held as bits: XLA on a CPU has no bfloat16.

    It would convert all of the array, and back, for each part.
    """
    return dtype.name == "bfloat16" and _default_backend() == "cpu"


def held(x: Any, zero: Any) -> Any:
    """An array as it is held while it is written part by part; bits are copied when `zero` is known."""
    if not is_held_as_bits(x.dtype):
        return x
    return _lax.bitcast_convert_type(x, np.uint16) | zero.astype(np.uint16)


def cast(x: Any, dtype: Any) -> Any:
    """The same bits as another dtype."""
    return x if x.dtype == dtype else _lax.bitcast_convert_type(x, dtype)


def loaded(x: Any, zero: Any) -> Any:
    """The numbers to compute with: 16-bit floats become float32, exactly; others are unchanged. `zero` is opaque."""
    x = jnp.where(zero == 0, x, jnp.zeros_like(x))
    if x.dtype.itemsize != 2:
        return x
    half = _lax.bitcast_convert_type(x, np.uint16).astype(_U)
    if x.dtype != np.float16:
        return float_of(half << _U(16))
    magnitude = half & _U(0x7FFF)
    normal = (magnitude << _U(13)) + jnp.where(magnitude >= HALF_INFINITY, _U(2) * REBIAS, REBIAS)
    subnormal = bits_of(magnitude.astype(np.float32) * np.float32(2.0**-24))
    return float_of(jnp.where(magnitude < _U(0x400), subnormal, normal) | (half & HALF_SIGN) << _U(16))


def added(x: Any, delta: Any) -> Any:
    """`x + delta`, also for an `x` that XLA takes for zero; `delta` is zero, or large compared with such a number."""
    unsigned, digits = (np.uint64, 52) if x.dtype == np.float64 else (_U, 23)
    bits, total = (_lax.bitcast_convert_type(y, unsigned) for y in (x, x + delta))
    # Zero changes zero: the digits and the sign that the sum has lost come back. Plainer conditions on x, also in
    # integers, are turned into a comparison of floats, which takes it for zero once more.
    mantissa = unsigned((1 << digits) - 1)
    kept = bits & (mantissa | unsigned(1 << (8 * x.dtype.itemsize - 1)))
    return _lax.bitcast_convert_type(jnp.where((delta == 0) & (bits & mantissa != 0), total | kept, total), x.dtype)


def rounded(y: Any, dtype: Any) -> Any:
    """Round to the nearest number of a dtype, ties to even."""
    if dtype.itemsize != 2:
        return y
    bits = bits_of(y)
    x, sign = bits & ~SIGN, (bits & SIGN) >> _U(16)
    if dtype != np.float16:
        nearest = (bits + _U(0x7FFF) + (bits >> _U(16) & _U(1))) >> _U(16)
        return _stored(jnp.where(x > INFINITY, sign | _U(0x7FC0), nearest), dtype)
    normal = (x - REBIAS + _U(0xFFF) + (x >> _U(13) & _U(1))) >> _U(13)
    # Next to a half, a float32's last bit is float16's smallest: the addition itself rounds.
    subnormal = bits_of(float_of(x) + np.float32(0.5)) - ONE_HALF
    special = jnp.where(x <= INFINITY, HALF_INFINITY, _U(0x7E00) | (x >> _U(13) & _U(0x3FF)))
    half = jnp.where(x < TOO_LARGE, jnp.where(x < SMALLEST_NORMAL, subnormal, normal), special)
    return _stored(half | sign, dtype)


def product(x: Any, y: Any) -> Any:
    """`x * y` as it is rounded: not fused with the sum that it goes into, which would round once."""
    # The sign is set in integers, by numbers that are known only when it runs. So no compiler finds a product there.
    unsigned = np.uint64 if x.dtype == np.float64 else _U
    top = unsigned(1 << (8 * x.dtype.itemsize - 1))
    signs = _lax.bitcast_convert_type(x, unsigned) ^ _lax.bitcast_convert_type(y, unsigned)
    magnitude = _lax.bitcast_convert_type(jnp.abs(x) * jnp.abs(y), unsigned)
    return _lax.bitcast_convert_type(magnitude & ~top | signs & top, x.dtype)


def constant(number: Any, zero: Any) -> Any:
    """A float32 or float64 that XLA does not move from one sum to another, as it does constants; `zero` is opaque."""
    unsigned = np.uint64 if number.dtype == np.float64 else _U
    bits = jnp.asarray(number.view(unsigned)) | zero.astype(unsigned)
    return _lax.bitcast_convert_type(bits, number.dtype)


def dithered(y: Any, dtype: Any, word: Any) -> Any:
    """Round up or down to a 16-bit dtype at random, by distance, with the 32 bits of `word`; others are unchanged."""
    if dtype.itemsize != 2:
        return y
    bits = bits_of(y)
    x, sign = bits & ~SIGN, (bits & SIGN) >> _U(16)
    nearest = _lax.bitcast_convert_type(rounded(y, dtype), np.uint16).astype(_U)
    if dtype != np.float16:
        up = (bits + (word & _U(0xFFFF))) >> _U(16)
        return _stored(jnp.where(x < INFINITY, up, nearest), dtype)
    random = word & _U(0x1FFF)
    normal = (x - REBIAS + random) >> _U(13)
    finer = float_of(x) * np.float32(2.0**24) + random.astype(np.float32) * np.float32(2.0**-13)
    half = jnp.where(x < SMALLEST_NORMAL, finer.astype(_U), normal)
    return _stored(jnp.where(x < TOO_LARGE, half | sign, nearest), dtype)


def _stored(bits: Any, dtype: Any) -> Any:
    return _lax.bitcast_convert_type(bits.astype(np.uint16), dtype)
