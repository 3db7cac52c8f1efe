"""Loops over tasks: all is done, or what was done is undone, or it is known how far each task came."""

import threading

import numpy as np
import pytest

from flatstore.threads import REACHED, Task, progress_of, run_tasks, set_threads, threads


@pytest.fixture(params=[1, 3])
def numbers(request):
    """Numbers for tasks to count up, with a pool of one thread or three."""
    before = threads()
    set_threads(request.param)
    yield np.zeros(60, int)
    set_threads(before)


def tasks_over(numbers, size=5):
    return [Task(numbers, start, start + size) for start in range(0, len(numbers), size)]


def add(task, scratch, note):
    task.group[task.start : task.stop] += 1
    note[REACHED] = task.stop


def take_back(task, end, scratch):
    task.group[task.start : end] -= 1


def test_every_task_is_done_once(numbers):
    tasks = tasks_over(numbers)
    progress = progress_of(tasks)
    assert run_tasks(tasks, add, lambda: None, [take_back], progress=progress) is None
    assert (numbers == 1).all()
    assert progress[:, REACHED].tolist() == list(range(5, 61, 5))


def test_a_task_that_stops_has_all_undone_and_is_told(numbers):
    def stops_in_the_fourth(task, scratch, note):
        note[REACHED] = 17 if task.start == 15 else task.stop
        task.group[task.start : note[REACHED]] += 1

    stopped = run_tasks(tasks_over(numbers), stops_in_the_fourth, lambda: None, [take_back])
    assert stopped is not None
    assert (stopped[0].start, stopped[1]) == (15, 17)
    assert not numbers.any()


def test_a_task_that_raises_has_all_undone_and_the_error_is_the_task_s(numbers):
    def raises_in_the_fourth(task, scratch, note):
        if task.start == 15:
            raise KeyError("mine")
        add(task, scratch, note)

    with pytest.raises(KeyError, match="mine"):
        run_tasks(tasks_over(numbers), raises_in_the_fourth, lambda: None, [take_back])
    assert not numbers.any()


def test_what_fails_after_the_compiled_loop_is_undone_too(numbers):
    def adds_and_raises(task, scratch, note):
        add(task, scratch, note)
        if task.start == 15:
            raise MemoryError("no room for what the loop returns")

    with pytest.raises(MemoryError, match="no room"):
        run_tasks(tasks_over(numbers), adds_and_raises, lambda: None, [take_back])
    assert not numbers.any()


def test_steps_of_undo_are_done_in_order_each_once_though_one_of_them_fails_for_a_moment(numbers):
    steps, failed = [], []

    def first(task, end, scratch):
        take_back(task, end, scratch)
        steps.append(("first", task.start))

    def second(task, end, scratch):
        if task.start == 5 and not failed:
            failed.append(task)
            raise MemoryError("for a moment")
        steps.append(("second", task.start))

    def raises_in_the_fourth(task, scratch, note):
        if task.start == 15:
            raise KeyError("mine")
        add(task, scratch, note)

    with pytest.raises(KeyError, match="mine"):
        run_tasks(tasks_over(numbers), raises_in_the_fourth, lambda: None, [first, second])
    assert not numbers.any()
    assert failed
    assert len(set(steps)) == len(steps)
    assert steps.index(("first", 5)) < steps.index(("second", 5))


def test_what_cannot_be_undone_is_finished_if_memory_was_short_for_a_moment(numbers):
    failed = []

    def fails_once(task, scratch, note):
        if task.start == 15 and not failed:
            task.group[15:17] += 1
            note[REACHED] = 17
            failed.append(task)
            raise MemoryError("for a moment")
        add(task, scratch, note)

    assert run_tasks(tasks_over(numbers), fails_once, lambda: None, finish=MemoryError) is None
    assert (numbers == 1).all()
    assert failed


def test_what_can_be_neither_finished_nor_undone_says_so(numbers):
    def fails(task, scratch, note):
        if task.start == 15:
            raise MemoryError("for ever")
        add(task, scratch, note)

    with pytest.raises(MemoryError, match="for ever") as caught:
        run_tasks(tasks_over(numbers), fails, lambda: None, finish=MemoryError)
    assert "the parameters are half written" in caught.value.__notes__[0]


def test_without_undo_it_is_known_how_far_each_task_came(numbers):
    def fails_in_the_middle(task, scratch, note):
        if task.start == 15:
            task.group[15:17] += 1
            note[REACHED] = 17
            raise KeyError("mine")
        add(task, scratch, note)

    tasks = tasks_over(numbers)
    progress = progress_of(tasks)
    with pytest.raises(KeyError, match="mine"):
        run_tasks(tasks, fails_in_the_middle, lambda: None, progress=progress)
    expected = np.zeros(60, int)
    for task, end in zip(tasks, progress[:, REACHED], strict=True):
        expected[task.start : end] += 1
    assert np.array_equal(numbers, expected)
    assert progress[3, REACHED] == 17


def test_no_task_is_begun_after_one_that_stopped():
    before, numbers = threads(), np.zeros(60, int)
    set_threads(1)
    begun = []
    run_tasks(tasks_over(numbers), lambda task, scratch, note: begun.append(task.start), lambda: None)
    set_threads(before)
    assert begun == [0]


def test_each_thread_has_memory_of_its_own_and_all_of_it_is_made_first(numbers):
    made, in_use, shared = [], set(), []

    def scratch():
        made.append(object())
        return made[-1]

    def use(task, mine, note):
        if mine in in_use:
            shared.append(mine)
        in_use.add(mine)
        threading.Event().wait(0.002)
        in_use.discard(mine)
        add(task, mine, note)

    run_tasks(tasks_over(numbers), use, scratch)
    assert len(made) == threads()
    assert not shared
    run_tasks(tasks_over(numbers), use, scratch, most=1)
    assert len(made) == threads() + 1


def test_memory_that_cannot_be_had_is_an_error_before_anything_is_written(numbers):
    def scratch():
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        run_tasks(tasks_over(numbers), add, scratch, [take_back])
    assert not numbers.any()


def test_no_tasks_are_done_at_once(numbers):
    assert run_tasks([], add, lambda: None, [take_back]) is None
