"""Regions: memories that share addresses are one, however they come to it, and from however many threads."""

import itertools
import threading

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import overlaps, region_of

LAYOUT = fs.Layout.from_tree({"w": np.zeros(16, "f4")})


def plan(size):
    return fs.Layout.from_tree({"w": np.zeros(16 * size, "f4")})


def a_buffer(size):
    """Bytes that are nobody's memory yet, and start where JAX can take them."""
    array = np.zeros(64 * size + 64, np.uint8)
    return array[-array.ctypes.data % 64 :][: 64 * size]


def parts_of(buffer, *starts):
    return [fs.Store.wrap(buffer[start : start + 64 * size], plan(size)) for start, size in starts]


@pytest.mark.parametrize("order", [*itertools.permutations([(0, 1), (128, 1), (64, 3), (0, 6)])])
def test_parts_of_a_buffer_are_one_region_in_whatever_order_they_come(order):
    stores = parts_of(a_buffer(6), *order)
    assert len({region_of(store.memory) for store in stores}) == 1
    whole = stores[order.index((0, 6))]
    for store in stores:
        view = whole["w"]
        with store.lend():
            with pytest.raises(fs.LentError):
                whole["w"] = np.ones(96, "f4")
            assert not view.flags.writeable
        assert view.flags.writeable
    whole["w"] = np.ones(96, "f4")


def test_to_wrap_what_covers_thousands_of_parts_notes_each_of_them_a_few_times(monkeypatch):
    class Counted(overlaps.Region):
        noted = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            Counted.noted += len(self._refs)

    buffer = a_buffer(1024)
    parts = parts_of(buffer, *[(64 * i, 1) for i in range(1024)])
    monkeypatch.setattr(overlaps, "Region", Counted)
    (whole,) = parts_of(buffer, (0, 1024))
    assert {region_of(part.memory) for part in parts} == {region_of(whole.memory)}
    assert Counted.noted <= 1025 * 12


def test_a_lend_goes_on_in_the_region_that_its_own_becomes_a_part_of():
    buffer = a_buffer(6)
    one, other = parts_of(buffer, (0, 1), (256, 1))
    assert region_of(one.memory) is not region_of(other.memory)
    with one.lend():
        (whole,) = parts_of(buffer, (0, 6))
        with pytest.raises(fs.LentError):
            whole["w"] = np.ones(96, "f4")
        other["w"] = np.full(16, 2, "f4")
        assert not whole["w"].flags.writeable
    assert whole["w"].flags.writeable
    assert (whole["w"][64:80] == 2).all()


def test_threads_that_wrap_parts_of_one_buffer_at_the_same_time_make_one_region():
    for _ in range(20):
        buffer = a_buffer(12)
        stores, together = [], threading.Barrier(4)

        def wrap(shift, buffer=buffer, stores=stores, together=together):
            together.wait()
            for start in range(shift, 10, 4):
                stores.extend(parts_of(buffer, (64 * start, 2)))

        threads = [threading.Thread(target=wrap, args=(i,)) for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len({region_of(store.memory) for store in stores}) == 1
        assert len(overlaps.members_at(stores[0].memory.start, stores[0].memory.stop)) >= 2


def test_threads_that_make_stores_at_the_same_time_lose_none():
    made, together = [], threading.Barrier(4)

    def make():
        together.wait()
        made.extend([fs.Store.zeros(LAYOUT) for _ in range(300)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for store in made:
        assert overlaps.members_at(store.memory.start, store.memory.stop) == [store.memory]
    starts = [region.start for region in overlaps._regions]
    assert starts == sorted(starts) == overlaps._starts
