"""One generation whose members are evaluated elsewhere: each fitness counts once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flatstore.scale.tally import Counts, Tally


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 99)), max_size=60))
def test_whatever_dies_comes_late_or_twice_each_member_has_one_fitness_in_the_end(members, events):
    counts, out = Counts(), []
    tally = Tally(5, members, counts)
    first, late, doubled, lost = {}, 0, 0, 0

    def come(number, group, shift):
        nonlocal late, doubled
        tally.take(number, group, np.array(group, float) + shift)
        late += len(group) * (number != 5)
        for i in group if number == 5 else ():
            doubled += i in first
            first.setdefault(i, i + shift)

    for what, value in events:
        if what == 0:
            if group := tally.next(1 + value % 3):
                out.append(group)
        elif what == 1 and out:
            come(5, out.pop(value % len(out)), value)
        elif what == 2 and out:
            group = out.pop(value % len(out))
            lost += sum(i not in first for i in group)
            tally.put_back(group)
        elif what == 3:
            come(4, [value % members], value)
        elif what == 4 and first:
            come(5, [sorted(first)[value % len(first)]], value)
        assert tally.is_enough(1.0) == (len(first) == members and not counts.waiting)
    while group := tally.next(3):
        come(5, group, 0)
    for group in out:
        come(5, group, 0)
    assert tally.is_enough(1.0) and np.array_equal(tally.fitness, [first[i] for i in range(members)])
    assert (counts.late, counts.doubled, counts.lost) == (late, doubled, lost)


def test_those_whose_worker_has_died_come_first_and_one_by_one():
    tally = Tally(0, 6, Counts())
    tally.next(3)
    tally.put_back([0, 1, 2])
    assert sorted(i for _ in range(3) for i in tally.next(9)) == [0, 1, 2] and [*tally.next(9)] == [3, 4, 5]


def test_how_many_wait_is_known_at_any_time():
    counts = Counts()
    tally = Tally(0, 6, counts)
    seen = [counts.waiting]
    for step in (lambda: tally.next(4), lambda: tally.put_back([0, 1]), lambda: tally.next(4), lambda: tally.next(4)):
        step()
        seen.append(counts.waiting)
    assert seen == [6, 2, 4, 3, 2]


def test_a_generation_is_closed_when_all_are_handed_out_and_enough_have_come():
    tally = Tally(0, 10, Counts())
    tally.take(0, tally.next(7), np.ones(7))
    assert not tally.is_enough(0.7) and tally.counts.waiting == 3
    tally.next(3)
    assert tally.is_enough(0.7) and not tally.is_enough(0.71)


def test_nan_is_a_fitness_that_has_come():
    tally = Tally(0, 2, Counts())
    tally.take(0, tally.next(2), np.array([np.nan, 1.0]))
    assert tally.is_enough(1.0) and tally.has_come.all()
