"""Runs: their seeds, the number that they begin with, and their rates, checked before anything is evaluated."""

import numpy as np
import pytest

from flatstore.evaluation import check_run, rate_at, resumed_number


def test_the_seed_of_a_run_is_a_tuple_to_which_each_generation_adds_its_number():
    assert check_run(len, 3, None, "steps") == (3,)
    assert check_run(len, (3, 4), 10, "steps") == (3, 4)
    assert check_run(len, [3, 4], np.int64(1), "steps") == (3, 4)
    found = check_run(len, np.array([3, 4], "u1"), None, "steps")
    assert found == (3, 4) and {type(x) for x in found} == {int}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, 1, None, "steps"), TypeError, "expected a function to evaluate with, got NoneType; fix"),
        ((len, 1, 0, "steps"), ValueError, "expected a whole number of steps >= 1, got 0; fix"),
        ((len, 1, 2.5, "generations"), ValueError, "expected a whole number of generations >= 1, got 2.5; fix"),
        ((len, -1, None, "steps"), ValueError, "expected a seed of non-negative integers"),
        ((len, (1, 0.5), None, "steps"), ValueError, "expected a seed of non-negative integers"),
    ],
)
def test_what_is_no_run_is_an_error(arguments, kind, message):
    with pytest.raises(kind, match=message):
        check_run(*arguments)


def test_a_run_begins_at_0_or_where_it_is_resumed():
    assert [resumed_number(x) for x in (None, 0, 7, np.int32(8))] == [0, 0, 7, 8]
    for wrong in (-1, True, 1.5, "3"):
        with pytest.raises(ValueError, match=f"expected resume >= 0, got {wrong}; fix: pass a record"):
            resumed_number(wrong)


def test_a_rate_is_a_number_or_a_function_of_the_number():
    assert rate_at(0.5, 3) == 0.5 and rate_at(lambda n: n / 2, 3) == 1.5 and rate_at(np.float32(2), 0) == 2
    for wrong in (np.nan, lambda n: np.inf, "fast", lambda n: None):
        with pytest.raises(ValueError, match="expected a finite rate, got .*; fix: pass a number, or a function"):
            rate_at(wrong, 0)
