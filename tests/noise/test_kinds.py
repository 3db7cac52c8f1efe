"""Law 8: a seed is a perturbation. Noise is a pure function of kind, seed and index."""

import pickle
from functools import partial

import numpy as np
import pytest

import flatstore as fs
from flatstore.noise.kinds import CROSSOVER
from flatstore.noise.philox import numbers


@pytest.mark.parametrize("scale", [True, {"*": True}])
def test_a_truth_value_is_no_scale_and_no_bound(scale):
    with pytest.raises(ValueError, match="expected a scale > 0 .*, got .*True"):
        fs.Normal(scale)
    with pytest.raises(ValueError, match="expected a bound in .*, got True; fix"):
        fs.Normal(0.1, bound=True)


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


def test_noise_is_not_added_to_integers():
    layout = fs.Layout.from_tree({"w": np.zeros(2), "n": np.zeros(2, int)}, trainable="*")
    with pytest.raises(ValueError, match=r"'n': expected a floating leaf to add noise to, got int64\[2\]; fix"):
        fs.Normal(1.0).check(layout)
    fs.Normal({"n": 0, "*": 1.0}).check(layout)
