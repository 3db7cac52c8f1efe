"""What operators do on average, with fixed seeds: each threshold follows from the law that should hold.

Five standard deviations, or a bound with a chance of one in a million, for each statement. The mother's genes are ones
and the father's zeros, so that a child's genes say where they came from.
"""

import math

import numpy as np

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


def number(a, b, random):
    return np.float32(random)


def ranks_of(select, n, size=100):
    """How often the best member is chosen, the second, and so on."""
    fitness = np.random.default_rng(5).permutation(size).astype(float)
    return np.bincount(size - 1 - fitness[select(fitness, n, 11)].astype(int), minlength=size)
