"""Rules of the compiled loops, traced inside `jit`: NumPy's bits, also of numbers below float32's smallest normal."""

import jax
import numpy as np
import pytest

from flatstore.kernels.cpu import adam, momentum
from flatstore.kernels.xla import Single, with_64_bits

SETTINGS = {adam: (0.01, 1.3, 1e-8, 0.9, 0.1, 0.999, 0.001), momentum: (0.01, 0.9)}


def floats(seed, size=20_000):
    """float32 of all magnitudes: a third any bits but NaN and infinities, the rest from 1e-45 to 1e10."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, size, dtype=np.uint32).view("f4")
    x = np.where(rng.random(size) < 0.3, bits, rng.normal(size=size) * 10.0 ** rng.uniform(-45, 10, size))
    return np.where(np.isfinite(x), x, 0).astype("f4")


@pytest.mark.parametrize("rule", SETTINGS, ids=["adam", "momentum"])
def test_a_rule_has_the_bits_of_numpy(rule):
    x, gradient, mean = map(floats, range(3))
    numbers, settings = (x, gradient, mean, abs(floats(3))), tuple(map(np.float32, SETTINGS[rule]))
    function = getattr(rule, "py_func", rule)

    @jax.jit
    def traced(numbers, settings):
        with with_64_bits(True):
            made = function(*map(Single.of, numbers), tuple(map(Single.of, settings)))
            return [number.array() for number in made]

    with np.errstate(all="ignore"):
        expected = function(*numbers, settings)
    assert any((np.abs(want[want != 0]) < 2.0**-126).any() for want in expected)
    for want, got in zip(expected, traced(numbers, settings), strict=True):
        known = ~np.isnan(want)
        assert want[known].tobytes() == np.asarray(got)[known].tobytes()
