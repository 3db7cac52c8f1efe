"""Helpers: one that works is always found, whatever happens to a thread as it starts; it sees what its caller sees."""

import contextvars
import threading

import pytest

from flatstore.threads import caller, helper_threads, uninterrupted


@pytest.mark.parametrize("times", [1, 3])
def test_a_helper_that_is_struck_as_it_starts_is_replaced(monkeypatch, times):
    starts, compute_plainly = [], helper_threads._compute_plainly

    def struck():
        starts.append(threading.get_ident())
        if len(starts) <= times:
            raise SystemExit  # as `PyThreadState_SetAsyncExc` raises it; of others the interpreter prints a traceback
        return compute_plainly()

    monkeypatch.setattr(helper_threads, "_compute_plainly", struck)
    done = []

    def work():
        done.append(uninterrupted(lambda: 7))

    thread = threading.Thread(target=work)  # one that has no helper yet
    thread.start()
    thread.join(timeout=30)
    assert done == [7]
    assert len(starts) > times


def test_a_helper_works_for_its_caller_and_sees_its_variables():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(3)
    here, seen = threading.get_ident(), []
    uninterrupted(lambda: seen.append((variable.get(), caller(), threading.get_ident() != here)))
    assert seen == [(3, here, True)]
    assert caller() == here
