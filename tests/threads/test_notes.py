"""What is raised, and its notes: those of now, though the same object has been raised before."""

import signal
import threading
import time

import pytest

from flatstore.threads import Leaving, add_notes, moment, noted, uninterrupted

HELD = "flatstore held this back until the work in progress was finished"


def test_notes_of_one_exception_are_kept_and_those_of_an_earlier_one_are_not():
    error = KeyError()
    error.add_note("of the user's")
    outer, inner = moment(), moment()
    add_notes(error, inner, "inner")
    add_notes(error, outer, "outer")
    assert error.__notes__ == ["of the user's", "inner", "outer"]
    add_notes(error, moment(), "later")
    assert error.__notes__ == ["of the user's", "later"]
    add_notes(error, moment())
    assert error.__notes__ == ["of the user's"]


def test_a_handler_that_raises_the_same_object_each_time_does_not_pile_up_notes():
    error = TimeoutError("mine")

    def ring(number, frame):
        raise error

    def work(fails=False):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.01)
        if fails:
            raise ArithmeticError

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                uninterrupted(work)
            assert error.__notes__ == [HELD]
        with pytest.raises(TimeoutError):
            uninterrupted(lambda: work(fails=True))
        assert len(error.__notes__) == 1
        assert "it had failed" in error.__notes__[0]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("resumed_in_an_except_clause", [False, True])
def test_a_context_that_is_left_in_an_except_clause_does_not_take_that_exception_for_its_own(
    resumed_in_an_except_clause,
):
    seen = []

    class Context:
        def __enter__(self):
            pass

        __exit__ = Leaving()

        def leave(self, error):
            seen.append(error)

    def steps():
        with Context():
            yield

    outer = steps()
    if resumed_in_an_except_clause:
        next(outer)
    try:
        raise KeyError("outer")
    except KeyError:
        list(outer)
        with pytest.raises(ZeroDivisionError), Context():
            print(1 / 0)
        with Context(), noted(lambda error: ["never"]):
            pass
    assert seen[0] is None
    assert isinstance(seen[1], ZeroDivisionError)
    assert seen[2] is None


def test_no_notes_are_added_to_an_exception_that_is_handled_around_it():
    with pytest.raises(KeyError, match="outer") as caught:
        try:
            raise KeyError("outer")
        except KeyError:
            with noted(lambda error: ["never"]):
                pass
            raise
    assert not hasattr(caught.value, "__notes__")


class Struck(Exception):
    pass


@pytest.fixture
def struck():
    """A call that strikes the main thread, which raises."""

    def strike(number, frame):
        raise Struck

    def call():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.01)

    before = signal.signal(signal.SIGUSR1, strike)
    yield call
    signal.signal(signal.SIGUSR1, before)


def test_what_strikes_as_a_context_that_was_not_entered_is_dropped_is_not_lost(struck):
    called = []

    class Refused:
        def __enter__(self):
            raise KeyError

        __exit__ = Leaving()

        def leave(self, error):
            called.append("leave")
            struck()

        def left(self, error):
            called.append("left")  # it may wait for what the frames of the KeyError hold

    with pytest.raises(Struck):
        try:
            with Refused():
                pass
        except KeyError:
            pass
        time.sleep(0)
    assert called == ["leave"]


def test_a_context_that_has_nothing_to_do_without_an_exception_does_nothing_when_it_is_dropped(struck):
    class Idle:
        entered = True

        def __enter__(self):
            if not self.entered:
                raise KeyError

        __exit__ = Leaving(idle=True)

        def leave(self, error):
            struck()

    with Idle():
        pass
    idle = Idle()
    idle.entered = False
    with pytest.raises(KeyError), idle:
        pass
    time.sleep(0)
