"""What the operators do on average, with fixed seeds: each threshold follows from the law that should hold.

Five standard deviations, or a bound with a chance of one in a million, for each statement. The mother's genes are ones
and the father's zeros, so that a child's genes say where they came from.
"""

import math

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga

CHILDREN, GENES = 256, 20_000
LEFT = math.log(2e6)
"""Of the chance that a bound leaves: one in a million, on two sides."""


def of_a_mother_and_a_father(fitness, n, seed):
    return np.repeat([1, 0], n // 2)


def children(*, crossover=None, mutate=None, tree=None, size=CHILDREN, seed=3, mother=1.0):
    """The genes of `size` children of one pair of parents, in one step: (children, genes)."""
    pop = fs.Population.zeros(fs.Layout.from_tree(tree or {"w": np.zeros(GENES, "f4")}), size)
    for leaf in pop.layout.homes:
        if leaf.trainable:
            pop[leaf.path][1] = mother
    step = {"select": of_a_mother_and_a_father, "crossover": crossover, "mutate": mutate, "elite": 0}
    ga.step(pop, np.zeros(size), seed=seed, **step)
    return pop.to_vector()


def assert_mean(values, mean, deviation):
    """Independent values of a known mean and deviation: five standard errors."""
    assert abs(float(np.mean(values, dtype=np.float64)) - mean) < 5 * deviation / math.sqrt(np.size(values))


def assert_rate(happened, rate):
    """Independent events of one probability: in all, in each row, in each column (Bernstein), and their spread."""
    assert_mean(happened, rate, math.sqrt(rate * (1 - rate)))
    for axis in (0, 1):
        n, counts = happened.shape[axis], happened.sum(axis=axis)
        variance, left = n * rate * (1 - rate), LEFT + math.log(counts.size)
        assert abs(counts - n * rate).max() <= left / 3 + math.sqrt(left**2 / 9 + 2 * variance * left)
        fourth = 2 + (1 - 6 * rate * (1 - rate)) / variance
        assert_mean((counts - n * rate) ** 2 / variance, 1, math.sqrt(fourth))


def assert_independent(values):
    """Genes of a child, near and far, and the children among each other: no correlation."""
    x = np.asarray(values, np.float32)
    x = (x - x.mean()) / x.std()
    for lag in (1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 127, 128, 256):
        assert abs(np.einsum("ij,ij->i", x[:, lag:], x[:, :-lag]).sum()) < 5 * math.sqrt(x[:, lag:].size), lag
    between = (x @ x.T)[np.triu_indices(len(x), 1)] / math.sqrt(x.shape[1])
    assert abs(between).max() < math.sqrt(2 * (LEFT + math.log(between.size)))
    assert_mean(between**2, 1, math.sqrt(2))


def assert_frequencies(counts, chances):
    """Chi-square; what is expected less than ten times is counted together."""
    expected = counts.sum() * np.asarray(chances)
    rare = expected < 10
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    possible = expected > 0
    assert not counts[~possible].any()
    freedom = possible.sum() - 1
    square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert square < freedom + 5 * math.sqrt(2 * freedom) + 25


def assert_uniform(values, low, high):
    """Kolmogorov and Smirnov, by the inequality of Dvoretzky, Kiefer and Wolfowitz; and within the bounds."""
    x = np.sort(np.ravel(values)).astype(np.float64)
    assert low <= x[0] and x[-1] <= high
    below = (x - low) / (high - low)
    grid = np.arange(x.size + 1) / x.size
    distance = max((grid[1:] - below).max(), (below - grid[:-1]).max())
    assert distance < math.sqrt(LEFT / (2 * x.size)) + 2**-16


def gaps(touched):
    """From one event to the next, over all children in a row: for independent events the length is geometric."""
    return np.diff(np.flatnonzero(touched))


def geometric(rate, n):
    """The chances of the lengths 1 to n, and of a longer one."""
    return np.append(rate * (1 - rate) ** np.arange(n), (1 - rate) ** n)


def test_uniform_takes_each_gene_from_either_parent_by_a_fair_coin_of_its_own():
    from_mother = children(crossover=ga.Uniform())
    assert set(np.unique(from_mother)) == {0, 1}
    assert_rate(from_mother == 1, 0.5)
    assert_independent(from_mother)


def test_crossover_mutation_and_the_next_seed_know_nothing_of_each_other():
    one = children(crossover=ga.Uniform(), mutate=fs.Rademacher(0.25))
    from_mother, sign = one > 0.5, np.abs(one - 0.5) > 0.5
    assert_rate(sign, 0.5)
    assert_rate(from_mother == sign, 0.5)
    assert_rate(one == children(crossover=ga.Uniform(), mutate=fs.Rademacher(0.25), seed=4), 0.25)


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


def number(a, b, random):
    return np.float32(random)


@pytest.mark.parametrize("bits", [1, 8, 16, 32])
def test_a_crossover_of_ones_own_draws_every_number_as_often(bits):
    random = children(crossover=ga.PerGene(number, bits=bits))
    if bits <= 16:
        assert_frequencies(np.bincount(random.astype(int).ravel(), minlength=1 << bits), np.full(1 << bits, 0.5**bits))
    else:
        assert_uniform(random, 0, 2**32)
    assert_rate(random < 2**bits / 2, 0.5)
    assert_independent(random)


def test_normal_mutation_has_the_moments_of_the_normal_distribution():
    noise = children(mutate=fs.Normal(1.0), mother=0.0).astype(np.float64)
    assert_mean(noise, 0, 1)
    assert_mean(noise**2, 0.9999998, math.sqrt(2))
    assert_mean(noise**3, 0, math.sqrt(15))
    assert_mean(noise**4, 3.0, math.sqrt(96))
    values, times = np.unique(np.float32(1 / 3686) * (fs.Normal(1.0).whole + np.float32(0.5)), return_counts=True)
    counts = np.bincount(np.searchsorted(values, noise.ravel()), minlength=values.size)
    assert_frequencies(counts, times / 2**16)
    assert_independent(noise)


def test_the_strength_of_each_leaf_is_its_own():
    tree = {"a": np.zeros(5001, "f4"), "b": np.zeros(4999, "f4"), "c": np.zeros(10_000, "f4")}
    noise = children(mutate=fs.Normal({"a": 0.5, "b": 0, "c": 2}), tree=tree, mother=0.0).astype(np.float64)
    a, b, c = np.split(noise, [5001, 10_000], axis=1)
    assert_mean(a**2 / 0.25, 0.9999998, math.sqrt(2))
    assert not b.any()
    assert_mean(c**2 / 4, 0.9999998, math.sqrt(2))


def test_signs_are_fair_and_independent():
    signs = children(mutate=fs.Rademacher(0.5), mother=0.0)
    assert set(np.unique(signs)) == {-0.5, 0.5}
    assert_rate(signs > 0, 0.5)
    assert_independent(signs)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_sparse_mutation_touches_each_gene_with_the_same_chance_also_across_borders(rate):
    touched = children(mutate=ga.Sparse(fs.Rademacher(1.0), rate), mother=0.0) != 0
    assert_rate(touched, rate)
    assert_independent(touched)
    longest = math.ceil(3 / rate)
    chances = geometric(rate, longest)
    assert_frequencies(np.bincount(np.minimum(gaps(touched), longest + 1))[1:], chances)
    # A segment has 256 genes: where in it a gene lies, and a jump that leaves it, make no difference.
    segments = touched[:, : GENES // 256 * 256].reshape(-1, 256)
    assert_rate(segments, rate)
    first = np.where(segments.any(axis=1), segments.argmax(axis=1), 256)
    assert_frequencies(np.bincount(first, minlength=257), geometric(rate, 256))
    assert_rate(segments[1:, :1] & segments[:-1, -1:], rate**2)


def test_a_rare_mutation_is_rare_and_a_rate_of_one_touches_every_gene():
    assert_rate(children(mutate=ga.Sparse(fs.Rademacher(1.0), 2e-4), mother=0.0) != 0, 2e-4)
    assert (children(mutate=ga.Sparse(fs.Rademacher(1.0), 1.0), mother=0.0) != 0).all()


def test_the_values_of_sparse_noise_are_those_of_the_noise_whatever_the_gap_before():
    noise = children(mutate=ga.Sparse(fs.Normal(1.0), 0.3), mother=0.0).astype(np.float64)
    values = noise[noise != 0]
    assert_mean(values, 0, 1)
    assert_mean(values**2, 0.9999985, math.sqrt(2))
    assert_mean(values**4, 2.99982, math.sqrt(96))
    lengths = gaps(noise)
    assert_mean((lengths - 1 / 0.3) * values[1:], 0, math.sqrt(0.7) / 0.3)
    assert_mean(values[1:] * values[:-1], 0, 1)


def test_reset_draws_evenly_within_its_bounds_at_its_rate():
    genes = children(mutate=ga.Reset(-1, 2, rate=0.05), mother=0.0, crossover=ga.Uniform())
    assert_rate(genes != 0, 0.05)
    assert_uniform(genes[genes != 0], -1, 2)


def ranks_of(select, n, size=100):
    """How often the best member is chosen, the second, and so on."""
    fitness = np.random.default_rng(5).permutation(size).astype(float)
    return np.bincount(size - 1 - fitness[select(fitness, n, 11)].astype(int), minlength=size)


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
