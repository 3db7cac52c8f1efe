"""What is raised, and its notes: those of now, though the same object has been raised before."""

import os
import signal
import time

import pytest

from flatstore.threads import add_notes, moment, uninterrupted

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
        os.kill(os.getpid(), signal.SIGUSR1)
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
