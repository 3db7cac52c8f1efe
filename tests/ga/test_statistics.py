"""Crossover, mutation and seeds know nothing of each other; and a bias, if there were one, would be found."""

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from tests.ga.chances import (
    assert_frequencies,
    assert_independent,
    assert_rate,
    assert_uniform,
    children,
    number,
    ranks_of,
)


def test_crossover_mutation_and_the_next_seed_know_nothing_of_each_other():
    one = children(crossover=ga.Uniform(), mutate=fs.Rademacher(0.25))
    from_mother, sign = one > 0.5, np.abs(one - 0.5) > 0.5
    assert_rate(sign, 0.5)
    assert_rate(from_mother == sign, 0.5)
    assert_rate(one == children(crossover=ga.Uniform(), mutate=fs.Rademacher(0.25), seed=4), 0.25)


def test_an_operator_with_a_bias_is_found_out():
    with pytest.raises(AssertionError):
        assert_rate(children(crossover=ga.PerGene(number, bits=8)) < 127, 0.5)
    twins = np.repeat(children(crossover=ga.Uniform())[:, ::2], 2, axis=1)
    with pytest.raises(AssertionError):
        assert_independent(twins)
    with pytest.raises(AssertionError):
        assert_uniform(children(crossover=ga.Blend(0.501)), -0.501, 1.5)
    touched = children(mutate=ga.Sparse(fs.Rademacher(1.0), 0.3), mother=0.0) != 0
    touched[:, 255::256] = False  # as if a jump never reached the last gene of a segment
    with pytest.raises(AssertionError):
        assert_rate(touched, 0.3)
    with pytest.raises(AssertionError):
        assert_frequencies(ranks_of(ga.Tournament(4), 100_000), np.full(100, 0.01))
