"""Sums, products and roundings inside jit have the bits that NumPy gives, whatever XLA makes of them."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flatstore.kernels.xla import constant, loaded, product, rounded
from flatstore.noise import in_jax

N = 100_000


def numbers(dtype, seed):
    return np.random.default_rng(seed).normal(size=N).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_is_rounded_before_it_enters_a_sum(dtype):
    a, x, y = (numbers(dtype, seed) for seed in range(3))
    with jax.enable_x64(dtype == np.float64):
        fused = np.asarray(jax.jit(lambda a, x, y: a + x * y)(a, x, y))
        apart = np.asarray(jax.jit(lambda a, x, y: a + product(x, y))(a, x, y))
        by_constant = np.asarray(jax.jit(lambda a, x: a + product(jnp.full_like(x, 0.1), x))(a, x))
    assert apart.tobytes() == (a + x * y).tobytes()
    assert by_constant.tobytes() == (a + dtype(0.1) * x).tobytes()
    assert (fused == a + x * y).mean() < 1 or jax.default_backend() != "cpu"  # this is why


def test_products_keep_zeros_and_infinities():
    x = np.array([0.0, -0.0, np.inf, -np.inf, 1.5, -1.5, 0.0], "f4")
    y = np.array([-2.0, -2.0, -1.0, 3.0, -0.0, 2.0, np.inf], "f4")
    with np.errstate(invalid="ignore"):
        expected = x * y
    got = np.asarray(jax.jit(product)(x, y))
    assert np.isnan(got[-1]) and got[:-1].tobytes() == expected[:-1].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_stays_in_its_own_sum(dtype):
    x, low = numbers(dtype, 0), np.asarray(dtype(-0.3))

    def reflect(x, seed):
        bound = constant(low, in_jax.opaque_zero(seed))
        return bound + (bound - x)

    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(jax.jit(reflect)(x, np.uint32(7)))
    assert got.tobytes() == (low + (low - x)).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sixteen_bits_are_loaded_exactly_and_rounded_to_the_nearest(dtype):
    every = np.arange(1 << 16).astype(np.uint16).view(dtype)
    known = ~np.isnan(every.astype("f4"))
    wide = numbers("f4", 0) * np.float32(2.0) ** np.random.default_rng(1).integers(-30, 17, N).astype("f4")
    zero = np.uint32(0)
    assert np.asarray(jax.jit(loaded)(every, zero))[known].tobytes() == every.astype("f4")[known].tobytes()
    with np.errstate(over="ignore"):
        expected = wide.astype(dtype)
    assert np.asarray(jax.jit(lambda x: rounded(x, np.dtype(dtype)))(wide)).tobytes() == expected.tobytes()
