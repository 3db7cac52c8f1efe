"""Optimisers: the published rules to the bit, in place, whatever the threads; and what they refuse."""

import tracemalloc

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es
from flatstore.threads import set_threads, threads

OPTIMISERS = {"Adam": es.Adam, "Momentum": es.Momentum}


def a_store(dtype=np.float32, align=64, size=2_001):
    """Leaves with gaps between them, a frozen one, 0-d and size 0."""
    rng = np.random.default_rng(0)
    tree = {
        "a": {"bias": rng.standard_normal(7).astype(dtype), "kernel": rng.standard_normal((5, 9)).astype(dtype)},
        "b": np.array(0.5, dtype),
        "c": {"empty": np.zeros((0, 3), dtype), "frozen": np.arange(9, dtype="i4")},
        "d": rng.standard_normal(size).astype(dtype),
    }
    return fs.Store.from_tree(tree, align=align)


def gradients(store, n=6):
    """Some gradients in stores of the same layout, zero where nothing trains."""
    rng = np.random.default_rng(2)
    for _ in range(n):
        gradient = fs.Store.zeros(store.layout)
        for leaf in store.layout.homes:
            if leaf.trainable:
                gradient[leaf.path] = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        yield gradient


def adam_by_numpy(x, gs, rate, real):
    """The published rule, in plain arithmetic of one dtype."""
    m, v = np.zeros_like(x, real), np.zeros_like(x, real)
    power1 = power2 = 1.0
    for g in gs:
        power1, power2 = power1 * 0.9, power2 * 0.999
        m = real(0.9) * m + real(1 - 0.9) * g
        v = real(0.999) * v + real(1 - 0.999) * (g * g)
        x = x + real(rate * (1 / (1 - power1))) * m / (np.sqrt(real(1 / (1 - power2)) * v) + real(1e-8))
    return x


def momentum_by_numpy(x, gs, rate, real):
    """Velocity, then move."""
    velocity = np.zeros_like(x, real)
    for g in gs:
        velocity = real(0.9) * velocity + g
        x = x + real(rate) * velocity
    return x


@pytest.mark.parametrize(("name", "rule"), [("Adam", adam_by_numpy), ("Momentum", momentum_by_numpy)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_has_the_bits_of_the_same_arithmetic_in_numpy(name, rule, dtype):
    store = a_store(dtype)
    optimiser, some = OPTIMISERS[name](store), list(gradients(store, 3))
    expected = {
        leaf.path: rule(store[leaf.path].copy(), [g[leaf.path] for g in some], 0.01, dtype)
        for leaf in store.layout.homes
        if leaf.trainable
    }
    for gradient in some:
        optimiser.step(gradient, 0.01)
    for path, values in expected.items():
        assert store[path].tobytes() == np.asarray(values).tobytes(), path


def test_adam_is_the_published_rule():
    store = a_store(np.float64)
    x = store.to_vector().astype("f8")
    m = v = np.zeros_like(x)
    adam = es.Adam(store)
    for t, gradient in enumerate(gradients(store), 1):
        g = gradient.to_vector().astype("f8")
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x + 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        adam.step(gradient, 0.01)
    np.testing.assert_allclose(store.to_vector().astype("f8"), x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(lambda s: es.Adam(s, beta1=0.8), optax.adam(-0.01, b1=0.8)), (es.Momentum, optax.sgd(-0.01, momentum=0.9))],
)
def test_a_run_is_that_of_optax(ours, theirs):
    tree = {"w": np.linspace(-1, 1, 301, dtype="f4"), "b": np.ones(5, "f4")}
    store, params, state = fs.Store.from_tree(tree), tree, theirs.init(tree)
    optimiser = ours(store)
    for gradient in gradients(store, 30):
        updates, state = theirs.update(jax.tree.map(np.array, gradient.tree), state)
        params = optax.apply_updates(params, updates)
        optimiser.step(gradient, 0.01)
    np.testing.assert_allclose(store["w"], params["w"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_threads_blocks_and_alignment_do_not_change_a_bit(cut, name, dtype):
    results, before = set(), threads()
    try:
        for n, width, task, align in [(2, 1024, 1 << 20, 64), (1, 16, 1, 8), (3, 999, 100, 64)]:
            set_threads(n)
            cut(WIDTH=width, TASK=task)
            store = a_store(dtype, align)
            optimiser = OPTIMISERS[name](store)
            for gradient in gradients(store, 3):
                optimiser.step(gradient, 0.01)
            results.add(b"".join(store[path].tobytes() for path in store))
    finally:
        set_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("name", OPTIMISERS)
def test_frozen_leaves_and_the_gaps_are_not_touched(name):
    store = a_store()
    trained = np.zeros(store.layout.nbytes, bool)
    for leaf in store.layout.homes:
        if leaf.trainable:
            trained[leaf.offset : leaf.offset + leaf.nbytes] = True
    before = store.buffer.copy()
    optimiser = OPTIMISERS[name](store)
    for gradient in gradients(store):
        optimiser.step(gradient, 0.01)
    assert (store.buffer[~trained] == before[~trained]).all()
    assert (store["d"] != before[trained][-8004:].view("f4")).all()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_member_of_a_population_is_moved_like_a_store(order):
    pop, alone = fs.Population.from_tree({"a": np.ones(5, "f4"), "b": np.ones(3, "f4")}, 4, order=order), None
    alone = pop[2].copy()
    mine, its = es.Adam(pop[2]), es.Adam(alone)
    for gradient in gradients(alone):
        mine.step(gradient, 0.1)
        its.step(gradient, 0.1)
    assert pop[2].to_vector().tobytes() == alone.to_vector().tobytes()
    assert (pop[1]["a"] == 1).all() and (pop[3]["b"] == 1).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_leaves_lose_nothing_in_the_mean(dtype):
    n, steps = 20_000, 200
    store = fs.Store.from_tree({"w": np.ones(n, dtype)})
    gradient = fs.Store.from_tree({"w": np.ones(n, dtype)})
    momentum = es.Momentum(store, beta=0.0)
    for _ in range(steps):
        momentum.step(gradient, 1e-5)  # a hundredth of the spacing of float16 at 1
    unit = float(np.float32(np.nextafter(dtype(1), dtype(2)))) - 1
    assert abs(store["w"].astype("f8").mean() - (1 + steps * 1e-5)) < 5 * unit * np.sqrt(steps / n)
    adam = es.Adam(store)
    adam.square["w"][:] = 1
    gradient["w"][:] = 0
    for _ in range(steps):
        adam.step(gradient, 0.0)
    assert abs(adam.square["w"].astype("f8").mean() - 0.999**steps) < 5 * unit * np.sqrt(steps / n)


@given(st.lists(st.sampled_from([np.float16, np.float32, np.float64, ml_dtypes.bfloat16]), min_size=1, max_size=4))
def test_leaves_of_several_dtypes_move_as_alone(dtypes):
    together = fs.Store.from_tree({str(i): np.ones(5, dtype) for i, dtype in enumerate(dtypes)})
    gradient = together.copy()
    es.Adam(together).step(gradient, 0.25)
    for i, dtype in enumerate(dtypes):
        assert np.allclose(together[str(i)].astype("f8"), 1.25, rtol=float(np.finfo(np.float32).eps) * 2**17)
        assert together[str(i)].dtype == dtype


def test_a_run_goes_on_from_its_states_and_its_count():
    stores = [a_store() for _ in range(2)]
    adam = es.Adam(stores[0])
    some = list(gradients(stores[0]))
    for gradient in some[:3]:
        adam.step(gradient, 0.01)
    stores[1].assign(stores[0])
    again = es.Adam(stores[1])
    again.mean.assign(adam.mean)
    again.square.assign(adam.square)
    again.count = adam.count
    for gradient in some[3:]:
        adam.step(gradient, 0.01)
        again.step(gradient, 0.01)
    assert stores[0].buffer.tobytes() == stores[1].buffer.tobytes()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_takes_no_memory_that_grows_with_the_store(name):
    store = fs.Store.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((4_000_000,), np.float32)}))
    optimiser, gradient = OPTIMISERS[name](store), fs.Store.zeros(store.layout)
    optimiser.step(gradient, 0.1)
    tracemalloc.start()
    optimiser.step(gradient, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def broken(store):
    gradient = fs.Store.zeros(store.layout)
    gradient["d"][2_000] = np.inf
    gradient["a/kernel"][0] = np.nan
    return gradient


BAD = [
    (lambda o, g: o.step(fs.Store.from_tree({"w": np.ones(1, "f4")}), 0.1), "of the gradient unlike the store's layou"),
    (lambda o, g: o.step(g, np.nan), "expected a finite rate, got nan; fix"),
    (lambda o, g: o.step(broken(o.store), 0.1),
     "'a/kernel': expected finite numbers in a gradient, got nan at 0 of 45; fix"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_bad_argument_is_an_error_and_nothing_is_written_or_counted(name, call, message):
    store = a_store()
    optimiser, before = OPTIMISERS[name](store), store.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        call(optimiser, next(gradients(store)))
    assert (store.buffer.tobytes(), optimiser.count) == (before, 0)


def test_a_lent_store_or_state_is_not_moved():
    store = a_store()
    adam, before = es.Adam(store), store.buffer.tobytes()
    for lent in (store, adam.mean, adam.square):
        with lent.lend(only="a/*"), pytest.raises(fs.LentError):
            adam.step(next(gradients(store)), 0.1)
    assert (store.buffer.tobytes(), adam.count) == (before, 0)
    assert not adam.mean.buffer.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: es.Adam(s, beta1=1.0), "expected 0 <= beta1 < 1, got 1.0; fix"),
        (lambda s: es.Adam(s, beta1="x"), "expected 0 <= beta1 < 1, got x; fix"),
        (lambda s: es.Adam(s, beta2=-0.1), "expected 0 <= beta2 < 1, got -0.1; fix"),
        (lambda s: es.Adam(s, epsilon=0), "expected 0 < epsilon < inf, got 0; fix"),
        (lambda s: es.Momentum(s, beta=np.nan), "expected 0 <= beta < 1, got nan; fix"),
        (
            lambda s: es.Adam(fs.Store.from_tree({"q": np.zeros(3, ml_dtypes.float8_e4m3fn)})),
            r"'q': expected a leaf of float32, .* to optimise, got float8_e4m3fn\[3\]; fix",
        ),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(a_store())
