"""`es.updated` inside jit has the bits of `es.update`: sums of integers in two words, on the grid and off it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.es.in_jit.update import as_float, product, shifted
from flatstore.trees.paths import by_path

NOISES = [fs.Normal(0.02), fs.Rademacher(0.1), fs.Normal({"a/bias": 0, "a/*": 0.5, "*": 0.001}, bound=16)]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
WEIGHTS = [[0.5, -1, 2, 0], [1e-7, -3e-9, 0, 0], [7.25, 1e-12, 0, 0]]
I32, I64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**62), 2**62)
FEW = {"min_size": 20, "max_size": 20}  # of one length, so that each is compiled once


def a_store(dtype, noise=None, size=100_001):
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(size) * (1 if noise else 2.0 ** rng.uniform(-150, 3, size))
    tree = {
        "a": {"bias": rng.standard_normal(7).astype(dtype), "kernel": rng.standard_normal((31, 3)).astype(dtype)},
        "c": {"empty": np.zeros((0, 3), dtype), "frozen": np.arange(9, dtype="i4"), "kernel": wide.astype(dtype)},
    }
    store = fs.Store.from_tree(tree)
    if noise is not None:
        es.snap(store, noise)
    return store


def same_bits(tree, store):
    for path, value in by_path(tree).items():
        assert np.asarray(value).tobytes() == store[path].tobytes(), path


def words(numbers):
    return tuple(jnp.asarray(column) for column in es.words(np.array([x % 2**64 for x in numbers], np.uint64)).T)


def of_words(number):
    low, high = (np.asarray(word).astype(object) for word in number)
    return [int(x) - (2**64 if x >= 2**63 else 0) for x in low + high * 2**32]


@given(st.lists(st.tuples(I32, I32), **FEW))
def test_the_product_of_two_integers_is_exact_in_two_words(pairs):
    a, b = np.array(pairs, np.int32).T
    assert of_words(jax.jit(product)(a, b)) == [x * y for x, y in pairs]


@given(st.lists(I64, **FEW), st.integers(0, 63))
def test_a_shift_rounds_down(numbers, count):
    right = jax.jit(shifted, static_argnames="signed")
    assert of_words(right(words(numbers), np.int32(count), signed=True)) == [x >> count for x in numbers]
    assert of_words(right(words([abs(x) for x in numbers]), np.int32(count))) == [abs(x) >> count for x in numbers]


@given(st.lists(I64 | st.integers(-(2**33), 2**33), **FEW))
def test_two_words_become_the_nearest_float(numbers):
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            got = jax.jit(as_float, static_argnums=1)(words(numbers), dtype)
        assert np.asarray(got).tolist() == np.array(numbers).astype(dtype).tolist()


@pytest.mark.parametrize(
    ("noise", "dtype", "exact"),
    [
        (NOISES[0], np.float32, True),
        (NOISES[2], np.float64, True),
        (NOISES[2], ml_dtypes.bfloat16, False),
        *(
            pytest.param(noise, dtype, exact, marks=pytest.mark.long)
            for noise, dtype, exact in [
                (NOISES[0], np.float64, True),
                *((NOISES[1], dtype, True) for dtype in DTYPES[:3]),
                (NOISES[2], np.float32, True),
                (NOISES[0], np.float32, False),
                *((NOISES[2], dtype, False) for dtype in DTYPES[:3]),
            ]
        ),
    ],
)
def test_updated_has_the_bits_of_update(noise, dtype, exact):
    on_grid = exact and np.dtype(dtype).itemsize > 2
    store = a_store(dtype, noise if on_grid else None)
    with jax.enable_x64(dtype == np.float64):
        step = jax.jit(lambda params, weighted: es.updated(params, noise, weighted, exact=exact))
        back = jax.jit(lambda params, weighted: es.updated(params, noise, weighted, sign=-1))
        for weights in WEIGHTS:
            keys, before = fs.seeds(3, len(weights)), store.copy()
            es.update(store, noise, keys, weights, exact=exact)
            weighted = es.weighted_seeds(noise, keys, weights)
            made = step(before.tree, weighted)
            same_bits(made, store)
            if on_grid and noise is NOISES[0]:
                same_bits(back(made, weighted), before)


@pytest.mark.parametrize("weights", [[], [1.0], [1e-3] * 70], ids=len)
def test_any_number_of_seeds(weights):
    store, keys = fs.Store.from_tree({"w": np.zeros(300, "f4"), "scalar": np.float32(0.5)}), fs.seeds(3, len(weights))
    before = store.copy()
    es.update(store, NOISES[0], keys, weights)
    weighted = es.weighted_seeds(NOISES[0], keys, weights)
    same_bits(jax.jit(lambda params: es.updated(params, NOISES[0], weighted))(before.tree), store)


def test_other_weights_and_seeds_compile_nothing_anew():
    noise, traces = fs.Rademacher(0.1), []

    @jax.jit
    def step(params, weighted):
        traces.append(None)
        return es.updated(params, noise, weighted)

    params = {"w": jnp.zeros(5)}
    for scale in (1.0, 1e-9, 123.0):
        params = step(params, es.weighted_seeds(noise, fs.seeds(1, 2), [scale, -0.5 * scale]))
    assert len(traces) == 1


def test_a_generation_of_perturb_score_update_and_taking_back_runs_on_the_device_as_on_the_host():
    noise, store = fs.Normal(0.02), fs.Store.from_tree({"w": np.ones(1_000, "f4")})
    es.snap(store, noise)
    params = jax.tree.map(jnp.array, store.tree)
    move = jax.jit(lambda x, seed, sign: es.virtual(x, noise, seed, sign=sign), donate_argnums=0)
    step = jax.jit(lambda x, weighted: es.updated(x, noise, weighted), donate_argnums=0)
    for seed in range(20):
        for sign in (1, -2, 1):
            params = move(params, es.words([seed])[0], sign)
            es.perturb(store, noise, seed, sign=sign)
        params = step(params, es.weighted_seeds(noise, [seed], [0.01]))
        es.update(store, noise, [seed], [0.01])
    same_bits(params, store)
    assert es.on_grid(params, noise)


@pytest.mark.parametrize("noise", NOISES[:2])
def test_parts_of_a_leaf_are_moved_as_in_the_whole(noise):
    rng = np.random.default_rng(0)
    store = fs.Store.from_tree({"a": np.ones(3, "f4"), "w": rng.standard_normal((4, 5, 6)).astype("f4")})
    es.snap(store, noise)
    whole, layout, keys, weights = store["w"].copy(), store.layout, fs.seeds(1, 3), [0.5, -1, 2]
    es.update(store, noise, keys, weights)
    weighted = es.weighted_seeds(noise, keys, weights)
    move = jax.jit(lambda x, i: es.updated(x, noise, weighted, layout=layout, within="w", at=(i, 1, 2)))
    assert np.asarray(move(whole[1:3, 1:4, 2:5], 1)).tobytes() == store["w"][1:3, 1:4, 2:5].tobytes()
    assert np.asarray(move(whole[3, 1:4, 2:], 3)).tobytes() == store["w"][3, 1:4, 2:].tobytes()
    rows = jax.jit(lambda x, i: es.updated(x, noise, weighted, layout=layout, within="w", at=i))
    assert np.asarray(rows(whole[2], 2)).tobytes() == store["w"][2].tobytes()


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_16_bit_leaves_that_overflow_become_infinite_as_on_the_host(dtype):
    noise, store = fs.Rademacher(1.0), fs.Store.from_tree({"w": np.full(100, 3e4, dtype)})
    weighted = es.weighted_seeds(noise, [1], [1e5])
    made = jax.jit(lambda x: es.updated(x, noise, weighted))(store.tree)
    expected = 3e4 + 1e5 * noise.delta(store.layout.leaf("w"), np.array([1], "u8"), 0, 100)[0]
    if dtype == np.float16:
        assert np.asarray(made["w"]).astype("f4").tolist() == np.where(expected > 0, np.inf, -np.inf).tolist()
    else:
        assert np.allclose(np.asarray(made["w"]).astype("f4"), expected, rtol=2**-7)
