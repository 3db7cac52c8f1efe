"""Law 8: a seed is a perturbation. Noise is a pure function of kind, seed and index."""

import pickle
from functools import partial

import numpy as np
import pytest

import flatstore as fs
from flatstore.noise.kinds import CROSSOVER, NORMAL
from flatstore.noise.philox import numbers, philox4x32, words
from flatstore.noise.seeding import as_keys

# The known answers that the authors of Philox publish with it (Random123, kat_vectors): counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
]


def as_words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize("scale", [True, {"*": True}])
def test_a_truth_value_is_no_scale_and_no_bound(scale):
    with pytest.raises(ValueError, match="expected a scale > 0 .*, got .*True"):
        fs.Normal(scale)
    with pytest.raises(ValueError, match="expected a bound in .*, got True; fix"):
        fs.Normal(0.1, bound=True)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert (philox4x32(as_words(counter), as_words(key)) == as_words(expected)).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 1001), (8, 16), (127, 130), (2**35 - 3, 2**35 + 9)])
def test_a_draw_depends_on_the_index_alone_not_on_the_block(start, stop):
    keys = fs.seeds(1, 3)
    middle = start + (stop - start) // 2
    for draw in (fs.Normal(1.0).draw, fs.Rademacher(1.0).draw, partial(numbers, CROSSOVER, 1)):
        whole = draw(keys, start, stop)
        assert whole.shape == (3, stop - start)
        parts = [draw(keys, start, middle), draw(keys, middle, stop)] if middle > start else [whole]
        assert (np.concatenate(parts, axis=1) == whole).all()
        assert (draw(keys[1:2], start, stop) == whole[1]).all()


def test_the_high_half_of_a_seed_and_of_an_index_count():
    low, high = np.array([7], np.uint64), np.array([7 + (1 << 32)], np.uint64)
    assert (words(NORMAL, low, 0, 4) != words(NORMAL, high, 0, 4)).any()
    assert (words(NORMAL, low, 0, 4) != words(NORMAL, low, 1 << 32, (1 << 32) + 4)).any()


def test_kinds_of_draw_have_streams_of_their_own():
    keys = fs.seeds(1, 1)
    assert (words(NORMAL, keys, 0, 4) != words(CROSSOVER, keys, 0, 4)).any()


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


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), {"*": 0}, {}])
def test_a_scale_that_is_no_strength_is_an_error(scale):
    with pytest.raises(ValueError, match="expected a scale > 0 .*fix: pass a positive standard deviation, such as"):
        fs.Normal(scale)


def test_scales_go_by_the_first_glob_that_matches_and_every_leaf_needs_one():
    layout = fs.Layout.from_tree({"a": {"bias": np.zeros(2)}, "b": np.zeros(3)})
    noise = fs.Normal({"*/bias": 0, "*": 0.5})
    noise.check(layout)
    assert (noise.scale_of("a/bias"), noise.scale_of("b")) == (0.0, 0.5)
    with pytest.raises(ValueError, match="expected a scale for every leaf, got none for 'b'; fix"):
        fs.Normal({"a/*": 1.0}).check(layout)
    with pytest.raises(ValueError, match="scale: expected globs that match a leaf, got 'c'; fix"):
        fs.Normal({"c": 1.0, "*": 1.0}).check(layout)


def test_noise_is_a_frozen_value():
    assert fs.Normal({"*": 0.5}) == fs.Normal({"*": 0.5})
    assert len({fs.Normal(0.5), fs.Normal(0.5), fs.Normal({"*": 0.25})}) == 2
    with pytest.raises(AttributeError):
        fs.Normal(0.5).scale = 1


def test_the_order_of_the_globs_is_part_of_the_value_and_noise_pickles():
    first, last = fs.Normal({"*/bias": 0, "*": 1.0}), fs.Normal({"*": 1.0, "*/bias": 0})
    assert first != last
    assert first.scale_of("a/bias") != last.scale_of("a/bias")
    assert pickle.loads(pickle.dumps(first)) == first
    assert fs.Normal(1.0) != fs.Rademacher(1.0)


@pytest.mark.parametrize("seed", [1.5, "7", (1, -2), [0.5]])
def test_a_seed_is_made_of_integers(seed):
    with pytest.raises(ValueError, match="expected a seed of non-negative integers"):
        fs.seeds(seed, 2)


def test_noise_is_not_added_to_integers():
    layout = fs.Layout.from_tree({"w": np.zeros(2), "n": np.zeros(2, int)}, trainable="*")
    with pytest.raises(ValueError, match=r"'n': expected a floating leaf to add noise to, got int64\[2\]; fix"):
        fs.Normal(1.0).check(layout)
    fs.Normal({"n": 0, "*": 1.0}).check(layout)


def test_a_list_of_small_and_large_seeds_is_taken_as_integers():
    assert as_keys([5, 2**64 - 1]).tolist() == [5, 2**64 - 1]
    for bad in ([5, 2**64], [-1, 5], [0.5], 5, "ab"):
        with pytest.raises(ValueError, match="expected a vector of seeds in 0 .. 2..64 - 1"):
            as_keys(bad)
