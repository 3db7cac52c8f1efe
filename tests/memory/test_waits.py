"""Threads that wait for each other: the one that began to wait last gets an error, and the other goes on."""

import random
import signal
import threading
import time

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import patience


def stores():
    return [fs.Store.from_tree({"w": np.full(200_000, x, "f4")}) for x in (1, 2)]


def at_once(*works):
    """Call all of them in threads of their own, within `waiting`: what each raised."""
    raised, together = [None] * len(works), threading.Barrier(len(works))

    def run(i):
        try:
            with fs.waiting(60.0):
                works[i](together)
        except fs.LentError as error:
            raised[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    [thread.start() for thread in threads]
    [thread.join(timeout=100) for thread in threads]
    assert not any(thread.is_alive() for thread in threads)
    return raised


@pytest.mark.parametrize("copy", [lambda a, b: a.assign(b), lambda a, b: a.__setitem__("w", b["w"])])
def test_two_threads_that_copy_into_each_other_s_stores_do_so_in_turn(copy):
    a, b = stores()
    for _ in range(30):
        raised = at_once(
            lambda together: (together.wait(), copy(a, b)),
            lambda together: (together.wait(), copy(b, a)),
        )
        assert raised == [None, None]
        assert a.to_vector().tobytes() == b.to_vector().tobytes()
        b["w"] = a["w"] + 1


def test_of_two_that_hold_what_the_other_waits_for_one_gets_an_error_and_the_other_goes_on():
    a, b = stores()

    def work(lent, written):
        def run(together):
            with lent.lend():
                together.wait()
                written["w"] = np.zeros(200_000, "f4")

        return run

    raised = at_once(work(a, b), work(b, a))
    (error,) = [error for error in raised if error]
    assert str(error).startswith("expected to wait for threads that go on, got some that wait for this one; fix")
    assert [bool(store["w"].any()) for store in (a, b)].count(False) == 1


def test_of_three_in_a_circle_one_gets_an_error():
    a, b = stores()
    c = a.copy()

    def work(lent, written):
        def run(together):
            with lent.lend():
                together.wait()
                written["w"] = np.zeros(200_000, "f4")

        return run

    raised = at_once(work(a, b), work(b, c), work(c, a))
    assert len([error for error in raised if error]) == 1


def test_a_thread_that_waits_for_one_that_goes_on_waits():
    a, b = stores()

    def slow(together):
        with a.lend():
            together.wait()
            time.sleep(0.3)

    def writes(together):
        together.wait()
        a["w"] = b["w"]

    assert at_once(slow, writes) == [None, None]
    assert a["w"][0] == 2


def test_a_thread_that_waits_too_long_gets_the_error_of_the_one_that_it_waits_for():
    a, b = stores()
    with a.lend():
        thread_error = []

        def writes():
            with fs.waiting(0.05):
                try:
                    a["w"] = b["w"]
                except fs.LentError as error:
                    thread_error.append(str(error))

        thread = threading.Thread(target=writes)
        thread.start()
        thread.join()
    assert "got one that is lent: 1 lend(s), of 'w'" in thread_error[0]


@pytest.mark.parametrize("seconds", [-1, float("nan"), True, "2", None, [1]])
def test_the_seconds_to_wait_are_a_number(seconds):
    with pytest.raises(ValueError, match="expected seconds >= 0 to wait, got .*; fix: pass a number such as"):
        with fs.waiting(seconds):
            pass


def test_what_is_waited_for_seconds_is_waited_for_in_the_block_alone():
    with fs.waiting(np.float32(0.5)):
        with pytest.raises(KeyError), fs.waiting(2):
            assert patience() == 2
            raise KeyError
        assert patience() == 0.5
    assert patience() == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="an alarm strikes")
def test_whatever_strikes_a_thread_does_not_go_on_to_wait_after_the_block():
    class Struck(Exception):
        pass

    def strike(*_):
        raise Struck

    draw, before = random.Random(5), signal.signal(signal.SIGALRM, strike)
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 6e-5 * draw.random())
                for _ in range(20):
                    with fs.waiting(5.0):
                        pass
                while True:
                    time.sleep(0.01)
            except Struck:
                assert patience() == 0
    finally:
        signal.signal(signal.SIGALRM, before)
