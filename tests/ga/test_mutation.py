"""Mutations draw as they say; those of one's own have a stream of their own, and are as safe as those shipped."""

import math

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from tests.ga.chances import (
    GENES,
    assert_frequencies,
    assert_independent,
    assert_mean,
    assert_rate,
    assert_uniform,
    children,
    gaps,
    geometric,
)
from tests.ga.oracle import population

TREE = {"a": np.zeros(3_000, "f4"), "b": np.zeros(5_000, "f4")}


def _shifted(gene, scale, draw):
    return gene + scale * draw


def _fails_on_poison(gene, scale, draw):
    if gene > 1e29:
        raise ValueError("poison")
    return gene + scale


def signs(scale):
    return ga.Mutate(_shifted, bits=1, table=[1.0, -1.0], scale=scale)


@pytest.mark.long
def test_the_draws_of_mutation_are_others_than_those_of_crossover():
    by_crossover, by_mutation = (population("leaf", tree=TREE) for _ in range(2))
    only_draw = ga.PerGene(lambda a, b, draw: draw, bits=16)
    ga.step(by_crossover, np.arange(13.0), seed=1, mutate=None, crossover=only_draw)
    only_draw = ga.Mutate(lambda gene, scale, draw: draw, bits=16)
    ga.step(by_mutation, np.arange(13.0), seed=1, mutate=only_draw, crossover=None)
    x, y = (pop.to_vector()[:12].astype(np.float64).ravel() for pop in (by_crossover, by_mutation))
    assert x.min() >= 0
    assert x.max() < 1 << 16
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(x.size)


def test_scale_goes_by_leaf_and_leaves_of_scale_zero_are_left_alone():
    pop = population("leaf", tree=TREE)
    before = pop.to_vector()
    ga.step(pop, np.arange(13.0), seed=1, mutate=signs({"a": 0, "*": 0.5}), crossover=None, select=_the_last)
    assert (pop["a"] == before[12, :3_000]).all()
    moved = pop["b"][:12] - before[12, 3_000:]
    assert set(np.round(moved, 5).ravel().tolist()) == {-0.5, 0.5}


def _the_last(fitness, n, seed):
    return np.full(n, len(fitness) - 1)


def test_a_fraction_of_the_genes_is_changed_by_sparse():
    pop = population("leaf", tree=TREE)
    before = pop.to_vector()
    few = ga.Sparse(signs(1.0), 0.01)
    ga.step(pop, np.arange(13.0), seed=1, mutate=few, crossover=None, select=_the_last)
    changed = pop.to_vector()[:12] != before[12]
    assert abs(changed.mean() - 0.01) < 5 * np.sqrt(0.01 * 0.99 / changed.size)


def test_evolve_takes_one_or_a_function_of_the_generation_that_returns_one():
    @jax.jit
    def evaluate(stacked, generation):
        return stacked["a"].sum(axis=1)

    runs = []
    for mutate in (signs(0.5), lambda n: signs(0.5)):
        pop = fs.Population.zeros(fs.Layout.from_tree({"a": np.zeros(40, "f4")}), 8)
        assert len(list(ga.evolve(pop, evaluate, seed=1, mutate=mutate, generations=4))) == 4
        runs.append(pop.to_vector())
    assert (runs[0] == runs[1]).all()
    assert runs[0].max() > 0


def test_a_step_whose_mutation_fails_is_finished_by_the_same_call():
    pop, expected = (population("leaf", tree=TREE) for _ in range(2))
    healthy = pop["b"][:, 4_990].copy()
    pop["b"][:, 4_990] = 1e30
    arguments = dict(seed=2, mutate=ga.Mutate(_fails_on_poison, bits=0, scale=0.25), bounds=ga.Bounds({"*": (-1, 1)}))
    with pytest.raises(ga.UnfinishedError) as caught:
        ga.step(pop, np.arange(13.0), **arguments)
    pop["b"][:, 4_990] = healthy
    ga.step(pop, np.arange(13.0), **arguments, left=caught.value.left)
    ga.step(expected, np.arange(13.0), **arguments)
    assert pop.buffer.tobytes() == expected.buffer.tobytes()


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
    assert_mean(values**2, 0.9999998, math.sqrt(2))
    assert_mean(values**4, 3.0, math.sqrt(96))
    lengths = gaps(noise)
    assert_mean((lengths - 1 / 0.3) * values[1:], 0, math.sqrt(0.7) / 0.3)
    assert_mean(values[1:] * values[:-1], 0, 1)


def test_reset_draws_evenly_within_its_bounds_at_its_rate():
    genes = children(mutate=ga.Reset(-1, 2, rate=0.05), mother=0.0, crossover=ga.Uniform())
    assert_rate(genes != 0, 0.05)
    assert_uniform(genes[genes != 0], -1, 2)
