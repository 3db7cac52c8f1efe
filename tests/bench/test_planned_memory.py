"""What XLA plans to take, against what the shapes say."""

import jax
import jax.numpy as jnp
import pytest

from flatstore import bench

N = 1 << 16
SHAPE = jax.ShapeDtypeStruct((N,), jnp.float32)


def scaled(x, by=0.5):
    return x * by


@pytest.mark.parametrize("x", [SHAPE, jnp.zeros(N)], ids=["a shape", "an array"])
def test_arguments_outputs_and_temporaries_are_counted_in_bytes(x):
    assert bench.xla_memory(scaled, x) == (4 * N, 4 * N, 0, 0)
    assert bench.xla_memory(scaled, x).extra == 4 * N
    turned = bench.xla_memory(lambda x: jnp.sort(jnp.sin(x))[::2], x)
    assert turned.outputs == 2 * N and turned.temporaries >= 4 * N and turned.extra >= 6 * N


def test_what_is_donated_is_aliased_and_adds_nothing():
    planned = bench.xla_memory(jax.jit(scaled, donate_argnums=0), SHAPE, 0.25)
    assert planned.aliased == planned.outputs == 4 * N and planned.extra == 0


def test_nothing_is_called():
    def refused(x):
        jax.debug.callback(lambda: pytest.fail("it was called"))
        return x + 1

    assert bench.xla_memory(refused, SHAPE).outputs >= 4 * N


def test_a_platform_that_does_not_tell_is_named(monkeypatch):
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    with pytest.raises(RuntimeError, match="expected a platform that tells what it allocates, got cpu; fix: measure"):
        bench.xla_memory(scaled, SHAPE)
