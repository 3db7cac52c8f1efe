"""Crossovers draw as they say: from either parent by fair coins, at cuts that lie evenly, from intervals."""

import numpy as np
import pytest

from flatstore import ga
from tests.ga.chances import (
    CHILDREN,
    GENES,
    assert_frequencies,
    assert_independent,
    assert_rate,
    assert_uniform,
    children,
    number,
)


def test_uniform_takes_each_gene_from_either_parent_by_a_fair_coin_of_its_own():
    from_mother = children(crossover=ga.Uniform())
    assert set(np.unique(from_mother)) == {0, 1}
    assert_rate(from_mother == 1, 0.5)
    assert_independent(from_mother)


def test_one_cut_lies_at_every_place_as_often_and_the_mother_comes_first():
    tree = {"a": np.zeros(30, "f4"), "n": np.int32(7), "z": np.zeros((5, 4), "f4")}
    genes = children(crossover=ga.Points(1), tree=tree, size=20_000)[:, [*range(30), *range(31, 51)]]
    cut = genes.sum(axis=1).astype(int)
    assert (genes == (np.arange(50) < cut[:, None])).all()
    assert_frequencies(np.bincount(cut, minlength=51), [0, *[1 / 49] * 49, 0])


def test_two_cuts_are_independent_and_undo_each_other_at_one_place():
    genes = children(crossover=ga.Points(2), tree={"w": np.zeros(9, "f4")}, size=50_000)
    assert (genes[:, 0] == 1).all()
    first, second = (genes == 0).argmax(axis=1), 9 - (genes == 0)[:, ::-1].argmax(axis=1)
    counts, chances = np.zeros((10, 10)), np.zeros((10, 10))
    np.add.at(counts, (first, second), 1)
    chances[1:9, 1:9] = np.triu(np.full((8, 8), 2 / 64), 1)
    chances[0, 9] = 8 / 64  # the mother's throughout
    assert_frequencies(counts.ravel(), chances.ravel())


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_cuts_of_long_rows_lie_evenly(k):
    genes = children(crossover=ga.Points(k))
    cuts = np.nonzero(np.diff(genes, axis=1))[1] + 1
    assert k * CHILDREN - 4 <= cuts.size <= k * CHILDREN
    assert_uniform(cuts, 1, GENES - 1)


def test_exchange_takes_each_leaf_whole_by_a_fair_coin_of_its_own():
    leaves = children(crossover=ga.Exchange(), tree=list(np.zeros((1000, 3), "f4")), size=1000).reshape(1000, 1000, 3)
    assert (leaves == leaves[:, :, :1]).all()
    assert_rate(leaves[:, :, 0] == 1, 0.5)
    assert_independent(leaves[:, :, 0])


def test_exchange_takes_each_unit_whole_and_leaves_the_rest_to_the_mother():
    layers = {f"{i:03}": {"bias": np.zeros(2, "f4"), "kernel": np.zeros((2, 2), "f4")} for i in range(300)}
    tree = {"head": np.zeros(6, "f4"), "layers": layers}
    genes = children(crossover=ga.Exchange("layers/*"), tree=tree, size=2000)
    assert (genes[:, :6] == 1).all()
    layers = genes[:, 6:].reshape(2000, 300, 6)
    assert (layers == layers[:, :, :1]).all()
    assert_rate(layers[:, :, 0] == 1, 0.5)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.5, -0.5, 1.5), (0, 0, 1), (-0.25, 0.25, 0.75)])
def test_blend_draws_evenly_from_the_stretched_interval(alpha, low, high):
    genes = children(crossover=ga.Blend(alpha))
    assert_uniform(genes, low, high)
    assert_independent(genes)


def test_the_mean_of_the_parents_is_no_matter_of_chance():
    assert (children(crossover=ga.Blend(-0.5)) == 0.5).all()


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_a_crossover_of_ones_own_draws_every_number_as_often(bits):
    random = children(crossover=ga.PerGene(number, bits=bits))
    if bits <= 16:
        assert_frequencies(np.bincount(random.astype(int).ravel(), minlength=1 << bits), np.full(1 << bits, 0.5**bits))
    else:
        assert_uniform(random, 0, 2**32)
    assert_rate(random < 2**bits / 2, 0.5)
    assert_independent(random)
