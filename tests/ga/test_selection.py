"""Selections choose each member as often as they say, and never one whose fitness is NaN."""

import math

import numpy as np
import pytest

from flatstore import ga
from tests.ga.chances import (
    assert_frequencies,
    ranks_of,
)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_the_pressure_of_a_tournament_is_that_of_the_best_of_k(k):
    better = np.arange(101) / 100
    chances = (1 - better[:-1]) ** k - (1 - better[1:]) ** k
    counts = ranks_of(ga.Tournament(k), 1_000_000)
    assert_frequencies(counts, chances)
    best = 1 - (1 - 1 / 100) ** k
    assert abs(counts[0] - 1e6 * best) < 5 * math.sqrt(1e6 * best * (1 - best))


def test_truncation_draws_evenly_from_the_best():
    assert_frequencies(ranks_of(ga.Truncation(0.3), 300_000), [1 / 30] * 30 + [0] * 70)


@pytest.mark.parametrize("by", ["rank", "fitness"])
def test_universal_sampling_chooses_each_member_its_expected_number_of_times(by):
    fitness = np.random.default_rng(5).exponential(size=101)
    share = fitness if by == "fitness" else np.linspace(0.3, 1.7, 101)[fitness.argsort().argsort()]
    expected = 200 * share / share.sum()
    select = ga.Universal(by=by, pressure=1.7)
    runs = np.array([select(fitness, 200, seed) for seed in range(4000)])
    counts = np.array([np.bincount(run, minlength=101) for run in runs])
    assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
    part = expected - np.floor(expected)
    deviation = np.sqrt(part * (1 - part) / len(runs))
    assert (abs(counts.mean(axis=0) - expected) <= 5.5 * deviation + 1e-9).all()
    for member in fitness.argsort()[[0, 50, 100]]:
        assert_frequencies((runs == member).sum(axis=0), np.full(200, 1 / 200))


def test_selection_prefers_the_fit_and_never_the_nan():
    fitness = np.arange(100.0)
    fitness[99] = np.nan
    for select, expected in ((ga.Tournament(4), 79), (ga.Truncation(0.2), 88.5)):
        chosen = select(fitness, 20_000, 5)
        assert chosen.shape == (20_000,)
        assert abs(chosen[chosen < 99].mean() - expected) < 1
        assert (select(fitness, 10, 5) == select(fitness, 10, 5)).all()
    assert ga.Truncation(0.2)(fitness, 10_000, 5).min() == 79
    assert (ga.Truncation(0.2)(fitness, 10_000, 5) != 99).all()
