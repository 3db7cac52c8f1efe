"""Evolution strategies: sample and update against plain NumPy on arrays of their own."""

import ml_dtypes
import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.noise.kinds import NORMAL
from flatstore.noise.normal import normals
from flatstore.noise.philox import numbers
from tests.steps import normal_steps

TREE = {"a": {"bias": np.zeros(7, "f4"), "kernel": np.zeros((5, 9), "f4")}, "b": np.zeros((), "f4"), "n": np.int32(3)}


def a_store():
    store = fs.Store.from_tree(TREE)
    store["a/kernel"] = np.random.default_rng(0).standard_normal((5, 9)).astype("f4")
    return store


def noise_of(layout, scale, key):
    """What `Normal(scale)` adds under one seed: a packed vector, zero where nothing trains."""
    vector = np.zeros(layout.size, "f4")
    for leaf in layout.homes:
        if leaf.trainable:
            at = slice(leaf.index, leaf.index + leaf.size)
            whole = normals(numbers(NORMAL, 16, key, at.start, at.stop)[0])
            vector[at] = normal_steps(scale, 2.0**-19, whole) * 2.0**-19
    return vector


@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sample_is_the_store_plus_the_noise_of_its_seed(order, sign):
    store, keys = a_store(), fs.seeds(1, 5)
    pop = fs.Population.zeros(store.layout, 5, order=order)
    es.sample(pop, store, fs.Normal(0.1), keys, sign=sign)
    for i, member in enumerate(pop):
        expected = store.to_vector().astype("f4") + sign * noise_of(store.layout, 0.1, keys[i : i + 1])
        expected[-1] = 0  # the shared count is the population's own
        assert member.to_vector().astype("f4").tobytes() == expected.tobytes()


def test_antithetic_members_come_in_pairs():
    store, keys = a_store(), fs.seeds(1, 3)
    pop, plain = (fs.Population.zeros(store.layout, n) for n in (6, 3))
    es.sample(pop, store, fs.Normal(0.1), keys, antithetic=True)
    es.sample(plain, store, fs.Normal(0.1), keys)
    assert pop.to_vector()[0::2].tobytes() == plain.to_vector().tobytes()
    es.sample(plain, store, fs.Normal(0.1), keys, sign=-1)
    assert pop.to_vector()[1::2].tobytes() == plain.to_vector().tobytes()


@pytest.mark.parametrize("noise", [fs.Normal(0.1), fs.Rademacher({"*/kernel": 0.1, "*": 0})])
def test_blocks_and_threads_do_not_change_a_sample(cut, noise):
    results = set()
    for width, task, per_draw in ((16, 1, 1), (1024, 1 << 20, 16), (7, 100, 5)):
        cut(WIDTH=width, TASK=task, SEEDS_PER_DRAW=per_draw)
        pop, store = fs.Population.zeros(a_store().layout, 6), a_store()
        es.sample(pop, store, noise, fs.seeds(1, 6))
        results.add(pop.buffer.tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_sample_of_another_dtype_is_rounded_to_it_once(dtype, order):
    tree = {"a": np.linspace(-1, 1, 301).astype(dtype), "b": np.linspace(3, 4, 5).astype(dtype)}
    store, noise, keys = fs.Store.from_tree(tree), fs.Normal({"a": 0.1, "b": 0}), fs.seeds(4, 3)
    pop = fs.Population.zeros(store.layout, 3, order=order)
    es.sample(pop, store, noise, keys)
    delta = noise.delta(store.layout.leaf("a"), keys, 0, 301)
    real = np.float64 if dtype == np.float64 else np.float32
    assert pop["a"].tobytes() == (store["a"].astype(real) + delta).astype(dtype).tobytes()
    assert (pop["b"] == store["b"]).all()


def test_the_store_may_be_the_sample_or_one_of_the_members():
    store, pop, keys = a_store(), fs.Population.from_tree(TREE, 6), fs.seeds(1, 6)
    es.sample(pop, store, fs.Normal(0.1), keys)
    expected = pop.to_vector()
    pop[3].assign(store.tree)
    es.sample(pop, pop[3], fs.Normal(0.1), keys)
    assert pop.to_vector().tobytes() == expected.tobytes()
    es.sample(store, store, fs.Normal(0.1), keys[0])
    assert store.to_vector()[:-1].tobytes() == expected[0][:-1].tobytes()


def test_a_leaf_of_scale_zero_and_a_frozen_leaf_are_not_touched():
    store = a_store()
    es.snap(store, fs.Normal(0.1))
    es.update(store, fs.Normal({"*/kernel": 0.1, "*": 0}), fs.seeds(1, 2), [1, 1])
    assert not store["a/bias"].any()
    assert store["n"] == 3


BAD = [
    (lambda s, p: es.sample(p, s, fs.Normal(0.1), fs.seeds(1, 3)), r"expected 4 seeds for 4 members, got shape \(3,\)"),
    (lambda s, p: es.sample(p, s, fs.Normal(0.1), fs.seeds(1, 4), antithetic=True), "expected 2 seeds for 4 members"),
    (lambda s, p: es.sample(p, s, fs.Normal(0.1), fs.seeds(1, 4), sign=2), "expected sign 1 or -1, got 2; fix"),
    (lambda s, p: es.update(s, fs.Normal(0.1), fs.seeds(1, 2), [1.0]), "expected a weight for each seed, a real"),
    (lambda s, p: es.update(s, fs.Normal(0.1), fs.seeds(1, 2), [1.0, np.nan]), "expected finite weights"),
    (lambda s, p: es.sample(p, fs.Store.from_tree({"w": np.zeros(3, "f4")}), fs.Normal(1), fs.seeds(1, 4)),
     r"(?s)of out unlike the store's layout.*'w': expected float32\[3\] at 0, got nothing; fix"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
def test_a_bad_argument_is_an_error_and_nothing_is_written(call, message):
    store = a_store()
    pop = fs.Population.from_tree(TREE, 4)
    before = store.buffer.tobytes(), pop.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        call(store, pop)
    assert (store.buffer.tobytes(), pop.buffer.tobytes()) == before


def test_what_is_lent_is_neither_sampled_into_nor_updated():
    store = a_store()
    pop = fs.Population.from_tree(TREE, 4)
    with pop.lend(), pytest.raises(fs.LentError):
        es.sample(pop, store, fs.Normal(0.1), fs.seeds(1, 4))
    with store.lend(), pytest.raises(fs.LentError):
        es.update(store, fs.Normal(0.1), fs.seeds(1, 4), np.ones(4))


def test_a_sample_goes_into_a_store_as_into_a_member():
    store, out = a_store(), fs.Store.from_tree(TREE)
    pop = fs.Population.zeros(store.layout, 1)
    es.sample(out, store, fs.Normal(0.1), 7)
    es.sample(pop, store, fs.Normal(0.1), [7])
    assert out.flat.tobytes() == pop[0].copy().flat.tobytes()
    assert out["n"] == 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_update_from_zero_with_weight_one_is_the_sample_to_the_bit(dtype):
    layout = fs.Layout.from_tree({"w": np.zeros(4001, dtype)})
    zero, moved, sampled = (fs.Store.zeros(layout) for _ in range(3))
    for noise in (fs.Normal(0.3), fs.Rademacher(0.7)):
        moved["w"][:] = 0
        es.update(moved, noise, [5], [1.0])
        es.sample(sampled, zero, noise, 5)
        assert moved["w"].tobytes() == sampled["w"].tobytes()


def test_float_seeds_are_refused_not_truncated():
    with pytest.raises(ValueError, match="expected a vector of seeds in 0 .. 2..64 - 1, got float64"):
        es.update(a_store(), fs.Normal(0.1), [0.5, 1.7], [1, 1])


MASKED_SEEDS = [np.ma.masked_array([1, 2], [False, True]), np.ma.masked_array([1, 2])]


@pytest.mark.parametrize("seeds", MASKED_SEEDS)
def test_masked_seeds_are_refused_and_nothing_is_written(seeds):
    store = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    pop = fs.Population.zeros(store.layout, 2)
    noise = fs.Normal(0.1)
    for call in (
        lambda: es.sample(pop, store, noise, seeds),
        lambda: es.update(store, noise, seeds, [1.0, 2.0]),
        lambda: es.weighted_seeds(noise, seeds, [1.0, 2.0]),
        lambda: es.words(seeds),
    ):
        with pytest.raises(TypeError, match="'seeds': expected an array without a mask, got a Masked.*; fix: pass x.f"):
            call()
    assert not pop.buffer.any()
    assert not store.buffer.any()


def test_masks_are_refused_in_journals_ranks_fitness_and_choices():
    store, noise = fs.Store.from_tree({"w": np.zeros(3, "f4")}), fs.Rademacher(0.5)
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    pop = fs.Population.zeros(store.layout, 4)
    for call in (
        lambda: es.replay(store, noise, [(fs.seeds(1, 2), masked)]),
        lambda: es.centred_ranks([1.0, np.ma.masked]),
        lambda: next(es.mezo(store, lambda params, n: np.ma.masked, seed=1, noise=noise, rate=1.0)),
        lambda: fs.ga.step(pop, np.ones(4), seed=1, mutate=None, select=lambda f, n, s: np.ma.zeros(n, int)),
    ):
        with pytest.raises(TypeError, match="expected an array without a mask, got a Masked"):
            call()
    assert not store.buffer.any()


@pytest.mark.parametrize("weights", [np.ma.masked_array([1.0, 2.0], [False, True]), [1.0, np.ma.masked]])
def test_masked_weights_are_refused_and_nothing_is_written(weights):
    store = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    noise = fs.Normal(0.1)
    for call in (
        lambda: es.update(store, noise, fs.seeds(1, 2), weights),
        lambda: es.weighted_seeds(noise, fs.seeds(1, 2), weights),
    ):
        with pytest.raises(TypeError, match="'weights': expected an array without a mask, got a Masked.*; fix: pass"):
            call()
    assert not store.buffer.any()
