"""Lines of a journal: every float comes back to the bit, and a line that is not as it was written is noticed."""

import json
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatstore.recording.line_text import as_numbers, as_texts, entry_of, has_number, is_whole, line_of


@given(st.lists(st.floats(width=64)))
def test_every_float64_comes_back_to_the_bit(values):
    given = np.array(values, np.float64)
    line = line_of({"number": 0, "fitness": as_texts(given)})
    assert is_whole(line)
    found = as_numbers(entry_of(line)["fitness"])
    np.testing.assert_array_equal(found, given)
    finite = np.isfinite(given)
    assert found[finite].tobytes() == given[finite].tobytes()


def test_a_line_is_json_that_anybody_can_read():
    line = line_of({"number": 3, "fitness": as_texts(np.array([np.nan, np.inf, -np.inf, 1e-320]))})

    def refuse(name):
        raise AssertionError(name)

    found = json.loads(line, parse_constant=refuse)
    assert found["fitness"] == ["nan", "inf", "-inf", 1e-320] and len(found["crc32"]) == 8
    assert line.endswith(b"}\n") and line.count(b"\n") == 1


@pytest.mark.parametrize("wrong", [["x"], [None], 3, [[1.0]], [10**400]])
def test_what_is_no_vector_of_numbers_is_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        as_numbers(wrong)


@pytest.mark.parametrize(
    "content",
    [
        b'{"number":7,',
        b'{"number":7,"fitness":' + b"[" * 100_000 + b"]" * 100_000,
        b'{"number":7,"number":8',
        b'{"number":7,"number":true',
        b'{"number":7,"text":"\xff"',
    ],
)
def test_a_line_whose_checksum_is_right_and_whose_content_is_hostile_is_a_value_error(content):
    line = b'%s,"crc32":"%08x"}\n' % (content, crc32(content))
    assert is_whole(line) and has_number(line, 7)
    with pytest.raises(ValueError, match="expected an entry of a run, got other JSON, .*; fix: take a copy"):
        entry_of(line)


def test_a_line_that_is_cut_off_or_changed_anywhere_is_not_whole():
    line = line_of({"number": 12, "fitness": [0.5, -1.25]})
    assert is_whole(line) and has_number(line, 12) and not has_number(line, 1)
    for at in range(len(line)):
        assert not is_whole(line[:at])
        for bit in range(8):
            changed = bytearray(line)
            changed[at] ^= 1 << bit
            same_digits = bytes(changed).lower() == line  # the checksum in capitals
            assert not is_whole(bytes(changed)) or same_digits
