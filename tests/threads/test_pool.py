"""The pool of threads: every task once, in order, and nobody at work after `each` has returned."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

from flatstore.threads import each, set_threads, signal_safe, threads


@pytest.fixture(autouse=True)
def three_threads():
    before = threads()
    set_threads(3)
    yield
    set_threads(before)


def run(code):
    """Run a script in a process of its own, and return what it prints."""
    header = "import os, signal, time\nfrom flatstore.threads import each, set_threads\n"
    command = [sys.executable, "-c", header + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_each_task_runs_once_and_they_start_in_order(size, n):
    set_threads(size)
    lock, calls = threading.Lock(), []

    def task(i):
        with lock:
            calls.append((i, threading.get_ident()))

    each(task, n)
    assert sorted(i for i, _ in calls) == list(range(n))
    sharers = {thread for _, thread in calls}
    assert len(sharers) <= min(size, n)
    assert threading.get_ident() not in sharers
    # A thread may be overtaken between taking a task and noting it, but it takes its own in order.
    for sharer in sharers:
        mine = [i for i, thread in calls if thread == sharer]
        assert mine == sorted(mine)


def test_tasks_are_handed_out_in_increasing_order():
    set_threads(1)
    calls = []
    each(lambda i: calls.append(i), 50)
    assert calls == list(range(50))


def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3)
    each(lambda i: meeting.wait(timeout=30), 3)


def test_a_task_that_raises_stops_the_handing_out_and_those_that_run_finish():
    started, finished = [], []
    failed = threading.Event()

    def task(i):
        started.append(i)
        if i == 1:
            failed.set()
            raise ZeroDivisionError("one")
        failed.wait(timeout=30)
        time.sleep(0.05)
        finished.append(i)

    with pytest.raises(ZeroDivisionError, match="one"):
        each(task, 1000)
    assert sorted(finished) == sorted(set(started) - {1})
    assert len(started) < 10


def test_the_first_exception_is_the_one_raised():
    meeting, second = threading.Barrier(2), threading.Event()

    def task(i):
        meeting.wait(timeout=30)
        if i == 1:
            second.wait(timeout=30)
            time.sleep(0.05)
            raise KeyError("later")
        second.set()
        raise IndexError("first")

    with pytest.raises(IndexError, match="first"):
        each(task, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_holds_the_task_once_the_call_is_over(fails):
    def call():
        payload = np.ones(3)

        def task(i):
            if payload.all() and fails:
                raise ArithmeticError

        try:
            each(task, 20)
        except ArithmeticError:
            assert fails
        return weakref.ref(payload)

    assert [call()() for _ in range(50)] == [None] * 50


def test_several_python_threads_may_call_at_once():
    calls = []

    def caller(k):
        def task(i):
            time.sleep(0.0002)
            calls.append(k)

        for _ in range(10):
            each(task, 7)
            set_threads(2 + k % 3)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(6)]
    [thread.start() for thread in callers]
    [thread.join(timeout=60) for thread in callers]
    assert not any(thread.is_alive() for thread in callers)
    assert [calls.count(k) for k in range(6)] == [70] * 6


def test_a_call_from_inside_a_task_is_done_by_the_thread_of_the_task():
    calls = []

    def task(i):
        here = threading.get_ident()
        each(lambda j: calls.append((i, j, threading.get_ident() == here)), 3)

    each(task, 4)
    assert sorted(calls) == [(i, j, True) for i in range(4) for j in range(3)]


def test_a_negative_number_of_tasks_is_refused():
    with pytest.raises(ValueError, match="expected a number of tasks, 0 or more, got -1; fix"):
        each(lambda i: None, -1)


def test_set_threads_changes_the_number_for_later_calls():
    for size in (4, 1, 2):
        set_threads(size)
        assert threads() == size
        meeting = threading.Barrier(size)
        seen = set()

        def task(i, meeting=meeting, seen=seen):
            seen.add(threading.get_ident())
            meeting.wait(timeout=30)

        each(task, size)
        assert len(seen) == size


def test_threads_that_nobody_needs_end():
    printed = run("""
        import threading
        def all_threads():
            return len(os.listdir("/proc/self/task"))
        def settled(most):
            deadline = time.monotonic() + 30
            while all_threads() > most and time.monotonic() < deadline:
                time.sleep(0.01)
            return all_threads() <= most
        before, meeting = all_threads(), threading.Barrier(20)
        set_threads(20)
        each(lambda i: meeting.wait(timeout=30), 20)
        print(settled(before + 1 + os.cpu_count()))
        callers = [threading.Thread(target=each, args=(print, 0)) for _ in range(20)]
        callers += [threading.Thread(target=each, args=(lambda i: None, 1)) for _ in range(20)]
        [caller.start() for caller in callers]
        [caller.join() for caller in callers]
        print(settled(before + 1 + os.cpu_count()))
    """)
    assert printed == ["True", "True"]


@pytest.mark.parametrize("bad", [0, -1, 2.5, "2", None, True])
def test_a_number_of_threads_is_one_or_more(bad):
    with pytest.raises(
        ValueError, match=r"expected a whole number of threads, 1 or more, got .*; fix: use set_threads\(4\)"
    ):
        set_threads(bad)
    assert threads() == 3


@pytest.mark.parametrize("text, expected", [("5", 5), ("", None)])
def test_the_environment_sets_the_number_of_threads(monkeypatch, text, expected):
    monkeypatch.setenv("FLATSTORE_NUM_THREADS", text)
    monkeypatch.setattr(sys.modules[each.__module__], "_threads", None)
    assert threads() == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5", "²"])
def test_a_bad_number_in_the_environment_is_refused_when_first_used(monkeypatch, text):
    monkeypatch.setenv("FLATSTORE_NUM_THREADS", text)
    monkeypatch.setattr(sys.modules[each.__module__], "_threads", None)
    with pytest.raises(ValueError, match=f"expected FLATSTORE_NUM_THREADS to be a whole .*, got '{text}'; fix: unset"):
        each(lambda i: None, 1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("n", [1, 12])
def test_interrupts_are_held_back_until_the_work_is_finished(size, n):
    set_threads(size)
    done = []

    def task(i):
        for _ in range(3):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.003)
        done.append(i)

    with pytest.raises(KeyboardInterrupt) as caught:
        each(task, n)
    assert sorted(done) == list(range(n))
    assert caught.value.__notes__ == ["flatstore held this back until the work in progress was finished"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_work_that_fails_says_so():
    def task(i):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)
        raise ArithmeticError

    with pytest.raises(KeyboardInterrupt) as caught:
        each(task, 5)
    assert "it had failed, see the cause" in caught.value.__notes__[0]
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_what_the_handler_of_another_signal_raises_is_held_back_too():
    def ring(number, frame):
        raise TimeoutError("ring")

    before, done = signal.signal(signal.SIGUSR1, ring), []

    def task(i):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.01)
        done.append(i)

    try:
        with pytest.raises(TimeoutError, match="ring"):
            each(task, 6)
        assert sorted(done) == list(range(6))
    finally:
        signal.signal(signal.SIGUSR1, before)


def struck(call, strikes):
    """A function after which something is raised, as by a signal handler."""

    def then_struck(*arguments):
        result = call(*arguments)
        if strikes:
            raise strikes.pop(0)
        return result

    return then_struck


def test_of_what_two_handlers_raise_during_one_piece_of_work_nothing_is_lost(monkeypatch):
    strikes, done = [TimeoutError("the first"), SystemExit(143)], []
    for name in ("release", "acquire"):
        monkeypatch.setattr(signal_safe, name, struck(getattr(signal_safe, name), strikes))
    with pytest.raises(SystemExit) as caught:
        signal_safe.uninterrupted(lambda: done.append(None))
    assert done and not strikes and str(caught.value.__context__) == "the first"


def test_of_what_two_handlers_raise_as_something_is_dropped_nothing_is_lost(monkeypatch):
    strikes, done = [TimeoutError("the first"), SystemExit(143)], []
    for name in ("acquire", "raised_later"):
        monkeypatch.setattr(signal_safe, name, struck(getattr(signal_safe, name), strikes))
    last = signal_safe.when_dropped(lambda: done.append(None))
    with pytest.raises(SystemExit) as caught:
        del last
        len(strikes)
    assert done and not strikes and str(caught.value.__context__) == "the first"


def test_what_is_dropped_is_closed_by_a_helper_though_a_handler_strikes_first(monkeypatch):
    strikes, seen = [TimeoutError("the first")], []
    last = signal_safe.uninterrupted(lambda: signal_safe.when_dropped(lambda: seen.append(threading.get_ident())))
    monkeypatch.setattr(signal_safe, "helper_of_this_thread", struck(signal_safe.helper_of_this_thread, strikes))
    with pytest.raises(TimeoutError, match="the first"):
        del last
        len(strikes)
    assert len(seen) == 1 and seen[0] != threading.get_ident()


def test_a_handler_that_raises_nothing_is_called_after_the_work():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        each(lambda i: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT), 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [signal.SIGINT]


def test_interrupts_from_outside_never_leave_a_thread_at_work():
    printed = run("""
        def interrupt(number, frame):
            # Raises wherever in `each` the main thread is, or called by it, and not in this script.
            held = frame is None
            while frame is not None and frame.f_code.co_filename != each.__code__.co_filename:
                frame = frame.f_back
            if held or frame is not None:
                raise KeyboardInterrupt
        main = os.getpid()
        signal.signal(signal.SIGINT, interrupt)
        sender = os.fork()
        while sender == 0:
            os.kill(main, signal.SIGINT) if os.getppid() == main else os._exit(0)
            time.sleep(0.0003)
        busy, left, interrupted = set(), 0, 0
        def task(i):
            busy.add(i)
            time.sleep(0.0003)
            busy.remove(i)
        for call in range(300):
            try:
                set_threads(2 + call % 2)
                each(task, 6)
            except KeyboardInterrupt:
                interrupted += 1
            left += len(busy)
        os.kill(sender, signal.SIGKILL)
        print(left, interrupted > 10)
    """)
    assert printed == ["0", "True"]


def test_a_forked_child_builds_a_pool_of_its_own_and_threads_do_not_keep_a_process_alive():
    printed = run("""
        import warnings
        warnings.simplefilter("ignore")
        set_threads(2)
        each(lambda i: None, 4)
        child = os.fork()
        if child == 0:
            seen = []
            each(lambda i: seen.append(i), 4)
            os._exit(7 if sorted(seen) == [0, 1, 2, 3] else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        each(lambda i: None, 4)
    """)
    assert printed == ["7"]
