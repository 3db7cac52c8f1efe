"""Masks and words, beside Python's integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatstore.kernels import compiled
from flatstore.kernels.cpu import bits

WORDS = st.integers(0, 2**64 - 1) | st.integers(0, 63).map(lambda i: 1 << i)


@compiled
def zeros_and_length(word):
    return bits.trailing_zeros(word), bits.bit_length(word)


@compiled
def mask_of(numbers, place):
    return bits.not_zero(numbers, np.uint64(place))


@compiled
def read(data, place):
    return bits.word_at(data, np.uint64(place))


@compiled
def write(data, place, word):
    bits.put_word(data, np.uint64(place), word)


@given(WORDS)
def test_zeros_and_lengths_are_those_of_pythons_integers(word):
    zeros, length = zeros_and_length(np.uint64(word))
    assert length == word.bit_length()
    assert zeros == (word & -word).bit_length() - 1 if word else 64


@given(WORDS, st.integers(0, 9))
def test_a_mask_has_a_bit_for_each_number_that_is_not_zero(word, place):
    numbers = np.ones(80, np.uint16)
    numbers[place : place + 64] = [0x8000 * (word >> i & 1) for i in range(64)]
    assert mask_of(numbers, place) == word


@given(WORDS, st.integers(0, 9))
def test_a_word_is_written_where_it_is_read_from_and_nowhere_else(word, place):
    data = np.arange(24, dtype=np.uint8)
    write(data, place, np.uint64(word))
    assert read(data, place) == word
    assert bytes(data) == bytes(range(place)) + word.to_bytes(8, "little") + bytes(range(place + 8, 24))


@pytest.mark.parametrize("name", ["not_zero", "trailing_zeros", "bit_length", "word_at", "put_word"])
def test_what_stands_in_where_nothing_is_compiled_does_the_same(name):
    in_python, rng = getattr(bits, f"_{name}_in_python"), np.random.default_rng(0)
    for _ in range(50):
        word, place = np.uint64(rng.integers(0, 1 << 62)), int(rng.integers(0, 9))
        numbers = rng.integers(0, 2, 80).astype(np.uint16)
        one, other = (rng.integers(0, 256, 24).astype(np.uint8) for _ in range(2))
        match name:
            case "not_zero":
                assert in_python(numbers, place) == mask_of(numbers, place)
            case "trailing_zeros":
                assert in_python(word) == zeros_and_length(word)[0]
            case "bit_length":
                assert in_python(word) == zeros_and_length(word)[1]
            case "word_at":
                assert in_python(one, place) == read(one, place)
            case "put_word":
                other[:] = one
                in_python(one, place, word)
                write(other, place, word)
                assert bytes(one) == bytes(other)
