"""Calls take turns; what is told of them is arithmetic over their times, here told by a clock that is set."""

import subprocess
import sys

import numpy as np
import pytest

from flatstore import bench
from flatstore.bench import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a call says so."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(*seconds):
        left = list(seconds)

        def call():
            now[0] += left.pop(0) if len(left) > 1 else left[0]

        return call

    return takes


@pytest.mark.parametrize("twice", [False, True])
def test_each_round_makes_all_calls_one_by_one(twice):
    made = []
    taken = bench.interleaved({"a": lambda: made.append("a"), 2: lambda: made.append(2)}, 3, twice=twice)
    assert made == ["a", 2] + (["a", "a", 2, 2] if twice else ["a", 2]) * 3
    assert list(taken) == ["a", 2] and all(x.shape == (3,) and (x >= 0).all() for x in taken.values())


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds(clock):
    one, other = clock(9, 2, 8, 30, 2), clock(9, 1, 2, 3, 4)  # the first of each is not counted
    assert bench.ratio(one, other, 4) == np.median([2, 4, 10, 0.5])
    assert bench.seconds(clock(3)) == 3


def test_the_roof_reads_and_writes_in_place(clock, monkeypatch):
    monkeypatch.setattr(timing, "_in_place", lambda nbytes: clock(0.5))
    assert bench.roof(1 << 20) == 4 * (1 << 20)


@pytest.mark.parametrize("nbytes", [1 << 24, 1 << 26])
def test_a_call_that_takes_as_long_as_the_roof_for_its_bytes_reaches_half_of_it_in_twice_the_time(
    clock, nbytes, monkeypatch
):
    monkeypatch.setattr(timing, "_in_place", lambda size: clock(2 * size / 1e9))
    assert bench.of_roof(clock(nbytes / 1e9), nbytes) == pytest.approx(1)
    assert bench.of_roof(clock(2 * nbytes / 1e9), nbytes) == pytest.approx(0.5)


def test_the_roof_of_this_machine_is_some_gigabytes_a_second():
    calls = timing._in_place(1 << 22)
    calls()
    assert 1e8 < bench.roof(1 << 22) < 1e13


FORKED = """
import os, signal
import numpy as np
from flatstore import bench
array = np.full(1000, 3, "f4")
call = bench.scaled(array)
call()
child = os.fork()
if not child:
    signal.alarm(60)
    call()
    os._exit(int((array != 3).any()))
print(os.waitpid(child, 0)[1])
"""


def test_what_reaches_the_roof_does_so_in_a_forked_child_too():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr
