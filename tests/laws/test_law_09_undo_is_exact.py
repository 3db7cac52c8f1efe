"""Law 9: undo is exact. Perturb, then take it back: the same bits as before."""

import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.noise.normal import normals
from flatstore.noise.philox import numbers
from flatstore.threads import set_threads, threads
from tests.steps import normal_steps

NOISES = [fs.Normal(0.02), fs.Rademacher(0.1), fs.Normal({"*/bias": 0, "a/*": 0.5, "*": 0.001}, bound=16)]


def a_store(align=64, dtype=np.float32, size=5_001):
    """Leaves of two dtypes, a frozen one between, 0-d and size 0, on no grid yet."""
    rng = np.random.default_rng(0)
    tree = {
        "a": {"bias": rng.standard_normal(7).astype(dtype), "kernel": rng.standard_normal((31, 23)).astype(dtype)},
        "b": np.array(-0.0, dtype),
        "c": {
            "empty": np.zeros((0, 3), dtype),
            "frozen": np.arange(9, dtype="i4"),
            "kernel": rng.standard_normal(size),
        },
    }
    return fs.Store.from_tree(tree, align=align)


def snapped(noise, **keywords):
    store = a_store(**keywords)
    es.snap(store, noise)
    return store


def beside(store, noise, seed, sign):
    """{path: values} of the perturbed store, in plain NumPy from the definition of the draws."""
    out = {}
    for leaf in store.layout.homes:
        values = store.leaf_matrix(leaf)[0].copy()
        if leaf.trainable and noise.scale_of(leaf.path):
            drawn = numbers(noise.kind, noise.width, np.array([seed], np.uint64), leaf.index, leaf.index + leaf.size)[0]
            scale, step = noise.scale_of(leaf.path), 2.0 ** (np.ceil(np.log2(noise.bound)) - 24)
            if isinstance(noise, fs.Normal):
                steps = normal_steps(scale, step, normals(drawn))
            else:
                steps = np.where(drawn, -round(scale / step), round(scale / step))
            values = values + sign * (steps.astype(np.float32) * np.float32(step))
        out[leaf.path] = values.astype(leaf.dtype)
    return out


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("sign", [1, -1, 2, -2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_perturb_adds_the_noise_of_the_seed_and_the_other_sign_takes_it_back(noise, sign, dtype):
    store = snapped(noise, dtype=dtype)
    before, expected = store.buffer.tobytes(), beside(store, noise, 77, sign)
    es.perturb(store, noise, 77, sign=sign)
    for leaf in store.layout.homes:
        assert store.leaf_matrix(leaf)[0].tobytes() == expected[leaf.path].tobytes(), leaf.path
    assert store.buffer.tobytes() != before
    es.perturb(store, noise, 77, sign=-sign)
    assert store.buffer.tobytes() == before


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.sampled_from([1, -1])), min_size=1, max_size=8), st.randoms())
def test_perturbations_nest_and_are_taken_back_in_any_order(moves, random):
    store = snapped(NOISES[0], size=301)
    before = store.buffer.tobytes()
    for seed, sign in moves:
        es.perturb(store, NOISES[0], seed, sign=sign)
    random.shuffle(moves)
    for seed, sign in moves:
        es.perturb(store, NOISES[0], seed, sign=-sign)
    assert store.buffer.tobytes() == before


def test_a_thousand_cycles_change_nothing_where_plain_addition_drifts():
    noise = fs.Normal(0.001)
    store = snapped(noise)
    naive = store.flats["float32"].copy()
    before, start = store.buffer.tobytes(), naive.copy()
    for seed in range(1000):
        for sign in (1, -1, -1, 1):
            es.perturb(store, noise, seed, sign=sign)
    for seed in range(300):
        delta = np.float32(0.001) * noise.draw(np.array([seed], np.uint64), 0, naive.size)[0]
        naive = ((naive + delta) - 2 * delta) + delta
    assert store.buffer.tobytes() == before
    assert (naive != start).mean() > 0.5


@pytest.mark.parametrize("noise", NOISES)
def test_threads_blocks_and_alignment_do_not_change_a_perturbation(cut, noise):
    results, before = set(), threads()
    try:
        for n, width, task, align in [(2, 1024, 1 << 20, 64), (1, 16, 1, 1), (3, 4096, 100, 8), (2, 333, 1000, 64)]:
            set_threads(n)
            cut(WIDTH=width, TASK=task)
            store = snapped(noise, align=align)
            es.perturb(store, noise, (3, 4))
            results.add(store.to_vector().tobytes())
    finally:
        set_threads(before)
    assert len(results) == 1


def test_snap_rounds_to_the_nearest_multiple_and_clears_minus_zero():
    noise, store, plain = fs.Normal(0.02, bound=8), a_store(), a_store()
    es.snap(store, noise)
    for path, step in (("a/kernel", 2.0**-21), ("c/kernel", 2.0**-50)):
        assert (store[path] == np.rint(plain[path] / step) * step).all()
    assert not np.signbit(store["b"])
    again = store.buffer.tobytes()
    es.snap(store, noise)
    assert store.buffer.tobytes() == again


FAR = 400_000  # behind many blocks: what was done before is taken back


@pytest.mark.parametrize(
    ("path", "at", "value", "message"),
    [
        (
            "c/kernel",
            FAR,
            1 / 3,
            r"'c/kernel': expected parameters on the grid .* \(step 1.91e-06\), got .* 4.*; fix: es.snap",
        ),
        ("c/kernel", FAR, -0.0, "'c/kernel': expected parameters on the grid of the noise .*; fix: es.snap"),
        ("a/kernel", (0, 0), np.nan, "'a/kernel': expected finite parameters, got nan at 0 of 713; fix: go back"),
        (
            "c/kernel",
            FAR,
            32.0,
            "'c/kernel': expected parameters below the bound 32, got a largest magnitude of 32; fix: pass a larger",
        ),
        ("a/kernel", (0, 0), -1e30, "'a/kernel': expected parameters below the bound 32, .* magnitude of 1e.30; fix"),
    ],
)
def test_off_the_grid_or_past_the_bound_is_an_error_and_the_store_as_it_was(path, at, value, message):
    store = snapped(NOISES[0], size=500_000)
    store[path][at] = value
    before = store.buffer.tobytes()
    for sign in (1, -1):
        with pytest.raises(ValueError, match=message):
            es.perturb(store, NOISES[0], 5, sign=sign)
        assert store.buffer.tobytes() == before


def test_what_would_reach_the_bound_is_an_error_and_the_store_as_it_was():
    noise = fs.Rademacher(0.5)
    store = snapped(noise)
    store["c/kernel"][4_000] = 31.75
    before, errors = store.buffer.tobytes(), 0
    for sign in (1, -1):
        try:
            es.perturb(store, noise, 5, sign=sign)
            es.perturb(store, noise, 5, sign=-sign)
        except ValueError as error:
            errors += "below the bound 32 after the move, got a largest magnitude of 32.25" in str(error)
        assert store.buffer.tobytes() == before
    assert errors == 1


def test_snap_refuses_what_reaches_the_bound_before_it_writes():
    store = a_store()
    store["c/kernel"][5_000] = 32.0
    before = store.buffer.tobytes()
    with pytest.raises(
        ValueError, match="'c/kernel': expected parameters below the bound 32, .* 32; fix: pass a larger"
    ):
        es.snap(store, fs.Normal(0.02))
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_leaves_drift_only_if_that_is_asked_for(dtype):
    store, noise = snapped(fs.Normal(0.1), dtype=dtype), fs.Normal(0.1)
    before = store.buffer.tobytes()
    log = es.perturb(store, noise, 1)
    es.perturb(store, noise, 1, sign=-1, undo=log)
    assert store.buffer.tobytes() == before
    genes = store["a/kernel"].reshape(-1).astype("f4")
    leaf = store.layout.leaf("a/kernel")
    es.perturb(store, noise, 1, exact=False)
    expected = (genes + noise.delta(leaf, np.array([1], np.uint64), 0, leaf.size)[0]).astype(dtype)
    assert store["a/kernel"].tobytes() == expected.tobytes()


def test_perturbed_gives_the_store_back_also_after_an_exception_and_nests():
    noise = NOISES[0]
    store = snapped(noise)
    before = store.buffer.tobytes()
    with pytest.raises(RuntimeError, match="mine"):
        with es.perturbed(store, noise, 1) as same, es.perturbed(store, noise, 2, sign=-1):
            assert same is store
            assert store.buffer.tobytes() != before
            raise RuntimeError("mine")
    assert store.buffer.tobytes() == before


BAD = [
    ({"sign": 3}, "expected sign 1, -1, 2 or -2, got 3; fix"),
    ({"seed": -1}, r"expected a seed in 0 .. 2\*\*64 - 1, got -1; fix"),
    ({"seed": 2**64}, r"expected a seed in 0 .. 2\*\*64 - 1, got 18446744073709551616; fix: fs.seeds"),
    (
        {"noise": fs.Normal(1e-6)},
        "'a/bias': expected a scale of 3.05e-05 .. 7.28 .* 32, got 1e-06; fix: pass a smaller",
    ),
    (
        {"noise": fs.Normal(8.0)},
        "'a/bias': expected a scale of 3.05e-05 .. 7.28 .* 32, got 8; fix: pass a larger",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_argument_is_an_error_and_nothing_is_written(change, message):
    store = snapped(NOISES[0])
    before = store.buffer.tobytes()
    arguments = {"noise": NOISES[0], "seed": 1} | change
    with pytest.raises(ValueError, match=message):
        es.perturb(store, arguments.pop("noise"), arguments.pop("seed"), **arguments)
    assert store.buffer.tobytes() == before
    with pytest.raises(ValueError, match=r"expected a bound in 2 \*\* -64 .. 2 \*\* 64, got 0; fix"):
        fs.Normal(0.1, bound=0)


def test_a_lent_store_is_not_perturbed():
    store = snapped(NOISES[0])
    before = store.buffer.tobytes()
    with store.lend(only="a/*"):
        for verb in (lambda: es.perturb(store, NOISES[0], 1), lambda: es.snap(store, NOISES[0])):
            with pytest.raises(fs.LentError):
                verb()
    assert store.buffer.tobytes() == before


def test_it_takes_no_memory_that_grows_with_the_store():
    peaks = []
    for size in (100_000, 4_000_000):
        store = fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(size, "f4")}))
        es.perturb(store, NOISES[0], 1)
        tracemalloc.start()
        es.perturb(store, NOISES[0], 2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 1 << 20


def test_threads_may_be_set_while_a_store_is_perturbed():
    store, before, stop = snapped(NOISES[0], size=100_000), threads(), threading.Event()
    bits = store.buffer.tobytes()

    def change():
        while not stop.is_set():
            for n in (1, 3, 2):
                set_threads(n)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for seed in range(60):
            with es.perturbed(store, NOISES[0], seed):
                pass
    finally:
        stop.set()
        changing.join()
        set_threads(before)
    assert store.buffer.tobytes() == bits
