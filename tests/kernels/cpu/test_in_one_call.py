"""Compiled loops over all their ranges in one call: all of it is done, or nothing."""

import numpy as np
import pytest

from flatstore.kernels import compiled
from flatstore.kernels.cpu import BY, NOTE, STOPPED, all_or_nothing, over_ranges

RANGES = np.array([[0, 3], [5, 9], [12, 13]])


@compiled
def add(begin, end, array, step, limit, note):
    for i in range(begin, end):
        if array[i] >= limit:
            note[0] = i
            return
        array[i] += step
    note[0] = end


@pytest.mark.parametrize("stops", [None, 0, 2, 5, 7, 12])
def test_a_loop_that_stops_is_taken_back_in_all_ranges_before(stops):
    run, take_back = all_or_nothing(add)
    first, second = np.arange(20), np.arange(20)
    if stops is not None:
        second[stops] = 100
    before = second.copy()
    outcome = np.array([-1, -1, 0])
    note = outcome[NOTE:]
    run(0, RANGES, (first, 10, 100, note), (first, -10, 1000, note), outcome)
    run(1, RANGES, (second, 10, 100, note), (second, -10, 1000, note), outcome)
    take_back(0, RANGES, (first, -10, 1000, note), outcome)
    take_back(1, RANGES, (second, -10, 1000, note), outcome)
    moved = np.zeros(20, int)
    for begin, end in RANGES:
        moved[begin:end] = 10
    if stops is None:
        assert outcome[STOPPED] == -1
        assert (first == np.arange(20) + moved).all()
        assert (second == before + moved).all()
    else:
        assert (outcome[STOPPED], outcome[BY]) == (stops, 1)
        assert (first == np.arange(20)).all()
        assert (second == before).all()


def test_a_step_runs_over_all_ranges():
    array, note = np.zeros(20, int), np.zeros(1, int)
    step = over_ranges(add, RANGES, (array, 1, 100, note))
    assert not array.any()
    step()
    assert array.nonzero()[0].tolist() == [0, 1, 2, 5, 6, 7, 8, 12]
