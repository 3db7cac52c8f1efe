"""Loops over tasks: all is done, or what was done is undone, or it is known how far each task came."""

import threading

import numpy as np
import pytest

from flatstore.kernels import StoppedAt, Task, run_tasks, set_threads, threads


@pytest.fixture(params=[1, 3])
def numbers(request):
    """Numbers for tasks to count up, with a pool of one thread or three."""
    before = threads()
    set_threads(request.param)
    yield np.zeros(60, int)
    set_threads(before)


def tasks_over(numbers, size=5):
    return [Task(numbers, start, start + size) for start in range(0, len(numbers), size)]


def add(task, scratch):
    task.group[task.start : task.stop] += 1
    return task.stop


def take_back(task, end, scratch):
    task.group[task.start : end] -= 1


def test_every_task_is_done_once(numbers):
    reached = {}
    assert run_tasks(tasks_over(numbers), add, lambda: None, take_back, reached=reached) is None
    assert (numbers == 1).all()
    assert sorted(reached.values()) == list(range(5, 61, 5))


def test_a_task_that_stops_has_all_undone_and_is_told(numbers):
    def stops_in_the_fourth(task, scratch):
        stop = 17 if task.start == 15 else task.stop
        task.group[task.start : stop] += 1
        return stop

    stopped = run_tasks(tasks_over(numbers), stops_in_the_fourth, lambda: None, take_back)
    assert stopped is not None
    assert (stopped[0].start, stopped[1]) == (15, 17)
    assert not numbers.any()


def test_a_task_that_raises_has_all_undone_and_the_error_is_the_task_s(numbers):
    def raises_in_the_fourth(task, scratch):
        if task.start == 15:
            raise KeyError("mine")
        return add(task, scratch)

    with pytest.raises(KeyError, match="mine"):
        run_tasks(tasks_over(numbers), raises_in_the_fourth, lambda: None, take_back)
    assert not numbers.any()


def test_without_undo_it_is_known_how_far_each_task_came(numbers):
    def fails_in_the_middle(task, scratch):
        if task.start == 15:
            task.group[15:17] += 1
            raise StoppedAt(17) from KeyError("mine")
        return add(task, scratch)

    reached, tasks = {}, tasks_over(numbers)
    with pytest.raises(KeyError, match="mine"):
        run_tasks(tasks, fails_in_the_middle, lambda: None, reached=reached)
    expected = np.zeros(60, int)
    for i, end in reached.items():
        expected[tasks[i].start : end] += 1
    assert np.array_equal(numbers, expected)
    assert reached[3] == 17


def test_no_task_is_begun_after_one_that_stopped():
    before, numbers = threads(), np.zeros(60, int)
    set_threads(1)
    reached = {}
    run_tasks(tasks_over(numbers), lambda task, scratch: task.start, lambda: None, reached=reached)
    set_threads(before)
    assert reached == {0: 0}


def test_each_thread_has_memory_of_its_own_and_all_of_it_is_made_first(numbers):
    made, in_use, shared = [], set(), []

    def scratch():
        made.append(object())
        return made[-1]

    def use(task, mine):
        if mine in in_use:
            shared.append(mine)
        in_use.add(mine)
        threading.Event().wait(0.002)
        in_use.discard(mine)
        return add(task, mine)

    run_tasks(tasks_over(numbers), use, scratch)
    assert len(made) == threads()
    assert not shared
    run_tasks(tasks_over(numbers), use, scratch, most=1)
    assert len(made) == threads() + 1


def test_memory_that_cannot_be_had_is_an_error_before_anything_is_written(numbers):
    def scratch():
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        run_tasks(tasks_over(numbers), add, scratch, take_back)
    assert not numbers.any()


def test_no_tasks_are_done_at_once(numbers):
    assert run_tasks([], add, lambda: None, take_back) is None
