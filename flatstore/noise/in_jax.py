"""The draws in JAX, inside `jit`, `vmap` and `shard_map`: with the bits of `philox.py` and `kinds.py`.

Each element computes the whole block of words that holds its number, and takes that number: eight times the arithmetic
of the compiled loops, but plain arithmetic per element, which XLA fuses with what the numbers are used for. So a draw
takes no memory. Computing each block once, and stacking the words, would need temporaries and is slower.

64 bits are two words of 32, (low, high): JAX has no others while its 64-bit types are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flatstore.noise.kinds import Noise
from flatstore.noise.normal import BEND, MIDDLE, RATE, high
from flatstore.noise.philox import ROUNDS

jnp: Any = jax.numpy
_lax: Any = jax.lax
_enable_x64: Any = jax.enable_x64
_U = np.uint32
_MULTIPLIERS = _U(0xD2511F53), _U(0xCD9E8D57)
_WEYL = _U(0x9E3779B9), _U(0xBB67AE85)

Words = tuple[Any, Any]
"""64 bits: the low word and the high one, uint32."""


def high_word(a: Any, b: Any) -> Any:
    """The high 32 bits of the product of two uint32 arrays of the same shape."""
    # 64 bits for one multiplication, whatever is set: `lax.mulhi` is as fast, but neither older JAX nor XLA's
    # partitioner for several devices know it, and products of 16 bits take more than twice the time.
    with _enable_x64(True):
        wide = [_lax.convert_element_type(x, np.uint64) for x in (a, b)]
        product = _lax.mul(*wide)
        return _lax.convert_element_type(_lax.shift_right_logical(product, _lax.full_like(product, 32)), _U)


def as_words(number: int) -> Words:
    """A number in 0 .. 2**64 - 1 as words."""
    return _U(number & 0xFFFFFFFF), _U(number >> 32)


def plus(a: Words, b: Words) -> Words:
    """The sum, modulo 2**64; negative numbers are two's complements."""
    low = jnp.add(a[0], b[0])
    return low, jnp.add(a[1], b[1]) + (low < b[0]).astype(_U)


def opaque_zero(*scalars: Any) -> Any:
    """Zero, uint32, but XLA does not know it until the scalars are there: what it is added to is computed no sooner.

    Otherwise XLA computes what a loop over seeds has in common before the loop, and keeps it; or the noise of all
    layers before the first is used.
    """
    known = _U(0)
    for scalar in scalars:
        x = jnp.asarray(scalar)
        x = x.real if x.dtype.kind == "c" else x.astype(_U) if x.dtype == bool else x
        bits = _lax.bitcast_convert_type(x, np.dtype(f"u{x.dtype.itemsize}")).astype(_U)
        known = known | (bits & _U(1)) >> _U(1)
    return known


def philox4x32(counter: Sequence[Any], key: Words) -> Sequence[Any]:
    """Philox4x32-7 as published: the four words of a counter and the key's two to four words, element by element.

    >>> zero = jnp.uint32(0)
    >>> [hex(word) for word in philox4x32([zero] * 4, (zero, zero))]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    a, b, c, d = counter
    low, high = map(jnp.asarray, key)
    for _ in range(ROUNDS):
        one, two = high_word(a, jnp.full_like(a, _MULTIPLIERS[0])), high_word(c, jnp.full_like(c, _MULTIPLIERS[1]))
        a, b, c, d = two ^ b ^ low, c * _MULTIPLIERS[1], one ^ d ^ high, a * _MULTIPLIERS[0]
        low, high = low + _WEYL[0], high + _WEYL[1]
    return a, b, c, d


def numbers(kind: int, width: int, key: Words, index: Words) -> Any:
    """A number of `width` bits (1, 8, 16 or 32) for each index, uint32: the numbers of `philox.numbers`.

    The key holds the two words of the seed, scalars; the words of the index may have any shape.
    """
    low, high = map(jnp.asarray, index)
    bits = (128 // width).bit_length() - 1  # of the index within a block
    block = low >> _U(bits) | high << _U(32 - bits), jnp.broadcast_to(high >> _U(bits), low.shape)
    a, b, c, d = philox4x32((*block, jnp.full_like(low, _U(kind)), jnp.zeros_like(low)), key)
    bit = (low & _U(128 // width - 1)) * _U(width)
    odd, late = bit & _U(32) != 0, bit & _U(64) != 0
    word = jnp.where(late, jnp.where(odd, d, c), jnp.where(odd, b, a))
    return word if width == 32 else word >> (bit & _U(31)) & _U((1 << width) - 1)


def whole(noise: Noise, key: Words, index: Words) -> Any:
    """The whole number that a noise draws at each index, int32: those of `noise.whole`."""
    drawn = numbers(noise.kind, noise.width, key, index)
    if noise.width == 1:
        return -drawn.astype(np.int32)
    return normals(drawn)


def normals(numbers: Any) -> Any:
    """The normal numbers of numbers of 16 bits, uint32: those of `normal.normals`, int32."""
    u = numbers.astype(np.int32) - 32768
    square = ((1 << 30) - u * (u + 1)) & -64
    t = MIDDLE - (_lax.bitcast_convert_type(square.astype(np.float32), np.int32) >> 11)
    middle = ((t & 4095) ^ 2048) - 2048 << 4
    t = t - high(16384 - high(middle, middle), BEND[0] + high(middle, BEND[1]))
    rate = jnp.full_like(t, RATE[-1])
    for constant in RATE[-2::-1]:
        rate = constant + high(rate, t)
    return high(u | 1, rate)


def steps(noise: Noise, scale: float, key: Words, index: Words) -> Any:
    """The number of steps that a noise of a scale adds at each index, int32."""
    multiplier, offset, shift = noise.factor(scale)
    return whole(noise, key, index) * np.int32(multiplier) + np.int32(offset) >> shift
