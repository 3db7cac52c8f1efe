"""The peak of a call is what it adds to a process of its own, once it is warm."""

import os

import numpy as np
import pytest

from flatstore import bench

MIB = 1 << 20


def zeros(size):
    return np.zeros(size, np.uint8)


def filled(size):
    return np.full(size, 1, np.uint8)


def copied(array):
    return array.copy()


def copied_twice_in_turn(array):
    for _ in range(2):
        array.copy()


_kept = []


def kept_once(size):
    if not _kept:
        _kept.append(filled(size))


def fails(size):
    raise FloatingPointError(f"no {size}")


def dies(size):
    os._exit(3)


@pytest.mark.parametrize(
    ("work", "setup", "sizes"),
    [
        (filled, None, 1),
        (zeros, None, 0),  # pages that nobody has touched
        (copied, filled, 1),
        (copied_twice_in_turn, filled, 1),
        (kept_once, None, 0),  # the first call is not measured
    ],
)
def test_the_peak_is_what_the_call_adds(work, setup, sizes):
    size = 64 * MIB
    assert abs(bench.peak_memory(work, size, setup=setup) - sizes * size) < 4 * MIB


def test_the_first_call_is_measured_where_none_is_made_before():
    assert bench.peak_memory(kept_once, 64 * MIB, warm=0) > 60 * MIB


def test_errors_are_those_of_the_call():
    with pytest.raises(FloatingPointError, match="no 7"):
        bench.peak_memory(fails, 7)
    with pytest.raises(RuntimeError, match=r"expected a peak of 'dies', got a process that died; fix: call it in a"):
        bench.peak_memory(dies, 7)
    with pytest.raises(ValueError, match="warm: expected a number of calls, got -1; fix: pass 1"):
        bench.peak_memory(filled, 7, warm=-1)


def test_functions_are_found_where_they_were_imported_from_and_nothing_else_is(tmp_path, monkeypatch):
    (tmp_path / "of_mine").mkdir()
    (tmp_path / "of_mine/__init__.py").write_text("def nothing(size): pass")
    (tmp_path / "of_mine/parts.py").write_text("def filled(size):\n    return bytearray(size)")
    monkeypatch.syspath_prepend(tmp_path)
    import of_mine.parts

    monkeypatch.undo()  # as asv, which has an importer of its own
    assert bench.peak_memory(of_mine.parts.filled, 64 * MIB) > 60 * MIB
    assert bench.peak_memory(of_mine.nothing, 0) < MIB
    assert bench.peak_memory(np.ones, 8 * MIB) > 60 * MIB


def test_what_is_resident_can_be_told_before_and_after():
    before = bench.tidy()
    array = filled(64 * MIB)
    assert bench.resident() - before > 60 * MIB
    del array
    assert bench.resident("VmHWM") - before > 60 * MIB
    assert bench.tidy() - before < 8 * MIB and bench.resident("VmHWM") - before < 8 * MIB
