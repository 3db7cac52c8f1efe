"""Updates: the weighted noise of many seeds, summed in whole numbers, rounded once, against plain Python integers."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.noise.kinds import ROUNDING
from flatstore.noise.philox import numbers, philox4x32
from flatstore.threads import set_threads, threads

NOISES = [fs.Normal(0.02), fs.Rademacher(0.1), fs.Normal({"a/bias": 0, "a/*": 0.5, "*": 0.001}, bound=16)]


def a_store(noise=None, dtype=np.float32, size=1_501, align=64):
    rng = np.random.default_rng(0)
    tree = {
        "a": {"bias": rng.standard_normal(7).astype(dtype), "kernel": rng.standard_normal((31, 3)).astype(dtype)},
        "b": np.array(0.5, dtype),
        "c": {"frozen": np.arange(9, dtype="i4"), "kernel": rng.standard_normal(size).astype(dtype)},
    }
    store = fs.Store.from_tree(tree, align=align)
    if noise is not None:
        es.snap(store, noise)
    return store


def in_fixed_point(weights, step):
    """(whole numbers, bits behind the point), as exact fractions."""
    exact = [Fraction(float(w)) for w in weights]
    largest, total = max(map(abs, exact)), sum(map(abs, exact))

    def exponent(x):
        e = 0
        while x >= Fraction(2) ** e:
            e += 1
        while x and x < Fraction(2) ** (e - 1):
            e -= 1
        return e

    point = min(30 - exponent(largest), 37 - exponent(Fraction(float(total))), 56)
    return [round(w * Fraction(2) ** point) for w in exact], point


def key_of(keys, whole, point):
    low = high = 0
    for i, (key, w) in enumerate(zip(keys.tolist(), whole, strict=True)):
        counter = np.array([key % 2**32, key >> 32, w % 2**32, i], np.uint32)
        word = philox4x32(counter, np.array([point % 2**32, ROUNDING], np.uint32)).tolist()
        low, high = low ^ word[0], high ^ word[1]
    return np.array([low + (high << 32)], np.uint64)


def beside(store, noise, keys, weights):
    """{path: values} after an update on the grid, in integers of any size."""
    whole, point = in_fixed_point(weights, noise.step)
    out, key = {}, key_of(keys, whole, point)
    for leaf in store.layout.homes:
        values = store.leaf_matrix(leaf)[0].copy()
        if leaf.trainable and noise.scale_of(leaf.path):
            drop = max(0, point - (29 if leaf.dtype == np.float64 else 0))
            steps = noise.multiples(leaf, keys, 0, leaf.size).astype(object)
            total = sum(w * row for w, row in zip(whole, steps, strict=True))
            words = numbers(ROUNDING, 32, key, leaf.index, leaf.index + leaf.size)[0].tolist()
            fine = Fraction(noise.step) * Fraction(2) ** (drop - point)
            for i, word in enumerate(words):
                dither = word >> (32 - drop) if drop <= 32 else (2 * word + 1) << (drop - 33)
                exact = Fraction(float(values[i])) + ((total[i] + dither) >> drop) * fine
                values[i] = leaf.dtype.type(float(exact))
                assert Fraction(float(values[i])) == exact
        out[leaf.path] = values
    return out


WEIGHTS = [[1.0], [0.5, -1, 2, 0], [1e-7, -3e-9], [1e-3] * 70, [7.25, 1e-12]]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_update_is_the_sum_of_whole_numbers_rounded_once(noise, weights, dtype):
    store, keys = a_store(noise, dtype), fs.seeds(3, len(weights))
    expected = beside(store, noise, keys, weights)
    es.update(store, noise, keys, weights)
    for leaf in store.layout.homes:
        assert store.leaf_matrix(leaf)[0].tobytes() == expected[leaf.path].tobytes(), leaf.path


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_of_one_adds_what_perturb_adds(noise, dtype):
    store, other = a_store(noise, dtype), a_store(noise, dtype)
    es.update(store, noise, [9], [1.0])
    es.perturb(other, noise, 9)
    assert store.buffer.tobytes() == other.buffer.tobytes()


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9),
    st.sampled_from(NOISES),
    st.sampled_from([np.float32, np.float64]),
)
def test_an_update_is_taken_back_to_the_bit_and_leaves_the_store_on_the_grid(weights, noise, dtype):
    store, keys = a_store(noise, dtype), fs.seeds(5, len(weights))
    before = store.buffer.tobytes()
    es.update(store, noise, keys, weights)
    with es.perturbed(store, noise, 3):
        pass
    es.update(store, noise, keys, weights, sign=-1)
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_taking_back_and_updating_is_one_pass_of_the_same_bits(sign, noise, dtype):
    one, two, keys = a_store(noise, dtype), a_store(noise, dtype), fs.seeds(8, 3)
    weights = [0.01, 0.5, -0.3]
    for store in (one, two):
        es.perturb(store, noise, int(keys[0]), sign=sign)
    es.perturb(one, noise, int(keys[0]), sign=-sign)
    es.update(one, noise, keys, weights)
    es.update(two, noise, keys, weights, perturbed=sign)
    assert one.buffer.tobytes() == two.buffer.tobytes()


@pytest.mark.parametrize("noise", NOISES)
def test_threads_blocks_and_alignment_do_not_change_an_update(cut, noise):
    results, before = set(), threads()
    try:
        for n, width, task, per_draw, align in [(2, 256, 1 << 20, 64, 64), (1, 16, 1, 1, 1), (3, 999, 100, 7, 8)]:
            set_threads(n)
            cut(WIDTH=width, TASK=task, SEEDS_PER_DRAW=per_draw)
            store = a_store(noise, align=align)
            es.update(store, noise, fs.seeds(6, 20), np.linspace(-1, 1, 20))
            results.add(store.to_vector().tobytes())
    finally:
        set_threads(before)
    assert len(results) == 1


@pytest.mark.long
def test_updates_of_a_hundredth_of_a_step_are_not_lost_in_the_mean():
    noise, n = fs.Rademacher(0.02), 64
    dtypes = {"float32": noise.step, "float64": noise.grid("f8"), "float16": 2.0**-12, "bfloat16": 2.0**-9}
    # Weights so that an update is a hundredth of a step; for 16 bits, of the distance between numbers at 0.25.
    for names, unit in ((("float32", "float64"), noise.step), (("float16",), 2.0**-12), (("bfloat16",), 2.0**-9)):
        store = fs.Store.from_tree({name: np.full(n, 0.25, name) for name in names})
        weight, total = 0.01 * unit / 0.02, {name: np.zeros(n) for name in names}
        times = 10_000  # `python -m benchmarks.perturbation --only far_below_a_step` makes 100,000
        for seed in range(times):
            es.update(store, noise, [seed], [weight])
        for first in range(0, times, 1000):
            keys = np.arange(first, first + 1000, dtype=np.uint64)
            for name in names:
                total[name] += weight * noise.delta(store.layout.leaf(name), keys, 0, n).sum(axis=0, dtype=float)
        for name in names:
            error = (store[name].astype(float) - 0.25 - total[name]) / dtypes[name]
            # The variance of each rounding is at most 0.01 of a unit squared: a deviation of 10 units over all.
            assert np.abs(total[name]).max() > 0.8 * unit
            assert np.abs(error).max() < 5 * 10
            assert np.abs(error.mean()) < 5 * 10 / 8


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("centre", [1.0, -0.3, 3e-6, 0.0])
def test_16_bit_leaves_are_rounded_up_or_down_by_how_near_each_is(dtype, centre):
    noise, n = fs.Rademacher(0.02), 40_000
    store = fs.Store.from_tree({"w": np.full(n, centre, dtype)})
    start = float(store["w"][0])
    spacing = abs(float(np.spacing(dtype(start)) if dtype == np.float16 else np.ldexp(2.0**-7, np.frexp(start)[1] - 1)))
    weight = max(spacing, 1e-9) * 0.3 / 0.02
    es.update(store, noise, [5], [weight])
    delta = weight * noise.delta(store.layout.leaf("w"), np.array([5], np.uint64), 0, n)[0].astype(float)
    values = store["w"].astype(float)
    for up in (False, True):
        some = (delta > 0) == up
        assert len(np.unique(values[some])) <= 2
        assert abs(values[some].mean() - (start + delta[some][0])) < 5 * spacing / np.sqrt(some.sum()) + 1e-12


def test_a_float_sum_for_what_is_on_no_grid():
    noise, keys, weights = fs.Normal(0.02), fs.seeds(2, 5), np.array([0.5, -1, 2, 0.25, 1e-3])
    store = a_store()
    before = store.to_vector()
    es.update(store, noise, keys, weights, exact=False)
    for leaf in store.layout.homes:
        if leaf.trainable:
            exact = weights @ noise.delta(leaf, keys, 0, leaf.size).astype(float)
            old = before[leaf.index : leaf.index + leaf.size]
            assert np.allclose(store.leaf_matrix(leaf)[0], old + exact, rtol=2e-7, atol=1e-8)


def test_an_update_that_reaches_the_bound_is_an_error_and_the_store_as_it_was():
    noise = fs.Normal(0.02, bound=8)
    store = a_store(noise, size=60_000)
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="below the bound 8 after the move, got a .*; fix: pass smaller weights"):
        es.update(store, noise, fs.seeds(1, 3), [90.0, 0, 0])
    assert store.buffer.tobytes() == before
    es.perturb(store, noise, 5, sign=-1)
    perturbed = store.buffer.tobytes()
    with pytest.raises(ValueError, match="below the bound 8"):
        es.update(store, noise, [5], [90.0], perturbed=-1)
    assert store.buffer.tobytes() == perturbed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_move_past_the_bound_is_an_error_also_where_it_leads_below_it(dtype):
    noise, store = fs.Rademacher(0.02, bound=8), fs.Store.from_tree({"w": np.zeros(1000, dtype)})
    store["w"][:] = -3 * np.sign(noise.delta(store.layout.leaf("w"), np.array([5], np.uint64), 0, 1000)[0])
    before = store.buffer.tobytes()
    with pytest.raises(
        ValueError, match="'w': expected a move below the bound 8, got one of 8.99999; fix: pass smaller weights"
    ):
        es.update(store, noise, [5], [450.0])
    assert store.buffer.tobytes() == before


def test_an_update_of_a_store_off_the_grid_is_an_error_and_the_store_as_it_was():
    store = a_store()
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match=r"'a/bias': expected parameters on the grid of the noise .*; fix: es.snap"):
        es.update(store, NOISES[0], fs.seeds(1, 3), [1.0, 0, 0])
    assert store.buffer.tobytes() == before


BAD = [
    (
        {"weights": [1.0]},
        r"a weight for each seed, a real vector of shape \(2,\), got float64 of shape \(1,\)",
    ),
    ({"weights": [1.0, 1j]}, "got complex128 of shape"),
    ({"weights": [1.0, np.nan]}, r"expected finite weights, got \[nan\]; fix"),
    ({"weights": [np.inf, 1.0]}, r"expected finite weights, got \[inf\]; fix"),
    ({"weights": [1e300, 1e300]}, "expected weights whose magnitudes sum to 2 .. 64 at most, got 2e.300; fix"),
    ({"seeds": [-1, 2]}, "expected a vector of seeds in 0 .. 2..64 - 1, got int64"),
    ({"seeds": [0.5, 2.0]}, "expected a vector of seeds in 0 .. 2..64 - 1, got float64"),
    ({"sign": 0}, "expected sign 1 or -1, got 0; fix"),
    ({"perturbed": 2}, r"expected perturbed in \(0, 1, -1\), got 2; fix"),
    ({"sign": -1, "exact": False}, "expected float32 or float64 leaves on a grid to take back to the bit, got exact=F"),
    ({"noise": fs.Normal(1e-6)}, "'a/bias': expected a scale of 3.05e-05 .. 7.28 for the bound 32, got 1e-06; fix"),
    ({"seeds": np.zeros(0, "u8"), "weights": [], "perturbed": 1}, "expected the seed that the store is perturbed by"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_argument_is_an_error_and_nothing_is_written(change, message):
    store = a_store(NOISES[0])
    before = store.buffer.tobytes()
    arguments = {"noise": NOISES[0], "seeds": fs.seeds(1, 2), "weights": [1.0, 2.0]} | change
    with pytest.raises(ValueError, match=message):
        es.update(store, **arguments)
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sign": -1}, "expected the undo log of float16 leaves to take an update back, got none; fix: undo="),
        (
            {"perturbed": 1},
            "expected the undo log of float16 leaves to take the perturbation back, got none; fix: undo=",
        ),
    ],
)
def test_16_bit_leaves_are_taken_back_by_a_log_alone(change, message):
    store = a_store(dtype=np.float16)
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        es.update(store, NOISES[0], fs.seeds(1, 2), [1.0, 2.0], **change)
    assert store.buffer.tobytes() == before


def test_a_lent_store_is_not_updated():
    store = a_store(NOISES[0])
    before = store.buffer.tobytes()
    with store.lend(only="a/*"), pytest.raises(fs.LentError):
        es.update(store, NOISES[0], fs.seeds(1, 2), [1.0, 2.0])
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_centre_that_is_not_finite_is_an_error_and_nothing_is_written(dtype, value):
    store = a_store(dtype=dtype)
    store["c/kernel"][1_000] = value
    out, noise = fs.Population.zeros(store.layout, 2), NOISES[0]
    before = store.buffer.tobytes(), out.buffer.tobytes()
    for verb in (
        lambda: es.sample(out, store, noise, fs.seeds(1, 2)),
        lambda: es.update(store, noise, fs.seeds(1, 2), [1.0, 2.0], exact=False),
        lambda: es.perturb(store, noise, 1, exact=False),
    ):
        with pytest.raises(ValueError, match=rf"'c/kernel': expected finite parameters, got {value} at 1000 of 1,501"):
            verb()
        assert (store.buffer.tobytes(), out.buffer.tobytes()) == before


def test_no_seeds_move_nothing():
    store = a_store(NOISES[0])
    before = store.buffer.tobytes()
    es.update(store, NOISES[0], np.zeros(0, np.uint64), [])
    assert store.buffer.tobytes() == before
