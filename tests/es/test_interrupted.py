"""What the verbs of `es` leave behind when they are interrupted, misused or pushed to their limits: what there was."""

import gc
import json
import math
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE = fs.Normal(0.02)


def a_store(n=4, dtype="f4"):
    return fs.Store.from_tree({"w": np.zeros(n, dtype)})


def interrupted(call, after):
    """Call, with a Ctrl-C so many seconds later: what was raised, in the end."""
    thread = threading.Thread(target=lambda: (time.sleep(after), signal.raise_signal(signal.SIGINT)))
    gc.disable()  # what is raised inside of a callback of the collector, as Hypothesis has one, is lost
    try:
        thread.start()  # here, too, it may come: where the machine is busy, a thread takes long to start
        call()
        thread.join()
        time.sleep(0.01)  # the handler runs in this thread, and may do so after the other has ended
    except BaseException as error:
        thread.join()
        return error
    finally:
        gc.enable()
    return None


@pytest.mark.parametrize("after", [0.0, 0.005, 0.02, 0.06])
@pytest.mark.parametrize("verb", ["perturb", "update"])
def test_a_ctrl_c_into_a_verb_that_refuses_leaves_the_store_as_it_was(verb, after):
    es.perturb(a_store(), NOISE, 1)  # compiled before it is interrupted
    es.update(a_store(), NOISE, [1], [1.0])
    store = a_store(6_000_000)
    store["w"][-1] = 1 / 3  # off the grid: found at the very end
    before = store.buffer.tobytes()
    move = {
        "perturb": lambda: es.perturb(store, NOISE, 1),
        "update": lambda: es.update(store, NOISE, [1], [1.0]),
    }[verb]
    try:
        error = interrupted(move, after)
    except KeyboardInterrupt:  # after the error had been raised
        error = None
    assert error is None or isinstance(error, (KeyboardInterrupt, ValueError))
    assert store.buffer.tobytes() == before


def test_a_ctrl_c_into_an_update_finds_leaves_of_all_dtypes_moved_or_none():
    tree = {"a": np.zeros(3_000_000, "f4"), "h": np.zeros(1_000, "f2")}
    moved, still = fs.Store.from_tree(tree), fs.Store.from_tree(tree).buffer.tobytes()
    es.update(moved, NOISE, [1], [1.0])
    for after in (0.001, 0.005, 0.015):
        store = fs.Store.from_tree(tree)
        interrupted(lambda store=store: es.update(store, NOISE, [1], [1.0]), after)
        assert store.buffer.tobytes() in (still, moved.buffer.tobytes())


PRESSED = """
import signal, threading, time
import numpy as np, flatstore as fs
store, noise = fs.Store.from_tree({"w": np.zeros(1000, "f4")}), fs.Normal(0.02)
fs.es.perturb(store, noise, 1)
fs.es.perturb(store, noise, 1, sign=-1)
pressed, left, ready, quiet = 0, 0, threading.Event(), threading.Event()

def press():
    ready.wait()
    for _ in range(200):
        time.sleep(0.003)
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
    quiet.set()

thread = threading.Thread(target=press)
thread.start()
done = False
while not done:
    try:
        try:
            ready.set()
            while not quiet.is_set():
                with fs.es.perturbed(store, noise, 1):
                    pass
            done = True
        except KeyboardInterrupt:
            pressed += 1
            left += bool(store["w"].any())
    except KeyboardInterrupt:  # pressed while the one before was counted
        pressed += 1
print("pressed", pressed > 50, left, store["w"].any())
"""


def test_perturbed_gives_the_store_back_however_often_ctrl_c_is_pressed():
    done = subprocess.run([sys.executable, "-c", PRESSED], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("pressed True 0 False\n", 0), done.stderr


def test_the_error_of_the_body_is_raised_with_the_way_back_where_a_view_keeps_the_store_lent():
    store = a_store()
    before = store.buffer.tobytes()

    def body():
        with es.perturbed(store, NOISE, 1), store.lend(patience=0.1) as params:
            view = np.asarray(params["w"])
            raise RuntimeError(f"mine {view.size}")

    with pytest.raises(RuntimeError, match="mine 4") as caught:
        body()
    assert "still perturbed; fix: end the lend, then es.perturb(store, noise, 1, sign=-1)" in caught.value.__notes__[-1]
    del caught
    es.perturb(store, NOISE, 1, sign=-1)
    assert store.buffer.tobytes() == before


def test_a_store_that_cannot_be_given_back_says_how():
    store, kept = a_store(), []
    lend = store.lend(patience=0.01)

    def body():
        with es.perturbed(store, NOISE, 1):
            kept.append(lend.__enter__())

    with pytest.raises(fs.LentError) as caught:
        body()
    assert caught.value.__notes__ == [
        "the store is still perturbed; fix: end the lend, then es.perturb(store, noise, 1, sign=-1)",
    ]
    kept.clear()
    lend.__exit__(None, None, None)
    es.perturb(store, NOISE, 1, sign=-1)
    assert not store["w"].any()


POP = fs.Population.from_tree({"w": np.zeros(4, "f4")}, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: es.perturb(POP, NOISE, 1), "expected a Store to move, got Population; fix"),
        (lambda: es.snap(POP[1:3], NOISE), "expected a Store to move, got Population; fix"),
        (lambda: es.update(POP, NOISE, [1], [1.0]), "expected a Store to move, got Population; fix"),
        (lambda: es.sample(POP, POP, NOISE, [1, 2, 3]), "expected a Store to move, got Population; fix"),
        (lambda: es.mezo(POP, len, seed=0, noise=NOISE, rate=1.0), "expected a Store to move, got Population; fix"),
        (lambda: es.Adam(POP), "expected a Store to move, got Population; fix"),
        (lambda: es.perturb({"w": 1}, NOISE, 1), "expected a Store to move, got dict; fix: Store.from_tree"),
        (lambda: es.perturb(a_store(), 0.1, 1), "expected a noise, got float; fix: pass one, such as fs.Normal"),
    ],
)
def test_what_is_no_store_or_no_noise_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()
    assert not POP.buffer.any()


def test_a_leaf_of_scale_zero_is_sampled_to_the_bit():
    store = fs.Store.from_tree({"b": np.array([-0.0, 0.0], "f4"), "w": np.ones(4, "f4")})
    out = store.copy()
    for sign in (1, -1):
        es.sample(out, store, fs.Normal({"b": 0, "*": 0.1}), 7, sign=sign)
        assert out["b"].tobytes() == store["b"].tobytes()


def test_hashed_seeds_may_be_a_list_as_json_gives_it():
    store, keys = a_store(), fs.seeds(1, 8)
    one, two = (fs.Population.zeros(store.layout, 8) for _ in range(2))
    es.sample(one, store, NOISE, keys)
    es.sample(two, store, NOISE, json.loads(json.dumps(keys.tolist())))
    assert one.buffer.tobytes() == two.buffer.tobytes()


def test_a_glob_that_hides_all_others_is_an_error():
    with pytest.raises(ValueError, match="expected a scale > 0 for some leaf, got 0 for all .*; fix: put '\\*' last"):
        es.perturb(a_store(), fs.Normal({"*": 0, "w": 0.1}), 1)


def test_a_bound_just_above_a_power_of_two_has_the_grid_of_the_next():
    assert fs.Normal(0.1, bound=32).step == 2.0**-19
    assert fs.Normal(0.1, bound=math.nextafter(32, 99)).step == 2.0**-18
    with pytest.raises(ValueError, match="expected a bound in .*, got x; fix"):
        fs.Normal(0.1, bound="x")


def test_the_leaf_that_would_reach_the_bound_is_named_not_the_largest():
    noise = fs.Rademacher({"a": 1e-3, "b": 2.0})
    store = fs.Store.from_tree({"a": np.full(3, 31, "f4"), "b": np.full(64, 30.5, "f4")})
    es.snap(store, noise)
    with pytest.raises(ValueError, match="'b': expected parameters below the bound 32 after the move, .* of 32.5; fix"):
        es.perturb(store, noise, 1)


def test_numbers_that_overflow_on_the_way_to_the_grid_are_past_the_bound():
    store = fs.Store.from_tree({"w": np.array([3e38], "f4"), "v": np.array([1e300])})
    for verb in (lambda: es.snap(store, NOISE), lambda: es.perturb(store, NOISE, 1)):
        with pytest.raises(ValueError, match="expected parameters below the bound 32, got a largest magnitude of"):
            verb()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_sum_of_thousands_of_seeds_does_not_overflow(dtype):
    noise, n = fs.Rademacher(15.9), 5000
    store, expected = a_store(64, dtype), noise.delta(a_store(64).layout.leaf("w"), np.array([7], "u8"), 0, 64)[0]
    es.update(store, noise, [7] * n, [1 / n] * n)
    assert np.abs(store["w"] - expected).max() < 2e-6
