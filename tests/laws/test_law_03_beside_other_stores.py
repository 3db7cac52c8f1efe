"""Law 3: what a lend or a view costs does not grow with other stores, nor with views that are gone."""

import gc
import sys
import tracemalloc

import numpy as np

import flatstore as fs
from flatstore.memory import Memory, overlaps


def a_store():
    return fs.Store.from_tree({"a": np.zeros(3, "f4"), "b": np.zeros(5, "f4")})


def calls_of(action):
    """The number of functions that are called, of Python and of C."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_a_lend_calls_as_many_functions_beside_thousands_of_other_stores():
    store = a_store()

    def lend():
        with store.lend():
            pass

    lend()
    alone = min(calls_of(lend) for _ in range(5))
    others = [a_store() for _ in range(3000)]
    for other in others:
        assert other["a"].flags.writeable
    beside = min(calls_of(lend) for _ in range(5))
    # Finding the region of an address takes a step more each time that their number doubles.
    assert beside <= alone + 60


def test_views_that_are_gone_are_forgotten_during_a_lend():
    pop = fs.Population.from_tree({"a": np.zeros(16, "f4")}, 64)
    with pop.lend():
        for i in range(20_000):
            assert not pop[i % 64]["a"].flags.writeable
        assert len(pop.memory.views) + len(pop.memory.views._frozen) < 1000
    assert pop[0]["a"].flags.writeable


def test_members_that_were_read_leave_no_byte():
    pop = fs.Population.from_tree({"a": np.zeros(16, "f4")}, 10_000)

    def read(some):
        for i in some:
            assert pop[i]["a"].size

    read(range(100))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        read(range(10_000))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000  # those that are forgotten next
    finally:
        tracemalloc.stop()


def test_memories_that_are_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(overlaps, "_prune_at", 0)
    Memory.heap(64)
    alive = len(overlaps._regions)
    for _ in range(20_000):
        Memory.heap(64)
    assert len(overlaps._regions) <= 2 * alive + 100


def test_a_lend_of_a_member_calls_as_many_functions_beside_views_of_all_the_others():
    for order in ("member", "leaf"):
        pop = fs.Population.zeros(
            fs.Layout.from_tree({"a": np.zeros(16, "f4"), "b": np.zeros(16, "f4")}), 3000, order=order
        )
        member = pop[1500]

        def lend(member=member):
            with member.lend():
                pass

        lend()
        alone = min(calls_of(lend) for _ in range(5))
        views = [one["a"] for one in pop]
        assert min(calls_of(lend) for _ in range(5)) <= alone + 200
        with member.lend():
            assert [i for i, view in enumerate(views) if not view.flags.writeable] == [1500]
        assert all(view.flags.writeable for view in views)


def test_a_lend_calls_as_many_functions_beside_thousands_of_open_ones():
    store, lends = a_store(), []

    def lend():
        with store.lend():
            assert not store["a"].flags.writeable

    lend()
    alone = min(calls_of(lend) for _ in range(5))
    for _ in range(1000):
        lends.append(store.lend())
        lends[-1].__enter__()
    assert min(calls_of(lend) for _ in range(5)) <= alone + 20
    for one in lends:
        one.__exit__(None, None, None)
    assert store["a"].flags.writeable
