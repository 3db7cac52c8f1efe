"""MeZO: a step equals the one written by hand, climbs, and whatever happens, the store is taken back to the bit."""

import pickle
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE = fs.Normal({"b": 0.1, "*": 0.2})
TREE = {"b": np.linspace(-1, 1, 3, dtype="f4"), "n": np.int32(5), "w": np.zeros((5, 3), "f4")}


def a_store(dtype=np.float32):
    store = fs.Store.from_tree(jax.tree.map(lambda x: x if x.dtype.kind == "i" else x.astype(dtype), TREE))
    if dtype == np.float32:
        es.snap(store, NOISE)
    return store


@jax.jit
def evaluate(params, step):
    return -jnp.square(params["w"] - 1).sum() - jnp.square(params["b"]).sum() * (1 + step)


def run(store, **changes):
    arguments = {"seed": (4, 2), "noise": NOISE, "rate": 0.5, "steps": 6} | changes
    return es.mezo(store, arguments.pop("evaluate", evaluate), **arguments)


def test_the_generator_is_the_step_written_by_hand_to_the_bit():
    store, other = a_store(), a_store()
    for number, move in enumerate(run(store)):
        key = int(fs.seeds((4, 2, number), 1)[0])
        sides = []
        for sign in (1, -1):
            with es.perturbed(other, NOISE, key, sign=sign), other.lend() as params:
                sides.append(float(evaluate(params, number)))
        es.update(other, NOISE, [key], [0.5 * (sides[0] - sides[1]) / 2])
        assert store.buffer.tobytes() == other.buffer.tobytes()
        assert (move.number, move.fitness.tolist(), move.seeds.tolist()) == (number, sides, [key])
    assert number == 5
    assert store.buffer.tobytes() != a_store().buffer.tobytes()


def test_it_gets_the_lent_tree_on_either_side_and_the_number_of_the_step():
    store, seen = a_store(), []

    def looking(params, step):
        with pytest.raises(fs.LentError):
            store["b"] = np.zeros(3, "f4")
        seen.append((step, np.array(params["b"]), type(params["b"])))
        return 1.0

    before = store["b"].copy()
    list(run(store, evaluate=looking, steps=2))
    assert [step for step, _, _ in seen] == [0, 0, 1, 1]
    assert all(issubclass(kind, jax.Array) for _, _, kind in seen)
    np.testing.assert_array_equal(seen[0][1] + seen[1][1], 2 * before)
    assert (store["b"] == before).all()  # nothing is better than anything else


@pytest.mark.parametrize("resume", ["record", "number"])
def test_a_run_goes_on_from_a_pickled_record_or_a_number_to_the_bit(resume):
    store, again = a_store(), a_store()
    for move in run(store):
        if move.number == 2:
            again.assign(store)
            saved = pickle.loads(pickle.dumps(move))
    assert [move.number for move in run(again, resume=saved if resume == "record" else 3)] == [3, 4, 5]
    assert again.buffer.tobytes() == store.buffer.tobytes()


class Boom(Exception):
    """What evaluate raises."""


@pytest.mark.long(but="False-Boom")
@pytest.mark.parametrize("when", [0, 1])
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hold", [False, True])
def test_what_evaluate_raises_leaves_the_store_taken_back_to_the_bit(when, error, hold):
    store, other, calls = a_store(), a_store(), []

    def failing(params, step):
        view = np.asarray(params["w"]) if hold else None  # it keeps the store lent as long as it lives
        calls.append(step)
        if calls.count(3) == when + 1:
            raise error(f"{view is None}")
        return evaluate(params, step)

    list(run(other, steps=3))
    with pytest.raises(error) as caught:
        list(run(store, evaluate=failing))
    assert store.buffer.tobytes() == other.buffer.tobytes()
    assert caught.value.__notes__[-2:] == ["the store is as the step found it", "fix: mezo(..., resume=3) goes on"]
    list(run(store, resume=3))
    list(run(other, resume=3))
    assert store.buffer.tobytes() == other.buffer.tobytes()


def test_views_that_somebody_keeps_are_an_error_that_says_how_to_take_it_back():
    store, kept = a_store(), []
    before = store.buffer.tobytes()

    def keeping(params, step):
        kept.append(np.asarray(params["w"]))
        return 1.0

    with pytest.raises(fs.LentError, match="expected all lent leaves back") as caught:
        next(run(store, evaluate=keeping))
    key = int(fs.seeds((4, 2, 0), 1)[0])
    fix = f"the store is lent and still perturbed; fix: end the lend, then es.perturb(store, noise, {key}, sign=-1)"
    assert caught.value.__notes__[-2] == fix
    assert store.buffer.tobytes() != before
    kept.clear()
    es.perturb(store, NOISE, key, sign=-1)
    assert store.buffer.tobytes() == before


INTERRUPTED = """
import sys, time
import numpy as np
from tests.es.test_spsa import NOISE, a_store, evaluate, run
store, done = a_store(), 0
def slow(params, step):
    if step == 3:
        print("evaluating", flush=True)
        time.sleep(60)
    return evaluate(params, step)
try:
    for move in run(store, evaluate=slow):
        done += 1
except KeyboardInterrupt as error:
    other = a_store()
    list(run(other, steps=done))
    print(done, store.buffer.tobytes() == other.buffer.tobytes(), error.__notes__[-1])
"""


def test_a_real_interrupt_leaves_the_store_taken_back_to_the_bit():
    command, root = [sys.executable, "-c", INTERRUPTED], Path(__file__).parent.parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout.readline() == "evaluating\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("3 True fix: mezo(..., resume=3) goes on\n", "")


def test_it_takes_no_memory_beside_the_store():
    store = fs.Store.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((4_000_000,), np.float32)}))
    moves = run(store, evaluate=lambda params, step: 0.0, noise=fs.Normal(0.1), steps=None)
    next(moves)
    tracemalloc.start()
    next(moves)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.nan, "nan"),
        (jnp.float32(np.inf), "inf"),
        (np.zeros(2), r"float64\[2\]"),
        (None, r"object\[\]"),
        (1j, "comp"),
    ],
)
@pytest.mark.parametrize("when", [0, 1])
def test_a_fitness_that_is_no_finite_number_is_an_error_and_the_store_taken_back(value, got, when):
    store, calls = a_store(), []
    before = store.buffer.tobytes()

    def wrong(params, step):
        calls.append(step)
        return value if len(calls) == when + 1 else 1.0

    side = r"\-1" if when else r"\+1"
    with pytest.raises(ValueError, match=f"fitness of step 0 at {side} times the noise, got {got}.*resume=1"):
        next(run(store, evaluate=wrong))
    assert store.buffer.tobytes() == before


@pytest.mark.parametrize("value", [1, True, np.float16(1), jnp.bfloat16(1), jnp.ones((), "i4"), np.array(1.0)])
def test_a_fitness_may_be_any_real_number(value):
    assert next(run(a_store(), evaluate=lambda params, step: value)).fitness.tolist() == [1, 1]


@pytest.mark.parametrize("value", [2**53 + 1, np.longdouble(1) + np.finfo(np.longdouble).eps])
def test_a_fitness_that_float64_would_round_is_refused_and_the_store_taken_back(value):
    store = a_store()
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="expected fitness that float64 holds exactly, got .*; fix"):
        next(run(store, evaluate=lambda params, step: value))
    assert store.buffer.tobytes() == before


def test_a_step_too_far_is_an_error_and_the_store_taken_back():
    store = a_store()
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match="expected a move below the bound 32") as caught:
        next(run(store, rate=1e7))
    assert store.buffer.tobytes() == before
    assert caught.value.__notes__ == ["the store is as the step found it", "fix: mezo(..., resume=0) goes on"]


BAD = [
    ({"evaluate": 3}, TypeError, "expected a function to evaluate with, got int; fix"),
    ({"steps": 0}, ValueError, "expected a whole number of steps >= 1, got 0; fix"),
    ({"steps": 2.5}, ValueError, "expected a whole number of steps >= 1, got 2.5; fix"),
    ({"rate": np.nan}, ValueError, "expected a finite rate, got nan; fix"),
    ({"seed": (1, -1)}, ValueError, "expected a seed of non-negative integers"),
    ({"resume": 1.5}, ValueError, "expected resume >= 0, got 1.5; fix"),
    ({"noise": fs.Normal({"none": 1.0})}, ValueError, "expected globs that match a leaf, got 'none'; fix"),
    ({"noise": fs.Normal(0.1, bound=0.5)}, ValueError, "'b': expected parameters below the bound 0.5"),
    ({"noise": fs.Normal(0.1, bound=2.0**40)}, ValueError, "expected a scale of"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_arguments_are_checked_when_it_is_called(change, kind, message):
    store = a_store()
    before = store.buffer.tobytes()
    with pytest.raises(kind, match=message):
        run(store, **change)
    assert store.buffer.tobytes() == before


def test_a_lent_store_is_refused():
    store = a_store()
    with store.lend(), pytest.raises(fs.LentError):
        run(store)


def test_leaves_that_jax_cannot_take_are_refused():
    store = a_store(np.float64)
    es.snap(store, NOISE)
    with pytest.raises(BufferError, match="jax_enable_x64"):
        run(store)


def test_it_solves_the_sphere_in_10_dimensions():
    store = fs.Store.from_tree({"x": np.zeros(10, "f4")})
    sphere = jax.jit(lambda params, n: -jnp.square(params["x"] - 1).sum())
    list(es.mezo(store, sphere, seed=0, noise=fs.Rademacher(0.05), rate=20.0, steps=400))
    assert np.square(store["x"] - 1).sum() < 1e-6


@pytest.mark.long
def test_it_solves_rosenbrock_in_10_dimensions():
    def rosenbrock(params, step):
        x = store["x"].astype("f8")  # the same bytes as the lent leaf
        return -(100 * np.square(x[1:] - np.square(x[:-1])) + np.square(1 - x[:-1])).sum()

    store, noise = fs.Store.from_tree({"x": np.full(10, 0.5, "f4")}), fs.Rademacher(0.01)
    list(es.mezo(store, rosenbrock, seed=0, noise=noise, rate=2.0, steps=10_000))
    assert -rosenbrock(None, 0) < 0.1  # from 58
    assert np.abs(store["x"] - 1).max() < 0.45
