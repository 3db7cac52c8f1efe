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

from flatstore.kernels.pool import each, set_threads, threads


@pytest.fixture(autouse=True)
def three_threads():
    before = threads()
    set_threads(3)
    yield
    set_threads(before)


def run(code):
    """Run a script in a process of its own, and return what it prints."""
    header = "import os, signal, time\nfrom flatstore.kernels.pool import each, set_threads\n"
    command = [sys.executable, "-c", header + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_each_task_runs_once_and_they_start_in_order(size, n):
    set_threads(size)
    lock, calls = threading.Lock(), []

    def task(i, worker):
        with lock:
            calls.append((i, worker, threading.current_thread().name))

    each(task, n)
    assert sorted(i for i, _, _ in calls) == list(range(n))
    assert all(0 <= worker < size and name == f"flatstore-{worker}" for _, worker, name in calls)
    # A thread may be overtaken between taking a task and noting it, but it takes its own in order.
    for thread in range(size):
        mine = [i for i, worker, _ in calls if worker == thread]
        assert mine == sorted(mine)


def test_tasks_are_handed_out_in_increasing_order():
    set_threads(1)
    calls = []
    each(lambda i, worker: calls.append(i), 50)
    assert calls == list(range(50))


def test_tasks_run_at_the_same_time():
    meeting = threading.Barrier(3)
    each(lambda i, worker: meeting.wait(timeout=30), 3)


def test_a_task_that_raises_stops_the_handing_out_and_those_that_run_finish():
    started, finished = [], []
    failed = threading.Event()

    def task(i, worker):
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

    def task(i, worker):
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

        def task(i, worker):
            if payload.all() and fails:
                raise ArithmeticError

        try:
            each(task, 20)
        except ArithmeticError:
            assert fails
        return weakref.ref(payload)

    assert [call()() for _ in range(50)] == [None] * 50


def test_several_python_threads_may_call_at_once_and_worker_numbers_stay_unique():
    busy, clashes, calls = set(), [], []

    def caller(k):
        def task(i, worker):
            if worker in busy:
                clashes.append(worker)
            busy.add(worker)
            time.sleep(0.0002)
            calls.append(k)
            busy.discard(worker)

        for _ in range(10):
            each(task, 7)
            set_threads(2 + k % 3)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(6)]
    [thread.start() for thread in callers]
    [thread.join(timeout=60) for thread in callers]
    assert not any(thread.is_alive() for thread in callers)
    assert [calls.count(k) for k in range(6)] == [70] * 6
    assert clashes == []


def test_a_call_from_inside_a_task_is_refused():
    with pytest.raises(RuntimeError, match="expected a call from outside the pool, got one from inside a task; fix"):
        each(lambda i, worker: each(lambda j, w: None, 2), 2)


def test_a_negative_number_of_tasks_is_refused():
    with pytest.raises(ValueError, match="expected a number of tasks, 0 or more, got -1; fix"):
        each(lambda i, worker: None, -1)


def test_set_threads_changes_the_size_of_the_pool_for_later_calls():
    for size in (4, 1, 2):
        set_threads(size)
        assert threads() == size
        meeting = threading.Barrier(size)
        seen = set()

        def task(i, worker, meeting=meeting, seen=seen):
            seen.add(worker)
            meeting.wait(timeout=30)

        each(task, size)
        assert seen == set(range(size))
        assert sum(thread.name.startswith("flatstore-") for thread in threading.enumerate()) == size


@pytest.mark.parametrize("bad", [0, -1, 2.5, "2", None])
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
        each(lambda i, worker: None, 1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("n", [1, 12])
def test_interrupts_are_held_back_until_the_work_is_finished(size, n):
    set_threads(size)
    done = []

    def task(i, worker):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.003)
        done.append(i)

    with pytest.raises(KeyboardInterrupt) as caught:
        each(task, n)
    assert sorted(done) == list(range(n))
    assert caught.value.__notes__ == ["flatstore held this interrupt back until the work in progress was finished"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_work_that_fails_says_so():
    def task(i, worker):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        raise ArithmeticError

    with pytest.raises(KeyboardInterrupt) as caught:
        each(task, 5)
    assert "a task had failed" in caught.value.__notes__[0]
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_what_the_handler_of_another_signal_raises_is_held_back_too():
    def ring(number, frame):
        raise TimeoutError("ring")

    before, done = signal.signal(signal.SIGUSR1, ring), []

    def task(i, worker):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        done.append(i)

    try:
        with pytest.raises(TimeoutError, match="ring"):
            each(task, 6)
        assert sorted(done) == list(range(6))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_raises_nothing_is_called_after_the_work():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        each(lambda i, worker: os.kill(os.getpid(), signal.SIGINT), 1)
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
        def task(i, worker):
            busy.add(worker)
            time.sleep(0.0003)
            busy.remove(worker)
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
        each(lambda i, worker: None, 4)
        child = os.fork()
        if child == 0:
            seen = []
            each(lambda i, worker: seen.append(i), 4)
            os._exit(7 if sorted(seen) == [0, 1, 2, 3] else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        each(lambda i, worker: None, 4)
    """)
    assert printed == ["7"]
