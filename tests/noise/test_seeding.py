"""Seeds: hashed from integers, so that different ones differ, and as keys."""

import numpy as np
import pytest

import flatstore as fs
from flatstore.noise.seeding import as_keys


def test_seeds_are_numpy_s_and_a_longer_list_begins_with_the_shorter():
    counted = [2, 1, 3, 1, 4]  # two integers, one word each
    assert fs.seeds((3, 4), 2).tolist() == np.random.SeedSequence(counted).generate_state(2, np.uint64).tolist()
    assert fs.seeds(5, 7)[:3].tolist() == fs.seeds(5, 3).tolist()
    with pytest.raises(ValueError, match="expected a seed of non-negative integers, got -1; fix"):
        fs.seeds(-1, 2)
    for nothing in ((), True, (1, False), 1.5):
        with pytest.raises(ValueError, match="expected a seed of non-negative integers, got .*; fix"):
            fs.seeds(nothing, 2)


def test_seeds_of_different_integers_differ():
    different = [7, (7, 0), (7, 0, 0), (0, 7), 0, (0, 0), 2**32, (0, 1), (2**32 + 1, 2), (1, 2**32 + 2), (1, 2, 1)]
    assert len({fs.seeds(seed, 1)[0] for seed in different}) == len(different)
    assert fs.seeds(7, 3).tolist() == fs.seeds((7,), 3).tolist() == fs.seeds(np.int32(7), 3).tolist()


@pytest.mark.parametrize("seed", [1.5, "7", (1, -2), [0.5]])
def test_a_seed_is_made_of_integers(seed):
    with pytest.raises(ValueError, match="expected a seed of non-negative integers"):
        fs.seeds(seed, 2)


def test_a_list_of_small_and_large_seeds_is_taken_as_integers():
    assert as_keys([5, 2**64 - 1]).tolist() == [5, 2**64 - 1]
    for bad in ([5, 2**64], [-1, 5], [0.5], 5, "ab"):
        with pytest.raises(ValueError, match="expected a vector of seeds in 0 .. 2..64 - 1"):
            as_keys(bad)
