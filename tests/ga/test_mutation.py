"""Mutations of one's own: compiled into the loop, with a stream of their own, and as safe as those that are shipped."""

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
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
