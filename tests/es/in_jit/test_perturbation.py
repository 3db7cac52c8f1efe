"""`es.virtual` inside jit has the bits of `es.sample` and `es.perturb`: whole trees, parts of them, all dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.kernels.xla import added
from flatstore.trees.paths import by_path
from tests.example_trees import Pair

NOISES = [fs.Normal(0.02), fs.Rademacher(0.1), fs.Normal({"a/bias": 0, "a/*": 0.5, "*": 0.001}, bound=16)]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
SEEDS = np.array([0, 7, 2**64 - 1], np.uint64)


def a_tree(dtype, size=1_501):
    """Of all magnitudes: subnormal numbers and negative zeros too."""
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(size) * 2.0 ** rng.uniform(-150, 3, size)
    wide[:2] = 0.0, -0.0
    return {
        "a": {"bias": rng.standard_normal(7).astype(dtype), "kernel": rng.standard_normal((31, 3)).astype(dtype)},
        "b": np.array(0.5, dtype),
        "c": {"empty": np.zeros((0, 3), dtype), "frozen": np.arange(9, dtype="i4"), "kernel": wide.astype(dtype)},
    }


def same_bits(tree, store):
    made = by_path(tree)
    assert made.keys() == store.layout.by_path.keys()
    for path, value in made.items():
        value = np.asarray(value)
        assert (value.dtype, value.shape) == (store[path].dtype, store[path].shape)
        assert value.tobytes() == store[path].tobytes(), path


@pytest.mark.long(but="float32-noise0")
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_virtual_tree_has_the_bits_that_sample_writes(noise, dtype):
    store = fs.Store.from_tree(a_tree(dtype))
    out = store.copy()
    with jax.enable_x64(dtype == np.float64):
        make = jax.jit(lambda params, seed, sign: es.virtual(params, noise, seed, sign=sign))
        for key, seed in zip(SEEDS, es.words(SEEDS), strict=True):
            for sign in (1, -1):
                es.sample(out, store, noise, [key], sign=sign)
                same_bits(make(store.tree, seed, sign), out)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_on_the_grid_it_has_the_bits_of_perturb_through_a_lend_too_and_is_taken_back(noise, dtype):
    with jax.enable_x64(dtype == np.float64):
        store = fs.Store.from_tree(a_tree(dtype))
        es.snap(store, noise)
        there = jax.jit(lambda params, sign: es.virtual(params, noise, (3, 4), sign=sign))
        for sign in (1, -1, 2, -2):
            with store.lend("jax") as params:
                trial = jax.block_until_ready(there(params, sign))
            same_bits(there(trial, -sign), store)
            with es.perturbed(store, noise, (3, 4), sign=sign):
                same_bits(trial, store)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("delta", [0.0, -0.0, 2.0**-88, -0.5])
def test_a_sum_keeps_numbers_that_xla_takes_for_zero(dtype, delta):
    size = 8 * np.dtype(dtype).itemsize
    bits = np.random.default_rng(0).integers(0, 2**63, 2_000, dtype=np.uint64).astype(f"u{size // 8}")
    bits[:1_000] >>= 12  # no exponent
    bits[::2] |= bits.dtype.type(1 << (size - 1))
    bits[:2] = 0, 1 << (size - 1)
    x = bits.view(dtype)[np.isfinite(bits.view(dtype))]
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(jax.jit(added)(x, np.full_like(x, delta)))
    assert got.tobytes() == (x + dtype(delta)).tobytes()


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_what_xla_rounds_itself_is_read_as_rounded(dtype):
    noise, wide = fs.Normal(0.02), np.random.default_rng(1).standard_normal(1_000).astype("f4")
    store = fs.Store.from_tree({"w": wide.astype(dtype)})
    out = store.copy()
    es.sample(out, store, noise, [7])

    def around(x):
        return es.virtual({"w": x.astype(dtype)}, noise, 7)["w"].astype("f4")

    assert np.asarray(jax.jit(around)(wide)).tobytes() == out["w"].astype("f4").tobytes()


def test_a_population_by_vmap_and_by_map_has_the_bits_of_sample():
    noise, keys = fs.Normal(0.02), fs.seeds(1, 6)
    store = fs.Store.from_tree({"a": a_tree(np.float32)["a"], "c": {"kernel": np.ones(99, "f4")}})
    pop = fs.Population.zeros(store.layout, 6)
    es.sample(pop, store, noise, keys)

    def member(seed):
        return es.virtual(store.tree, noise, seed)

    for over in (jax.vmap(member), lambda seeds: jax.lax.map(member, seeds, batch_size=4)):
        made = jax.jit(over)(es.words(keys))
        assert np.asarray(made["c"]["kernel"]).tobytes() == np.ascontiguousarray(pop["c/kernel"]).tobytes()
    pairs = fs.Population.zeros(store.layout, 12)
    es.sample(pairs, store, noise, keys, antithetic=True)
    both = jax.vmap(
        lambda seed: jax.vmap(lambda sign: es.virtual(store.tree, noise, seed, sign=sign))(jnp.array([1, -1]))
    )
    made = np.asarray(jax.jit(both)(es.words(keys))["a"]["kernel"])
    assert made.tobytes() == np.ascontiguousarray(pairs["a/kernel"]).tobytes()


LEAF = st.tuples(
    st.sampled_from(["float16", "float32", "bfloat16", "int32", "bool"]), st.lists(st.integers(0, 3), max_size=3)
)
TREES = st.recursive(
    LEAF.map(lambda leaf: np.full(leaf[1], 1, leaf[0])) | st.sampled_from([None, "rides along"]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner).map(lambda two: Pair(*two)),
    max_leaves=6,
)


@settings(max_examples=20)
@given(TREES, st.integers(0, 2**64 - 1))
def test_any_tree_keeps_its_nodes_and_has_the_bits_of_sample(tree, seed):
    tree = {"first": np.ones(3, "f4"), "rest": tree}
    store, noise = fs.Store.from_tree(tree), fs.Rademacher(0.25)
    out = store.copy()
    es.sample(out, store, noise, [seed])

    @jax.jit
    def arrays():
        made = es.virtual(tree, noise, seed)
        assert jax.tree.structure(made) == jax.tree.structure(tree)
        return [x for x in jax.tree.leaves(made) if not isinstance(x, str)]

    expected = [x for x in jax.tree.leaves(out.tree) if not isinstance(x, str)]
    assert [np.asarray(x).tobytes() for x in arrays()] == [np.asarray(x).tobytes() for x in expected]


def test_frozen_leaves_and_leaves_of_scale_zero_are_the_same_objects():
    def look(tree):
        made = es.virtual(tree, NOISES[2], 7)
        assert made["c"]["frozen"] is tree["c"]["frozen"]
        assert made["a"]["bias"] is tree["a"]["bias"]
        layout = fs.Layout.from_tree(tree, trainable="a/*")
        assert es.virtual(tree, fs.Normal(0.1), 7, layout=layout)["b"] is tree["b"]
        assert es.updated(tree, NOISES[2], es.weighted_seeds(NOISES[2], [1], [0.5]))["a"]["bias"] is tree["a"]["bias"]

    jax.eval_shape(look, a_tree(np.float32))


def test_tied_leaves_take_the_noise_of_their_home_where_the_layout_says_so():
    shared = np.ones(5, "f4")
    store = fs.Store.from_tree({"in": shared, "mid": np.ones(3, "f4"), "out": shared})
    out, noise = store.copy(), fs.Normal({"out": 0.5, "*": 0.1})
    with pytest.raises(ValueError, match="expected globs that match a leaf, got 'out'"):
        es.virtual(store.tree, noise, 7, layout=store.layout)
    noise = fs.Normal({"in": 0.5, "*": 0.1})
    es.sample(out, store, noise, [7])
    made = jax.jit(lambda tree: es.virtual(tree, noise, 7, layout=store.layout))(store.tree)
    same_bits(made, out)


def test_layers_of_a_scan_and_other_parts_of_leaves_take_the_noise_of_their_place():
    noise, rng = fs.Normal(0.02), np.random.default_rng(0)
    layers = {"b": rng.standard_normal((4, 6)).astype("f4"), "w": rng.standard_normal((4, 5, 6)).astype("f4")}
    store = fs.Store.from_tree({"first": np.ones(3, "f4"), "layers": layers})
    out, layout = store.copy(), store.layout
    es.sample(out, store, noise, [7])

    def step(carry, layer):
        i, stacked = layer
        return carry, es.virtual(stacked, noise, 7, layout=layout, within="layers", at=i)

    made = jax.jit(lambda layers: jax.lax.scan(step, 0, (jnp.arange(4), layers))[1])(layers)
    for name in layers:
        assert np.asarray(made[name]).tobytes() == out[f"layers/{name}"].tobytes()
    block = jax.jit(lambda x, i: es.virtual(x, noise, 7, layout=layout, within="layers/w", at=(1, i, 2)))
    got = block(layers["w"][1:3, 2:4, 2:5], jnp.uint8(2))
    assert np.asarray(got).tobytes() == out["layers/w"][1:3, 2:4, 2:5].tobytes()


@pytest.mark.parametrize("noise", NOISES[:2])
@pytest.mark.parametrize("row", [2**19 - 1, 2**20, 2**24 + 5])
def test_parts_behind_the_first_two_to_the_32nd_parameters_take_their_own_noise(noise, row):
    layout = fs.Layout.from_tree(
        {"a": jax.ShapeDtypeStruct((5,), "f4"), "w": jax.ShapeDtypeStruct((2**25, 2**13), "f4")}
    )
    start = 5 + row * 2**13 + 2**13 - 9
    expected = noise.delta(layout.leaf("w"), np.array([7], "u8"), start - 5, start + 4)[0]
    part = jax.jit(lambda x, i: es.virtual(x, noise, 7, layout=layout, within="w", at=(i, 2**13 - 9)))
    assert np.asarray(part(jnp.zeros(9), row)).tobytes() == expected.tobytes()
    assert np.asarray(part(jnp.zeros((1, 9)), row)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_gradients_pass_as_if_the_noise_were_a_constant(dtype):
    tree = {"w": jnp.linspace(-1, 1, 8, dtype=dtype)}
    made = es.virtual(tree, fs.Normal(0.02), 7)["w"]
    slope = jax.jit(jax.grad(lambda tree: (es.virtual(tree, fs.Normal(0.02), 7)["w"].astype("f4") ** 2).sum()))(tree)
    assert np.allclose(slope["w"].astype("f4"), 2 * made.astype("f4"), rtol=1e-2)


def test_snapped_has_the_bits_of_snap_and_on_grid_sees_what_snap_sees():
    noise = fs.Normal(0.02, bound=8)
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            store = fs.Store.from_tree(
                {"w": np.append(np.random.default_rng(0).standard_normal(999), -0.0).astype(dtype)}
            )
            tree, good = jax.tree.map(jnp.array, store.tree), jax.jit(lambda tree: es.on_grid(tree, noise))
            assert not good(tree)
            made = jax.jit(lambda tree: es.snapped(tree, noise))(tree)
            es.snap(store, noise)
            same_bits(made, store)
            assert good(made)
            for wrong in (-0.0, np.nan, 8.0, -9.0, 0.3):
                assert not good({"w": made["w"].at[3].set(wrong)})
