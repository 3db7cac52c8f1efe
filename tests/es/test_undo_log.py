"""16-bit leaves: moved in place as NumPy moves them, and given back to the bit by what rounding lost."""

import itertools
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
from flatstore.memory import write
from flatstore.threads import set_threads, threads

DTYPES = [np.float16, ml_dtypes.bfloat16]
NOISE = fs.Normal(0.02)
RNG = np.random.default_rng(0)


def finite(dtype, below=np.inf):
    """All numbers of a 16-bit dtype that are finite and below a bound, both zeros and subnormal numbers among them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        return every[np.abs(every.astype(np.float64)) < below]


def moved(store, noise, seed, sign):
    """{path: bytes} of the store after a move, in plain NumPy."""
    found = {}
    for leaf in store.layout.homes:
        (values,) = store.leaf_matrix(leaf)
        if leaf.trainable and leaf.size and noise.scale_of(leaf.path):
            delta = noise.delta(leaf, np.array([seed], np.uint64), 0, leaf.size)[0]
            real = values.astype(np.float64 if leaf.dtype == np.float64 else np.float32)
            values = (real + sign * delta).astype(leaf.dtype)
        found[leaf.path] = values.tobytes()
    return found


def bytes_of(store):
    return {leaf.path: store.leaf_matrix(leaf)[0].tobytes() for leaf in store.layout.homes}


def a_model(dtype=ml_dtypes.bfloat16, size=9001):
    """A mixed model: 16-bit weights of two shapes, float32 norms between them, a frozen leaf, one of scale 0."""
    rng = np.random.default_rng(1)
    tree = {
        "a": {"kernel": rng.normal(0, 0.02, size).astype(dtype), "norm": np.ones(70, np.float32)},
        "b": {"kernel": rng.normal(0, 1, (77, 13)).astype(dtype), "frozen": np.arange(5, dtype=np.int32)},
        "c": {"bias": np.array([0.0, -0.0, 1.0], dtype), "kernel": np.zeros(500, dtype), "one": np.array(3.0, dtype)},
    }
    return fs.Store.from_tree(tree)


MIXED = fs.Normal({"*/bias": 0, "*": 0.001}, bound=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [2.0**-15, 1e-3, 0.0333, 1.0, 7.0, 31.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_number_moves_as_in_numpy_and_is_given_back_to_the_bit(dtype, scale, sign):
    noise = fs.Rademacher(scale)
    largest = float(ml_dtypes.finfo(dtype).max)
    store = fs.Store.from_tree({"w": finite(dtype, largest - 2 * scale if dtype == np.float16 else largest)})
    before, expected = store.buffer.tobytes(), moved(store, noise, 5, sign)
    log = es.perturb(store, noise, 5, sign=sign)
    assert bytes_of(store) == expected
    assert store.buffer.tobytes() != before
    assert es.perturb(store, noise, 5, sign=-sign, undo=log) is None
    assert store.buffer.tobytes() == before


TREES = st.lists(
    st.tuples(
        st.sampled_from(["float16", "bfloat16", "float32", "int32"]), st.sampled_from([0, 1, 3, 63, 64, 300, 5000])
    ),
    min_size=1,
    max_size=6,
)


@given(TREES, st.sampled_from([NOISE, fs.Rademacher(0.5), fs.Normal(3.0)]), st.data())
def test_perturbations_of_any_trees_nest_and_are_taken_back_in_the_opposite_order(leaves, noise, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    tree = {}
    for i, (name, size) in enumerate(leaves):
        dtype = np.dtype(name)
        bits = rng.integers(0, 1 << 16, size).astype(np.uint16)
        halves = (
            np.where(np.abs(bits.view(dtype).astype("f4")) < 1e3, bits.view(dtype), np.dtype(dtype).type(0))
            if (dtype.itemsize == 2)
            else rng.integers(-9, 9, size)
        )
        tree[f"x{i}"] = np.asarray(halves, dtype)
    tree["always"] = np.ones(3, ml_dtypes.bfloat16)
    store = fs.Store.from_tree(tree, align=data.draw(st.sampled_from([1, 64])))
    states, logs = [], []
    for seed, sign in enumerate(data.draw(st.lists(st.sampled_from([1, -1]), min_size=1, max_size=4))):
        expected = moved(store, noise, seed, sign)
        states.append(store.buffer.tobytes())
        logs.append((seed, sign, es.perturb(store, noise, seed, sign=sign)))
        assert bytes_of(store) == expected
        if data.draw(st.booleans()):  # over to the other side, and not back
            seed, sign, log = logs.pop()
            logs.append((seed, -sign, es.perturb(store, noise, seed, sign=-2 * sign, undo=log)))
    for seed, sign, log in reversed(logs):
        es.perturb(store, noise, seed, sign=-sign, undo=log)
        assert store.buffer.tobytes() == states.pop()


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_one_side_over_to_the_other_and_back_in_one_pass_each(dtype):
    store = a_model(dtype)
    centre = store.copy()
    plus, minus = (moved(store, MIXED, 7, sign) for sign in (1, -1))
    log = es.perturb(store, MIXED, 7)
    assert bytes_of(store) == plus
    other = es.perturb(store, MIXED, 7, sign=-2, undo=log)
    assert bytes_of(store) == minus
    assert (log.at, log.nbytes, other.at) == (0, 0, -1)
    es.perturb(store, MIXED, 7, sign=1, undo=other)
    assert store.buffer.tobytes() == centre.buffer.tobytes()
    assert repr(other) == "UndoLog(seed 7, taken back)"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_cycles_change_nothing_where_plain_addition_drifts(dtype):
    store, drifting = a_model(dtype, 3000), a_model(dtype, 3000)
    before = store.buffer.tobytes()
    for seed in range(1000):
        log = es.perturb(store, MIXED, seed)
        log = es.perturb(store, MIXED, seed, sign=-2, undo=log)
        es.perturb(store, MIXED, seed, sign=1, undo=log)
    for seed in range(100):
        for sign in (1, -2, 1):
            es.perturb(drifting, MIXED, seed, sign=sign, exact=False)
    assert store.buffer.tobytes() == before
    assert (drifting["a/kernel"] != store["a/kernel"]).mean() > 0.2


def test_threads_and_tasks_do_not_change_where_it_goes_and_any_of_them_come_back(cut):
    results, before, start = set(), threads(), a_model(size=50_000).buffer.tobytes()
    try:
        for n, task in [(2, 1 << 20), (1, 4096), (3, 1)]:
            set_threads(n)
            cut(TASK=task, WIDTH=2048)
            store = a_model(size=50_000)
            log = es.perturb(store, MIXED, 3)
            results.add(store.buffer.tobytes())
            cut(TASK=1 << 20)
            es.perturb(store, MIXED, 3, sign=-1, undo=log)
            assert store.buffer.tobytes() == start
    finally:
        set_threads(before)
    assert len(results) == 1


def test_a_log_holds_what_rounding_lost_and_little_more():
    n = 1 << 18
    weights = {
        "normal, 1e-3": (RNG.normal(0, 0.02, n), 1e-3, 0.05),
        "normal, 1e-4": (RNG.normal(0, 0.02, n), 1e-4, 0.01),
        "norm": (1 + RNG.normal(0, 0.05, n), 1e-3, 0.005),
        "zeros": (np.zeros(n), 1e-3, 0.001),
        "all lost": (RNG.normal(0, 1e-6, n), 0.1, 1.01),
    }
    for name, (values, scale, most) in weights.items():
        store, noise = fs.Store.from_tree({"w": values.astype(ml_dtypes.bfloat16)}), fs.Normal(scale, bound=2)
        assert es.perturb(store, noise, 1).nbytes <= most * store["w"].nbytes, name


def test_a_store_without_16_bit_leaves_keeps_nothing_and_needs_nothing():
    store = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    assert es.perturb(store, NOISE, 1) is None
    assert es.perturb(store, NOISE, 1, sign=-2) is None


def test_what_the_grid_is_for_stays_and_16_bit_leaves_are_left_alone_by_snap():
    store = fs.Store.from_tree({"h": np.array([0.1, -0.0], np.float16), "w": np.array([0.1], np.float32)})
    before = store["h"].tobytes()
    es.snap(store, NOISE)
    assert store["h"].tobytes() == before
    assert store["w"][0] != np.float32(0.1)


def logged():
    store = a_model()
    return store, es.perturb(store, MIXED, 7)


def other_layout():
    return es.perturb(a_model(size=10), MIXED, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"undo": 3}, "expected an undo log, got int; fix: pass what es.perturb returned"),
        ({"seed": 8}, "expected the seed of the undo log, 7, got 8; fix: pass that seed"),
        ({"noise": fs.Normal(0.1)}, "expected the noise of the undo log, Normal.*, got Normal.*; fix: pass that noise"),
        ({"sign": 1}, "expected sign -1, to take back what was added 1 times, or -2, .* got sign 1; fix"),
        ({"sign": 2}, "expected sign -1, .* got sign 2; fix"),
        ({"exact": False}, "exact=True, got sign -1 and exact=False; fix"),
        ({"undo": None, "sign": -2}, "expected the undo log of 16-bit leaves to go across .* sign -2 without one; fix"),
    ],
)
def test_a_log_is_used_as_it_was_made_or_not_at_all(change, message):
    store, log = logged()
    before = store.buffer.tobytes()
    with pytest.raises((TypeError, ValueError), match=message):
        es.perturb(store, **{"noise": MIXED, "seed": 7, "sign": -1, "undo": log, **change})
    assert store.buffer.tobytes() == before
    es.perturb(store, MIXED, 7, sign=-1, undo=log)
    assert store.buffer.tobytes() == a_model().buffer.tobytes()


def test_a_log_of_another_layout_and_one_that_was_used_are_refused():
    store, log = logged()
    with pytest.raises(ValueError, match="expected an undo log of this store, got one of another layout; fix"):
        es.perturb(store, MIXED, 7, sign=-1, undo=other_layout())
    es.perturb(store, MIXED, 7, sign=-1, undo=log)
    with pytest.raises(ValueError, match="expected an undo log that was not used, got one that was; fix"):
        es.perturb(store, MIXED, 7, sign=-1, undo=log)


@pytest.mark.parametrize("path", ["a/kernel", "b/kernel", "c/one"])
@pytest.mark.parametrize("sign", [-1, -2])
def test_a_store_that_is_not_as_its_log_left_it_is_noticed_and_what_was_done_is_taken_back(path, sign, cut):
    cut(TASK=1)  # many tasks, some of which come to their end
    store, log = logged()
    store[path][...] += np.dtype(store[path].dtype).type(1)
    changed = store.buffer.tobytes()
    with pytest.raises(ValueError, match=f"'{path}'.*: expected parameters as the undo log left them, got others; fix"):
        es.perturb(store, MIXED, 7, sign=sign, undo=log)
    assert store.buffer.tobytes() == changed
    store[path][...] -= np.dtype(store[path].dtype).type(1)
    if path != "c/one":  # the addition itself was rounded
        return
    es.perturb(store, MIXED, 7, sign=-1, undo=log)
    assert store.buffer.tobytes() == a_model().buffer.tobytes()


def test_the_wrong_order_is_noticed():
    store, first = logged()
    second = es.perturb(store, MIXED, 8)
    with pytest.raises(ValueError, match="take later moves back first"):
        es.perturb(store, MIXED, 7, sign=-1, undo=first)
    es.perturb(store, MIXED, 8, sign=-1, undo=second)
    es.perturb(store, MIXED, 7, sign=-1, undo=first)
    assert store.buffer.tobytes() == a_model().buffer.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_move_that_would_overflow_is_refused_before_anything_is_written(dtype):
    largest = ml_dtypes.finfo(dtype).max
    step = float(largest) - float(np.nextafter(largest, dtype(0)))
    noise = fs.Rademacher(step, bound=min(2.0**64, 4 * step)) if dtype == np.float16 else fs.Rademacher(31.0)
    tree = {"fine": np.zeros(9000, dtype), "large": np.full(40, largest, dtype)}
    store = fs.Store.from_tree(tree)
    before = store.buffer.tobytes()
    if dtype == ml_dtypes.bfloat16:  # nothing that may be added is large enough
        log = es.perturb(store, noise, 1)
        es.perturb(store, noise, 1, sign=-1, undo=log)
    else:
        with pytest.raises(ValueError, match="'large': expected parameters that stay finite in float16, got a magnitu"):
            es.perturb(store, noise, 1)
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(dtype, value):
    tree = {"fine": np.ones(9000, dtype), "odd": np.array([1, value], dtype), "w": np.zeros(9000, "f4")}
    store = fs.Store.from_tree(tree)
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="'odd': expected finite parameters, got .* at 1 of 2; fix"):
        es.perturb(store, NOISE, 1)
    assert store.buffer.tobytes() == before


def test_float32_leaves_that_reach_the_bound_stop_16_bit_leaves_too():
    tree = {"h": np.ones(9000, np.float16), "w": np.full(9000, 31.99, "f4")}
    store = fs.Store.from_tree(tree)
    es.snap(store, NOISE)
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="'w': expected parameters below the bound 32 after the move"):
        es.perturb(store, NOISE, 1)
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("sign", [0, -1, -2])
def test_without_memory_right_after_a_task_the_store_is_as_it_was(monkeypatch, cut, sign):
    cut(TASK=1)
    move, asked = sys.modules["flatstore.es.undo_log"].LoggedMove, []
    scratch, run = move.scratch, move._run

    class Short(tuple):
        """Scratch that is looked at without memory, once."""

        def __getitem__(self, at):
            asked.append(at)
            if len(asked) == 3:
                raise MemoryError("injected")
            return super().__getitem__(at)

    def short(self):
        rows, *rest = scratch(self)
        return Short(rows), *rest

    def runs(self, *given):
        *others, (rows, *rest), note = given
        return run(self, *others, (tuple(rows), *rest), note)

    store = a_model(size=60_000)
    log = es.perturb(store, MIXED, 7) if sign else None
    before = store.buffer.tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(move, "scratch", short)
        patch.setattr(move, "_run", runs)
        with pytest.raises(MemoryError, match="injected") as caught:
            es.perturb(store, MIXED, 7, sign=sign or 1, undo=log)
    assert not hasattr(caught.value, "__notes__") and store.buffer.tobytes() == before
    es.perturb(store, MIXED, 7, sign=sign or 1, undo=log)


def test_without_memory_for_a_log_the_store_is_as_it_was(monkeypatch, cut):
    cut(TASK=1)
    module, made = sys.modules["flatstore.es.undo_log"], []
    chunk = module.Chunk

    def failing(*parts):
        made.append(parts)
        if len(made) in (3, 6):
            raise MemoryError("injected")
        return chunk(*parts)

    for sign in (0, -2):
        store = a_model(size=60_000)
        log = es.perturb(store, MIXED, 7) if sign else None
        before = store.buffer.tobytes()
        with monkeypatch.context() as patch:
            made.clear()
            patch.setattr(module, "Chunk", failing)
            with pytest.raises(MemoryError, match="injected"):
                es.perturb(store, MIXED, 7, sign=sign or 1, undo=log)
        assert len(made) >= 3
        assert store.buffer.tobytes() == before
        if log:
            es.perturb(store, MIXED, 7, sign=-1, undo=log)
            assert store.buffer.tobytes() == a_model(size=60_000).buffer.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("perturbed", [1, -1])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_an_update_takes_the_perturbation_back_in_the_same_pass(dtype, perturbed, n, cut):
    cut(TASK=5000)
    store, other, keys = a_model(dtype), a_model(dtype), fs.seeds(3, n)
    weights = np.linspace(-1, 2, n)
    log = es.perturb(store, MIXED, int(keys[0]), sign=perturbed)
    es.update(store, MIXED, keys, weights, perturbed=perturbed, undo=log)
    es.update(other, MIXED, keys, weights)
    assert store.buffer.tobytes() == other.buffer.tobytes()
    assert log.at == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"undo": None},
            "expected the undo log of bfloat16 leaves to take the perturbation back, got none; fix: undo=",
        ),
        ({"perturbed": -1}, "expected perturbed=1, as the undo log says, got -1; fix"),
        ({"perturbed": 0}, "expected perturbed=1, as the undo log says, got 0; fix"),
        ({"seeds": [8]}, "expected the seed of the undo log, 7, got 8; fix"),
        ({"sign": -1}, "expected the undo log of an update, got that of a perturbation; fix"),
        ({"keep": True}, "expected keep=True at the centre, got sign=-1 or perturbed; fix"),
    ],
)
def test_an_update_of_a_perturbed_store_needs_its_log(change, message):
    store, log = logged()
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        es.update(store, **{"noise": MIXED, "seeds": [7], "weights": [1.0], "perturbed": 1, "undo": log, **change})
    assert store.buffer.tobytes() == before


def test_an_update_of_a_store_that_is_not_as_its_log_left_it_moves_nothing():
    store, log = logged()
    store["c/one"][...] = 9
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="'c/one'.* expected parameters as the undo log left them"):
        es.update(store, MIXED, [7], [1.0], perturbed=1, undo=log)
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [1e-4, 0.01, 3.0, 1e4])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_an_update_is_taken_back_by_its_log_to_the_bit(dtype, weight, n, cut):
    cut(TASK=5000)
    noise = fs.Normal({"*/bias": 0, "*": 0.1}, bound=2.0**16)
    store, other, keys = a_model(dtype), a_model(dtype), fs.seeds(3, n)
    es.snap(store, noise)
    es.snap(other, noise)
    before, weights = store.buffer.tobytes(), weight * np.linspace(-1, 2, n)
    log = es.update(store, noise, keys, weights, keep=True)
    assert es.update(other, noise, keys, weights) is None
    assert store.buffer.tobytes() == other.buffer.tobytes()
    assert before != store.buffer.tobytes()
    assert es.update(store, noise, keys, weights, sign=-1, undo=log) is None
    assert store.buffer.tobytes() == before
    assert repr(log) == "UndoLog(an update, taken back)"


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_of_any_numbers_is_taken_back_also_where_they_become_infinite(dtype):
    store, keys = fs.Store.from_tree({"w": finite(dtype)}), fs.seeds(1, 3)
    for scale, weights in ((1.0, [9e4, -1.0, 0.5]), (1e-3, [1.0, 2.0, 1e-3]), (30.0, [1e7, 1.0, 1.0])):
        before = store.buffer.tobytes()
        log = es.update(store, fs.Rademacher(scale), keys, weights, keep=True)
        es.update(store, fs.Rademacher(scale), keys, weights, sign=-1, undo=log)
        assert store.buffer.tobytes() == before


def test_a_small_update_has_a_small_log():
    store = fs.Store.from_tree({"w": RNG.normal(0, 0.02, 1 << 18).astype(ml_dtypes.bfloat16)})
    log = es.update(store, fs.Normal(0.001, bound=2), fs.seeds(1, 8), np.full(8, 1e-3), keep=True)
    assert log.nbytes < 0.01 * store["w"].nbytes


def test_updates_and_perturbations_nest():
    store = a_model()
    before, keys = store.buffer.tobytes(), fs.seeds(1, 4)
    first = es.perturb(store, MIXED, 1)
    second = es.update(store, MIXED, keys, [1, 2, 3, 4.0], keep=True)
    with pytest.raises(ValueError, match="take later moves back first"):
        es.perturb(store, MIXED, 1, sign=-1, undo=first)
    with pytest.raises(ValueError, match="expected the seeds and weights of the undo log, got others; fix"):
        es.update(store, MIXED, keys, [1, 2, 3, 5.0], sign=-1, undo=second)
    with pytest.raises(ValueError, match="expected the undo log of a perturbation, got that of an update; fix"):
        es.perturb(store, MIXED, 1, sign=-1, undo=second)
    es.update(store, MIXED, keys, [1, 2, 3, 4.0], sign=-1, undo=second)
    es.perturb(store, MIXED, 1, sign=-1, undo=first)
    assert store.buffer.tobytes() == before


@jax.jit
def fitness(params, step):
    return -sum(jnp.square(x.astype(jnp.float32) - 0.5).mean() for x in jax.tree.leaves(params) if x.dtype != jnp.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mezo_climbs_on_16_bit_leaves_in_place_and_is_replayed(dtype):
    store, other, noise = a_model(dtype, 64), a_model(dtype, 64), fs.Normal(0.01, bound=4)
    moves = list(es.mezo(store, fitness, seed=1, noise=noise, rate=20.0, steps=150))
    assert moves[-1].max > moves[0].max + 0.1
    es.replay(other, noise, moves)
    assert store.buffer.tobytes() == other.buffer.tobytes()


def test_contexts_keep_the_log_by_themselves_and_nest():
    store = a_model()
    before, expected = store.buffer.tobytes(), moved(store, MIXED, 1, 1)
    with es.perturbed(store, MIXED, 1) as same:
        assert bytes_of(same) == expected
        inner = store.buffer.tobytes()
        with pytest.raises(RuntimeError, match="mine"), es.perturbed(store, MIXED, 2, sign=-1):
            raise RuntimeError("mine")
        assert store.buffer.tobytes() == inner
    assert store.buffer.tobytes() == before


def test_a_context_whose_store_is_still_lent_says_how_to_go_back_and_hands_the_log_over():
    store, before = a_model(), a_model().buffer.tobytes()
    lend = store.lend(patience=0.01)
    with pytest.raises(fs.LentError) as caught, es.perturbed(store, MIXED, 1):
        lend.__enter__()
    note = (
        "the store is still perturbed; fix: end the lend, then es.perturb(store, noise, 1, sign=-1, undo=error.undo[0])"
    )
    assert caught.value.__notes__ == [note]
    lend.__exit__(None, None, None)
    es.perturb(store, MIXED, 1, sign=-1, undo=caught.value.undo[0])
    assert store.buffer.tobytes() == before


def test_nested_contexts_that_cannot_go_back_each_hand_their_log_over():
    store, before = a_model(), a_model().buffer.tobytes()
    lend = store.lend(patience=0.01)
    with pytest.raises(fs.LentError) as caught, es.perturbed(store, MIXED, 1), es.perturbed(store, MIXED, 2, sign=-1):
        lend.__enter__()
    inner, outer = caught.value.__notes__
    assert "es.perturb(store, noise, 2, sign=1, undo=error.undo[0])" in inner
    assert "es.perturb(store, noise, 1, sign=-1, undo=error.undo[1])" in outer
    lend.__exit__(None, None, None)
    es.perturb(store, MIXED, 2, sign=1, undo=caught.value.undo[0])
    es.perturb(store, MIXED, 1, sign=-1, undo=caught.value.undo[1])
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("error", [None, RuntimeError("mine")])
def test_a_context_whose_store_was_written_hands_the_log_over(error):
    store, before = a_model(), a_model().buffer.tobytes()
    with pytest.raises(ValueError, match="'b/kernel'.*: expected parameters as") as caught:  # noqa: SIM117
        with es.perturbed(store, MIXED, 1):
            was = store["b/kernel"].copy()
            store["b/kernel"][:] = 3
            if error:
                raise error
    note = "the store is still perturbed; fix: mend that, then es.perturb(store, noise, 1, sign=-1, undo=error.undo[0])"
    assert caught.value.__notes__ == [note]
    store["b/kernel"][:] = was
    es.perturb(store, MIXED, 1, sign=-1, undo=caught.value.undo[0])
    assert store.buffer.tobytes() == before


def test_an_interrupt_that_was_held_back_has_the_log(monkeypatch):
    module, store, before = sys.modules["flatstore.es.perturbing"], a_model(), a_model().buffer.tobytes()

    def interrupted(memories, work):
        write(memories, work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(module, "write", interrupted)
        es.perturb(store, MIXED, 1)
    assert caught.value.__notes__ == ["the store is perturbed; error.undo[0] takes it back"]
    es.perturb(store, MIXED, 1, sign=-1, undo=caught.value.undo[0])
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("verb", ["perturbing", "updating"])
def test_a_log_that_another_thread_has_used_while_this_one_waited_is_refused(verb, monkeypatch):
    store, log = logged()

    def late(memories, work):
        monkeypatch.undo()
        es.perturb(store, MIXED, 7, sign=-1, undo=log)
        write(memories, work)

    monkeypatch.setattr(sys.modules[f"flatstore.es.{verb}"], "write", late)
    with pytest.raises(ValueError, match="expected an undo log that was not used, got one that was"):
        if verb == "perturbing":
            es.perturb(store, MIXED, 7, sign=-1, undo=log)
        else:
            es.update(store, MIXED, [7], [1.0], perturbed=1, undo=log)
    assert store.buffer.tobytes() == a_model().buffer.tobytes()


def test_an_error_for_a_block_of_many_leaves_says_how_many_and_which():
    store = fs.Store.from_tree({f"x{i:02}": np.ones(3, np.float16) for i in range(20)})
    log = es.perturb(store, NOISE, 1)
    store["x17"][1] = 5
    with pytest.raises(ValueError, match="one of 20 leaves, 'x00' to 'x19': expected parameters as the undo log left"):
        es.perturb(store, NOISE, 1, sign=-1, undo=log)


def test_a_sign_of_any_type_of_number_will_do():
    store = a_model()
    log = es.perturb(store, MIXED, 7, sign=np.float32(-1))
    assert repr(log).startswith("UndoLog(seed 7, at -1, ")
    es.perturb(store, MIXED, 7, sign=1.0, undo=log)
    assert store.buffer.tobytes() == a_model().buffer.tobytes()


def test_the_twin_inside_jit_moves_to_the_same_bits():
    store = fs.Store.from_tree({"w": RNG.normal(0, 0.02, 3000).astype(ml_dtypes.bfloat16)})
    twin = jax.jit(lambda tree, key: es.virtual(tree, NOISE, key))(store.tree, es.words([7])[0])
    expected = np.asarray(twin["w"]).tobytes()  # computed by now: it reads the store's own bytes
    es.perturb(store, NOISE, 7)
    assert store["w"].tobytes() == expected


def test_no_two_states_are_taken_for_each_other():
    # Undone by a log whose checksums do not fit: every block of either state is told from the other.
    for a, b in itertools.permutations(range(4), 2):
        store = a_model()
        log = es.perturb(store, MIXED, a)
        log.key = np.array([b], np.uint64)
        other = a_model()
        es.perturb(other, MIXED, b)
        with pytest.raises(ValueError, match="left them"):
            es.perturb(other, MIXED, b, sign=-1, undo=log)
