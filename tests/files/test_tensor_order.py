"""The order of tensors in a file: each starts at a multiple of its number's size, and as many as can at one of 64."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatstore.files.tensor_order import Size, in_file_order

sizes = st.lists(st.builds(lambda n, item: Size(n * item, item), st.integers(0, 40), st.sampled_from([1, 2, 4, 8])))


def starts(order, sizes):
    found, end = {}, 0
    for i in order:
        found[i] = end
        end += sizes[i].nbytes
    return found


def aligned(order, sizes):
    return sum(start % 64 == 0 for i, start in starts(order, sizes).items() if sizes[i].nbytes)


@given(sizes)
def test_every_tensor_starts_at_a_multiple_of_the_size_of_its_numbers(sizes):
    order = in_file_order(sizes)
    assert sorted(order) == list(range(len(sizes)))
    assert all(start % sizes[i].itemsize == 0 for i, start in starts(order, sizes).items() if sizes[i].nbytes)


@given(sizes)
def test_those_that_fill_whole_lines_all_start_at_64_bytes(sizes):
    found = starts(in_file_order(sizes), sizes)
    assert all(found[i] % 64 == 0 for i, size in enumerate(sizes) if size.nbytes % 64 == 0 and size.nbytes)


@given(st.lists(st.integers(1, 16).map(lambda n: Size(4 * n, 4)), max_size=6))
def test_of_a_few_tensors_no_other_order_lets_more_start_at_64_bytes(sizes):
    best = max(aligned(order, sizes) for order in itertools.permutations(range(len(sizes))))
    assert aligned(in_file_order(sizes), sizes) >= best - (len(sizes) > 5)  # bunches are chosen one by one


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        ([64, 40, 128, 24], 3),  # 64, 128, 40 + 24
        ([40] * 16, 2),  # two bunches of eight
        ([16, 16, 48, 32, 32], 3),  # 16 + 48, 32 + 32, 16
        ([4, 64, 4, 64], 3),
    ],
)
def test_what_together_fills_whole_lines_lies_together(nbytes, expected):
    sizes = [Size(n, 4) for n in nbytes]
    assert aligned(in_file_order(sizes), sizes) == expected


def test_equal_tensors_keep_their_order():
    assert in_file_order([Size(64, 4)] * 5) == list(range(5))
    assert in_file_order([Size(20, 4)] * 3) == list(range(3))
