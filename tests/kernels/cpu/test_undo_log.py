"""Blocks of an undo log: what was written is read, for any two arrays of 16 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatstore.kernels import compiled
from flatstore.kernels.cpu import undo_log
from flatstore.kernels.cpu.undo_log import BLOCK, apart, behind_block, checksum, log_bytes, restore_block, write_block

RNG = np.random.default_rng(0)


@compiled
def written(old, back, distance, out, at, places):
    for i in range(old.size):
        distance[i] = apart(old[i], back[i])
    return write_block(old, distance, old.size, checksum(back, old.size), out, np.uint64(at), places)


def there_and_back(old, back, at=0):
    """The bytes of the block, after it has been written and read."""
    count, out = len(old), np.full(log_bytes(len(old)) + at, 0xA5, np.uint8)
    back = np.concatenate([back, np.zeros(BLOCK - count, np.uint16)])
    distance, places = np.zeros((2, BLOCK + 64), np.uint16)
    end = int(written(np.asarray(old, np.uint16), back, distance, out, at, places))
    assert int(behind_block(out, np.uint64(at))) == end
    assert (out[:at] == 0xA5).all()
    found = back.copy()
    restore_block(found, count, np.concatenate([out[:end], RNG.integers(0, 256, 8).astype(np.uint8)]), np.uint64(at))
    assert (found[:count] == old).all()
    return end - at


HALVES = st.integers(0, 0xFFFF) | st.sampled_from([0, 0x8000, 0x7F80, 0x7FFF, 0xFFFF, 0x7C00])


@given(st.lists(st.tuples(HALVES, HALVES), min_size=1, max_size=200), st.integers(0, 9))
def test_any_numbers_are_given_back_from_any_others(pairs, at):
    old, back = np.array(pairs, np.uint16).T
    assert there_and_back(old, back, at) <= 8 + 2 * len(old)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 4095, 4096])
@pytest.mark.parametrize("share", [0, 0.0005, 0.01, 0.2, 0.9, 1])
@pytest.mark.parametrize("most", [1, 3, 500, 0xFFFF])
def test_blocks_of_any_density_are_given_back_and_are_never_much_larger_than_the_parameters(count, share, most):
    back = RNG.integers(0, 1 << 16, count).astype(np.uint16)
    old = np.where(RNG.random(count) < share, back + RNG.integers(0, most, count).astype(np.uint16), back)
    assert there_and_back(old, back) <= 8 + 2 * count


def test_the_far_ends_of_a_block_are_given_back():
    back = np.arange(BLOCK, dtype=np.uint16)
    for places in ([0], [BLOCK - 1], [0, BLOCK - 1], [1, 2, 3], list(range(0, BLOCK, 64)), list(range(63, BLOCK, 64))):
        old = back.copy()
        old[places] ^= 1
        there_and_back(old, back)


def test_a_block_that_was_all_the_same_is_one_value_and_one_that_lost_nothing_its_header():
    back = RNG.integers(0, 1 << 16, BLOCK).astype(np.uint16)
    assert there_and_back(np.full(BLOCK, 0x8000, np.uint16), back) == 8
    assert there_and_back(back, back) == 8


def test_where_all_is_lost_the_parameters_are_held_themselves():
    old, back = RNG.integers(0, 1 << 16, (2, BLOCK)).astype(np.uint16)
    assert there_and_back(old, back) == 8 + 2 * BLOCK


def test_long_codes_are_those_of_the_definition():
    def golomb(number):
        shifted = bin(number + 1)[2:]
        return "0" * (len(shifted) - 1) + "1" + shifted[1:][::-1]  # as they lie, lowest bit first

    for number in (0, 1, 2, 3, 30, 31, 32, 4095, 65535):
        code, length = undo_log._long_code(np.uint64(number))
        assert np.binary_repr(int(code), int(length))[::-1] == golomb(number)
        assert undo_log._long_number(np.uint64(int(code) | 1 << 60)) == (number, length)


def test_neighbours_among_floats_are_neighbours_in_order():
    values = np.concatenate([np.arange(0x8000, 0xFF81)[::-1], np.arange(0x7F81)]).astype(np.uint16)  # bfloat16, -inf on
    places = np.array([undo_log._ordered(x) for x in values], np.int64)
    assert (np.diff(places) == 1).all()


def test_distances_count_from_the_nearest():
    one = np.uint16(0x3F80)
    assert [int(apart(np.uint16(int(one) + d), one)) for d in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]
    assert all(undo_log._from(one, np.uint64(apart(x, one))) == x for x in np.arange(0, 1 << 16, 7, dtype=np.uint16))


def test_a_checksum_tells_any_single_change_and_any_exchange():
    block = RNG.integers(0, 1 << 16, BLOCK).astype(np.uint16)
    total = checksum(block, BLOCK)
    for _ in range(300):
        other, i, j = block.copy(), *RNG.integers(0, BLOCK, 2)
        other[i] ^= 1 << int(RNG.integers(0, 16))
        assert checksum(other, BLOCK) != total
        other[i], other[j] = block[j], block[i]
        assert (checksum(other, BLOCK) != total) == (block[i] != block[j])
