"""Random words: those that are published, and another one for each seed, index and kind of draw."""

import numpy as np
import pytest

import flatstore as fs
from flatstore.noise.kinds import CROSSOVER, NORMAL
from flatstore.noise.philox import philox4x32, words

# The known answers that the authors of Philox publish with it (Random123, kat_vectors): counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


def as_words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert (philox4x32(as_words(counter), as_words(key)) == as_words(expected)).all()


def test_the_high_half_of_a_seed_and_of_an_index_count():
    low, high = np.array([7], np.uint64), np.array([7 + (1 << 32)], np.uint64)
    assert (words(NORMAL, low, 0, 4) != words(NORMAL, high, 0, 4)).any()
    assert (words(NORMAL, low, 0, 4) != words(NORMAL, low, 1 << 32, (1 << 32) + 4)).any()


def test_kinds_of_draw_have_streams_of_their_own():
    keys = fs.seeds(1, 1)
    assert (words(NORMAL, keys, 0, 4) != words(CROSSOVER, keys, 0, 4)).any()
