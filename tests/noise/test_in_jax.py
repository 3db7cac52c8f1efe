"""The draws in JAX have the bits of the draws in NumPy: inside jit, vmap and shard_map, at every index and seed."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.noise import philox
from flatstore.noise.in_jax import as_words, high_word, numbers, opaque_zero, philox4x32, plus, whole
from flatstore.noise.kinds import CROSSOVER, NORMAL, RADEMACHER, ROUNDING
from flatstore.noise.seeding import seeds

NOISES = [fs.Normal(0.02), fs.Rademacher(0.1)]
STARTS = [0, 5, 2**32 - 100, 2**35 - 77, 2**39 - 130, 2**63 + 9]
WORD = st.integers(0, 2**32 - 1)


def in_words(index):
    """The index of 300 parameters from one on, as words."""
    index = np.arange(300, dtype=np.uint64) + np.uint64(index)
    return tuple(es.words(index).T)


@given(st.lists(st.lists(WORD, min_size=6, max_size=6), min_size=20, max_size=20))  # of one shape: compiled once
def test_philox_gives_the_words_of_the_published_one(rows):
    table = np.array(rows, np.uint32)
    expected = philox.philox4x32(table[:, :4], table[:, 4:])
    got = philox4x32([jnp.asarray(column) for column in table.T[:4]], tuple(table.T[4:]))
    assert np.stack(got, axis=1).tobytes() == expected.tobytes()


@given(st.lists(st.tuples(WORD, WORD), min_size=50, max_size=50))
def test_the_high_word_of_a_product_whether_64_bit_types_are_on_or_off(pairs):
    a, b = np.array(pairs, np.uint32).T
    expected = (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32)
    for on in (False, True):
        with jax.enable_x64(on):
            for call in (high_word, jax.jit(high_word)):
                got = call(jnp.asarray(a), jnp.asarray(b))
                assert got.dtype == np.uint32
                assert np.asarray(got).tolist() == expected.tolist()
    assert jnp.asarray(0.5).dtype == np.float32


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_two_words_are_added_as_64_bits(a, b):
    low, high = plus(as_words(a), as_words(b))
    assert int(low) + (int(high) << 32) == (a + b) % 2**64


@pytest.mark.long(but="-16-")
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("kind", "width"), [(NORMAL, 16), (RADEMACHER, 1), (CROSSOVER, 8), (ROUNDING, 32)])
def test_a_number_for_each_index_and_seed(start, kind, width):
    keys = seeds(3, 2)
    expected = philox.numbers(kind, width, keys, start, start + 300)
    draw = jax.jit(lambda seed, index: numbers(kind, width, (seed[0], seed[1]), index))
    for seed, row in zip(es.words(keys), expected, strict=True):
        got = draw(seed, in_words(start))
        assert np.asarray(got).tolist() == row.tolist()


@pytest.mark.parametrize("noise", NOISES)
def test_draws_are_the_same_under_vmap_and_with_constants_folded(noise):
    keys, start = seeds(4, 5), 2**32 - 100
    expected = noise.whole.take(philox.numbers(noise.kind, noise.width, keys, start, start + 300)).astype(np.int32)

    def draw(low, high):
        return whole(noise, (low, high), in_words(start))

    mapped = jax.jit(jax.vmap(draw))(*es.words(keys).T)
    assert np.asarray(mapped).tobytes() == expected.tobytes()
    for key, row in zip(keys, expected, strict=True):
        folded = jax.jit(lambda key=key: draw(*as_words(int(key))))()
        assert np.asarray(folded).tobytes() == row.tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f2", ml_dtypes.bfloat16, "i4", "u1", "?", "c8"])
@pytest.mark.parametrize("value", [0, 1, -1, 3])
def test_the_zero_that_xla_does_not_know_is_zero(dtype, value):
    scalar = np.array(value).astype(dtype)
    assert jax.jit(opaque_zero)(scalar) == jax.jit(opaque_zero)(scalar, jnp.float32(np.nan)) == 0


SHARDED = """
import jax, numpy as np, flatstore as fs
from flatstore import es
from jax.sharding import PartitionSpec as P

assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
tree = {"a": rng.standard_normal(5).astype("f4"), "w": rng.standard_normal((6, 7)).astype("f4")}
store, keys, noise = fs.Store.from_tree(tree), fs.seeds(1, 4), fs.Normal(0.02)
es.snap(store, noise)
params, layout = jax.tree.map(np.array, store.tree), store.layout
weighted = es.weighted_seeds(noise, keys, [0.5, -1, 2, 0.25])

pop = fs.Population.zeros(layout, 4)
es.sample(pop, store, noise, keys)
over_seeds = jax.shard_map(
    lambda params, seeds: jax.vmap(lambda seed: es.virtual(params, noise, seed))(seeds),
    mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"),
)
got = jax.jit(over_seeds)(params, es.words(keys))
for path in ("a", "w"):
    assert np.asarray(got[path]).tobytes() == np.ascontiguousarray(pop[path]).tobytes(), path

def columns(w):
    at = (0, jax.lax.axis_index("d") * w.shape[1])
    return es.virtual(w, noise, 7, layout=layout, within="w", at=at)

def rows(w, weighted):
    return es.updated(w, noise, weighted, layout=layout, within="w", at=jax.lax.axis_index("d") * w.shape[0])

wide = {"a": params["a"], "w": np.zeros((7, 6), "f4")}
layout = fs.Layout.from_tree(wide)
trial = fs.Store.from_tree(wide)
es.perturb(trial, noise, 7)
got = jax.jit(jax.shard_map(columns, mesh=mesh, in_specs=P(None, "d"), out_specs=P(None, "d")))(wide["w"])
assert np.asarray(got).tobytes() == trial["w"].tobytes()
layout = store.layout
got = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"), check_vma=False))(
    params["w"], weighted
)
es.update(store, noise, keys, [0.5, -1, 2, 0.25])
assert np.asarray(got).tobytes() == store["w"].tobytes()
"""


def test_two_devices_draw_what_one_draws_for_their_seeds_and_for_their_shards():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
