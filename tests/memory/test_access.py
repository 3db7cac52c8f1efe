"""Steps that are made at once: as the only writer, all of them or none, whoever strikes; and nothing is left behind."""

import signal
import threading
import time
from functools import partial
from operator import setitem

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import reading, region_of, using, write, write_at_once


def a_store():
    return fs.Store.from_tree({"w": np.zeros(1000, "f4")})


def fill(store, value, *more):
    view = store._new_view(store.layout.leaf("w"))
    return [partial(setitem, view, slice(i, i + 100), value) for i in range(0, 1000, 100)] + list(more)


def users(store):
    return [user for kind in region_of(store.memory).users for user in kind]


def test_all_steps_are_made_and_nobody_is_left():
    store, done = a_store(), []
    write_at_once([store.memory], fill(store, 3, partial(done.append, "done")))
    assert (store["w"] == 3).all()
    assert done == ["done"]
    assert not users(store)


def test_what_a_step_raises_comes_out_and_the_rest_is_not_made():
    store = a_store()
    with pytest.raises(IndexError):
        write_at_once([store.memory], [*fill(store, 1)[:2], [].pop, *fill(store, 1)[2:]])
    assert store["w"].sum() == 200
    assert not users(store)


def short_of_memory(times):
    """A step that fails so many times, and what it has raised."""
    raised = []

    def step():
        if len(raised) < times:
            raised.append(MemoryError())
            raise raised[-1]

    return step, raised


@pytest.mark.parametrize("at", [1, 5, 10])
def test_a_step_that_lacks_memory_for_a_moment_is_made_again_so_that_all_are_made(at):
    store, (step, raised) = a_store(), short_of_memory(1)
    write_at_once([store.memory], [*fill(store, 3)[:at], step, *fill(store, 3)[at:]])
    assert (store["w"] == 3).all()
    assert len(raised) == 1
    assert not users(store)


def test_nothing_is_made_if_the_first_step_lacks_memory_and_a_note_says_what_cannot_be_finished():
    store = a_store()
    with pytest.raises(MemoryError) as caught:
        write_at_once([store.memory], [short_of_memory(1)[0], *fill(store, 1)])
    assert not store["w"].any()
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(MemoryError) as caught:
        write_at_once([store.memory], [*fill(store, 1)[:2], short_of_memory(2)[0]])
    assert caught.value.__notes__ == ["flatstore could not finish what was begun: the parameters are half written"]
    assert not users(store)


def test_it_is_refused_beside_readers_lends_and_writers_and_nothing_is_written():
    store = a_store()
    with store.lend(), pytest.raises(fs.LentError, match="got one that is lent"):
        write_at_once([store.memory], fill(store, 1))
    with reading(store.memory) as own:
        with pytest.raises(fs.LentError, match="another thread copies"):
            write_at_once([store.memory], fill(store, 1))
        assert not store["w"].any()
        write_at_once([store.memory], fill(store, 2), own)
    assert (store["w"] == 2).all()
    inside, go_on = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: write([store.memory], lambda: (inside.set(), go_on.wait(30))))
    other.start()
    inside.wait(30)
    try:
        with pytest.raises(fs.LentError, match="another thread writes"):
            write_at_once([store.memory], fill(store, 1))
    finally:
        go_on.set()
        other.join()
    assert (store["w"] == 2).all()


def test_a_context_takes_all_memories_or_none():
    a, b = a_store(), a_store()
    with a.lend(), pytest.raises(fs.LentError), using(reads=[b.memory], writes=[a.memory]):
        pass
    assert not users(b)
    a["w"] = b["w"]


def test_whatever_strikes_finds_all_steps_made_or_none_and_nobody_is_left():
    store, seen = a_store(), set()

    def handler(number, frame):
        raise TimeoutError

    before, end, i = signal.signal(signal.SIGALRM, handler), time.monotonic() + 1.5, 0
    try:
        while time.monotonic() < end or len(seen) < 2 and time.monotonic() < end + 60:
            i += 1
            steps = fill(store, i)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-6 * (i % 40))
                write_at_once([store.memory], steps)
                while True:
                    time.sleep(1e-5)
            except TimeoutError as error:
                kept = error
            found = store["w"]
            assert (found == found[0]).all()
            seen.add(found[0] == i)
            store["w"][:] = 0
            store.assign(np.zeros(1000, "f4"))  # nobody reads or writes any more, though the exception is kept
            del kept
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == {True, False}


def test_threads_that_write_at_once_and_threads_that_read_see_whole_states():
    store, stop, torn, refused = a_store(), threading.Event(), [], []

    def write_on(value):
        steps = fill(store, value)
        while not stop.is_set():
            try:
                write_at_once([store.memory], steps)
            except fs.LentError as error:
                refused.append(error)

    threads = [threading.Thread(target=write_on, args=(k,)) for k in (1, 2)]
    [thread.start() for thread in threads]
    end, whole = time.monotonic() + 60, 0
    while whole < 200 and time.monotonic() < end:
        try:
            found = store.to_vector()
        except fs.LentError:
            continue
        whole += 1
        if len(np.unique(found)) != 1:
            torn.append(found)
    stop.set()
    [thread.join() for thread in threads]
    assert whole == 200
    assert not torn
