"""Records: each is handed out however its move is interrupted, and what was held back is raised however one leaves."""

import gc
import inspect
import itertools
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.evaluation import handed_out, records
from flatstore.threads import when_dropped

NOISE = fs.Rademacher(0.25)


@jax.jit
def score(stacked):
    return -jax.vmap(lambda params: jnp.square(params["w"] - 1).sum())(stacked)


@jax.jit
def fitness(params):
    return -jnp.square(params["w"] - 1).sum()


def by_evolve(resume=None):
    centre = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    return es.evolve(
        centre, lambda x, n: score(x), seed=1, noise=NOISE, members=4, rate=0.5, generations=3, resume=resume
    )


def by_mezo(resume=None):
    store = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    return es.mezo(store, lambda x, n: fitness(x), seed=1, noise=NOISE, rate=0.01, steps=3, resume=resume)


def by_breeding(resume=None):
    pop = fs.Population.from_tree({"w": np.zeros(16, "f4")}, 8)
    return ga.evolve(pop, lambda x, n: score(x), seed=1, mutate=fs.Normal(0.25), generations=3, resume=resume)


LOOPS = {
    by_evolve: "generation 0 has moved the centre; fix: evolve(..., resume=1) goes on",
    by_mezo: "step 0 has moved the store; fix: mezo(..., resume=1) goes on",
    by_breeding: "the population is as the record of generation 0 says; fix: evolve(..., resume=record) goes on",
}


@pytest.fixture
def pressed(monkeypatch):
    """Ctrl-C is pressed as a move ends."""
    real = records._Round.hand_in

    def hand_in(self, record):
        real(self, record)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(records._Round, "hand_in", hand_in)


def kept(error):
    return [note for note in error.__notes__ if "held this back" not in note]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_interrupt_during_a_move_comes_after_its_record(loop, pressed):
    moves = loop()
    assert next(moves).number == 0
    with pytest.raises(KeyboardInterrupt) as caught:
        next(moves)
    assert kept(caught.value) == [LOOPS[loop]]
    assert list(moves) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_an_interrupt_during_a_move_is_raised_though_the_loop_is_left_at_that_record(loop, pressed):
    seen = []
    with pytest.raises(KeyboardInterrupt) as caught:
        for record in loop():
            seen.append(record.number)
            break
        time.sleep(0)
    assert seen == [0]
    assert kept(caught.value) == [LOOPS[loop]]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_interrupt_during_a_move_is_raised_though_the_loop_is_closed_or_dropped(loop, pressed):
    for leave in (lambda moves: moves.close(), lambda moves: moves.clear()):
        moves = loop()
        next(moves)
        left = [moves] if leave.__code__.co_names == ("clear",) else moves
        del moves
        with pytest.raises(KeyboardInterrupt):
            leave(left)
            time.sleep(0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_that_is_left_quietly_raises_nothing(loop):
    for _ in loop():
        break
    time.sleep(0)


EXITS = """
import signal, sys
import numpy as np, flatstore as fs
from flatstore import es
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
class Struck(es.Momentum):
    def step(self, gradient, rate):
        signal.raise_signal(signal.SIGTERM)
        super().step(gradient, rate)
centre = fs.Store.from_tree({"w": np.zeros(5, "f4")})
score = lambda stacked, n: np.arange(4.0)
settings = dict(seed=1, noise=fs.Rademacher(0.25), members=4, rate=0.5, optimiser=Struck(centre))
for record in es.evolve(centre, score, **settings):
    break
len("")
print("went on")
"""


def test_an_exit_that_was_held_back_ends_the_process_though_the_loop_is_left_at_that_record():
    done = subprocess.run([sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")


class Stubborn(BaseException):
    """An exception below which there can be no other class."""

    def __init_subclass__(cls):
        raise TypeError


def test_what_is_held_is_raised_as_the_very_object_whatever_its_class():
    def make(n, hand_in):
        hand_in(n)
        raise error

    for error in (Stubborn("mine"), KeyError("mine"), SystemExit(3)):
        try:
            for _ in handed_out(0, None, make, lambda n, error: ["not made"], "made {}".format):
                break
            time.sleep(0)
        except BaseException as raised:
            assert raised is error
            assert raised.__notes__ == ["made 0"]
        else:
            pytest.fail("it was lost")


def test_what_is_held_in_another_thread_is_raised_there():
    raised, error = [], TimeoutError("mine")

    def make(n, hand_in):
        hand_in(n)
        raise error

    def work():
        try:
            for _ in handed_out(0, None, make, lambda n, error: ["not made"], "made {}".format):
                break
            time.sleep(0)
        except TimeoutError as caught:
            raised.append(caught)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == [error]


def test_what_is_raised_before_the_move_is_over_has_the_notes_of_what_is_not_made():
    def make(n, hand_in):
        if n == 2:
            raise KeyError("mine")
        hand_in(n)

    moves = handed_out(1, None, make, lambda n, error: [f"{n} is not made"], "made {}".format)
    assert next(moves) == 1
    with pytest.raises(KeyError, match="mine") as caught:
        next(moves)
    assert caught.value.__notes__ == ["2 is not made"]


def test_an_exception_that_is_raised_twice_has_the_notes_of_the_second_time_only():
    error = TimeoutError("the same object each time")

    def make(n, hand_in):
        raise error

    for n in (3, 7):
        with pytest.raises(TimeoutError):
            next(handed_out(n, None, make, lambda n, error: [f"{n} is not made"], "made {}".format))
    assert error.__notes__ == ["7 is not made"]


def test_a_record_is_handed_out_again_and_the_end_of_the_loop_is_told_once():
    told = []

    def loop(most):
        make = lambda n, hand_in: hand_in(n)  # noqa: E731
        return handed_out(3, most, make, lambda n, e: [], str, again=2, until=when_dropped(lambda: told.append(most)))

    assert list(loop(5)) == [2, 3, 4] and told == [5]
    assert list(loop(3)) == [2] and told == [5, 3]
    for number in loop(9):
        if number == 4:
            break
    assert told == [5, 3, 9]
    moves = loop(8)
    assert next(moves) == 2
    moves.close()
    assert told == [5, 3, 9, 8]
    loop(7).close()
    assert told == [5, 3, 9, 8, 7]  # though it was not begun


def test_the_end_of_a_loop_is_told_before_an_error_of_it_is_handled():
    told = []

    def fail(n, hand_in):
        raise KeyError(n)

    moves = handed_out(0, None, fail, lambda n, e: [], str, until=when_dropped(lambda: told.append("over")))
    with pytest.raises(KeyError):
        next(moves)
    assert told == ["over"]


class Plain:
    """An optimiser of one's own."""

    def __init__(self, store):
        self.store = store

    def step(self, gradient, rate):
        self.store["w"] = self.store["w"] + rate * gradient["w"]


def struck_before_the_third_move(monkeypatch, loop):
    """The notes of what is raised right before the third move begins."""

    class Struck(records.noted):
        times = 0

        def __enter__(self):
            Struck.times += 1
            if Struck.times == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(records, "noted", Struck)
    with pytest.raises(KeyboardInterrupt) as caught:
        for _ in loop:
            pass
    return getattr(caught.value, "__notes__", [])


def test_a_generation_that_is_struck_before_it_is_bred_is_not_said_to_be_there(monkeypatch):
    assert struck_before_the_third_move(monkeypatch, by_breeding()) == []


def test_a_step_of_one_s_own_is_not_said_to_have_begun_when_its_generation_has_not(monkeypatch):
    centre = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    settings = dict(seed=1, noise=NOISE, members=4, rate=0.5, optimiser=Plain(centre), generations=3)
    notes = struck_before_the_third_move(monkeypatch, es.evolve(centre, lambda x, n: score(x), **settings))
    assert notes == ["the centre is as generation 2 found it; fix: evolve(..., resume=2) goes on"]


class Struck(Exception):
    """What a handler raises."""


def struck_at(step):
    """A trace function that raises as the function of this number is entered, as a signal handler may."""

    def strike(frame, event, _):
        nonlocal step
        step -= event == "call" and not frame.f_code.co_flags & inspect.CO_GENERATOR
        if not step:
            sys.settrace(None)
            raise Struck

    return strike


def begun_in_folder(run):
    centre = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    return es.evolve(centre, lambda x, n: np.zeros(4), seed=1, noise=NOISE, members=4, rate=0.5, run=run)


@pytest.fixture
def no_callbacks():
    """Garbage is not collected: what strikes the callback that JAX has there is lost, and no run of ours is struck."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_run_that_is_struck_as_it_begins_is_closed_though_the_exception_is_kept(tmp_path, no_callbacks):
    kept, tracing, step = [], sys.gettrace(), 0
    while len(kept) == step:
        step += 1
        try:
            sys.settrace(struck_at(step))
            begun_in_folder(tmp_path / str(step))
        except Struck as struck:
            kept.append(struck)
        finally:
            sys.settrace(tracing)
        begun_in_folder(tmp_path / str(step)).close()
    assert step > 100


def test_what_strikes_as_a_run_is_left_is_raised_and_the_run_is_closed(tmp_path, no_callbacks):
    tracing = sys.gettrace()
    for step in itertools.count(1):
        moves, is_raised = begun_in_folder(tmp_path / str(step)), False
        next(moves)
        try:
            sys.settrace(struck_at(step))
            del moves
            str(step)  # the thread goes on
        except Struck:
            is_raised = True
        finally:
            is_struck = sys.gettrace() is None
            sys.settrace(tracing)
        assert is_raised == is_struck
        begun_in_folder(tmp_path / str(step)).close()
        if not is_struck:
            break
