"""Numbers that a rule of the compiled loops computes with inside jit, operation by operation, with the same bits.

A rule is Python: `mean = beta * mean + rest * gradient`. Given these numbers in the place of floats it is traced, and
XLA rounds after each operation, as processors do, and also where it would take a number below 2 ** -126 for zero. For
that a float32 is computed in float64, where such a number is like any other: a float64 has more than twice the digits,
so that rounding its sums, products, quotients and roots once more gives what rounding them once would.
"""

from __future__ import annotations

from typing import Any, Self

import jax
import numpy as np

from flatstore.kernels.xla.rounding import bits_of, float_of, product

jnp: Any = jax.numpy
_lax: Any = jax.lax
_U, _W = np.uint32, np.uint64

with_64_bits: Any = jax.enable_x64
"""The context in which these numbers are made and computed with."""

_LEAST = 2.0**-149
"""The smallest float32 above zero."""


class Double:
    """A float64."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def of(cls, x: Any) -> Self:
        """An array of the dtype that is computed with."""
        return cls(x)

    def array(self) -> Any:
        """The array."""
        return self.value

    def __add__(self, other: Self) -> Self:
        return type(self)(self.value + other.value)

    def __mul__(self, other: Self) -> Self:
        return type(self)(product(self.value, other.value))

    def __truediv__(self, other: Self) -> Self:
        return type(self)(self.value / other.value)

    def sqrt(self) -> Self:
        """The square root: what `np.sqrt` calls."""
        return type(self)(jnp.sqrt(self.value))


class Single(Double):
    """A float32, held as a float64."""

    def __init__(self, value: Any) -> None:
        """Round to the nearest float32, ties to even: in integers, which XLA does not leave out."""
        bits = _lax.bitcast_convert_type(value, _W)
        rest = _W((1 << 29) - 1)
        nearest = (bits + (rest >> _W(1)) + (bits >> _W(29) & _W(1))) & ~rest
        near = _lax.bitcast_convert_type(nearest, np.float64)
        near = jnp.where(jnp.abs(near) >= 2.0**128, jnp.where(near > 0, np.inf, -np.inf), near)
        self.value = jnp.where(jnp.abs(value) < 2.0**-126, jnp.rint(value / _LEAST) * _LEAST, near)

    @classmethod
    def of(cls, x: Any) -> Self:
        """A float32, exactly."""
        bits = bits_of(x)
        magnitude = bits & _U(0x7FFFFFFF)
        small = magnitude.astype(np.float64) * _LEAST
        small = jnp.where(bits >> _U(31) != 0, -small, small)
        return cls(jnp.where(magnitude < _U(1 << 23), small, x.astype(np.float64)))

    def array(self) -> Any:
        """The float32."""
        small = jnp.abs(self.value) < 2.0**-126
        count = jnp.where(small, jnp.abs(self.value) / _LEAST, 0).astype(_U)
        sign = (_lax.bitcast_convert_type(self.value, _W) >> _W(32)).astype(_U) & _U(1 << 31)
        return jnp.where(small, float_of(count | sign), jnp.where(small, 0, self.value).astype(np.float32))
