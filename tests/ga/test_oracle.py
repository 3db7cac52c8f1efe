"""A generation in place is the one built beside it, to the bit, for every operator, order and dtype."""

import sys
from dataclasses import dataclass

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import ga
from flatstore.threads import set_threads, threads
from tests.ga.oracle import beside, genes_of, population

S = jax.ShapeDtypeStruct
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def tree(dtype):
    """Sizes that are multiples of nothing, a frozen leaf between others, 0-d and size 0."""
    return {
        "a": {"bias": S((7,), dtype), "kernel": S((31, 23), dtype)},
        "b": S((), dtype),
        "c": {"empty": S((0, 3), dtype), "frozen": S((37,), np.int32), "kernel": S((419,), dtype)},
        "d": S((1,), dtype),
    }


@dataclass(frozen=True)
class Layers(ga.Exchange):
    oracle: tuple = ("a", "c", "b")


def _third(a, b, draw):
    return a if draw < 85 else b


def _part(a, b, draw):
    return b + draw * (a - b)


class Third(ga.PerGene):
    @staticmethod
    def oracle(a, b, random):
        return np.where(random < 85, a, b)


class Part(ga.PerGene):
    def oracle(self, a, b, random):
        return b + np.asarray(self.table, a.dtype)[random] * (a - b)


def _add(gene, scale, draw):
    return gene + scale * draw


def _swap(gene, scale, draw):
    return scale - gene if draw < 77 else gene


class Add(ga.Mutate):
    @staticmethod
    def oracle(gene, scale, draw):
        return gene + scale * draw


class Swap(ga.Mutate):
    @staticmethod
    def oracle(gene, scale, draw):
        return np.where(draw < 77, scale - gene, gene)


CAUCHY = np.tan(np.pi * ((np.arange(1 << 16) + 0.5) / (1 << 16) - 0.5))

CROSSOVERS = [
    ga.Uniform(),
    ga.Blend(0.5),
    ga.Blend(0.0),
    ga.Blend(-0.5),
    ga.Points(1),
    ga.Points(2),
    ga.Points(7),
    ga.Exchange(),
    Layers(["a", "b", "c"]),
    Third(_third, bits=8),
    Third(_third, bits=32),
    Part(_part, bits=1, table=[0.25, 0.5]),
    Part(_part, bits=8, table=np.linspace(-1, 2, 256)),
    Part(_part, bits=16, table=np.linspace(-1, 2, 1 << 16)),
    None,
]
MUTATIONS = [
    fs.Normal(0.1),
    fs.Normal({"*/bias": 0, "a/*": 0.5, "*": 0.01}),
    fs.Rademacher(0.1),
    ga.Sparse(fs.Normal(0.1), 0.02),
    ga.Sparse(fs.Rademacher({"*/kernel": 0.3, "*": 0}), 0.5),
    ga.Sparse(fs.Normal(0.1), 1.0),
    ga.Reset(-1.0, 2.0, 0.05),
    None,
    Add(_add, table=CAUCHY, scale=0.01),
    Add(_add, bits=1, table=[-2.0, 0.1], scale={"*/bias": 0, "a/*": 0.5, "*": 0.01}),
    Add(_add, bits=8, table=np.linspace(-1, 2, 256)),
    Swap(_swap, bits=8, scale=0.5),
    Swap(_swap, bits=32, scale={"*/kernel": 0, "*": 2}),
    ga.Sparse(Add(_add, table=CAUCHY, scale={"*/bias": 0, "*": 0.5}), 0.1),
    ga.Sparse(Swap(_swap, bits=8, scale=0.5), 0.5),
]
FOUR = [ga.Uniform(), ga.Blend(), ga.Points(5), ga.Exchange()]
BOUNDS = [
    ga.Bounds({"*": (-0.3, 0.7)}),
    ga.Bounds({"*": (-0.3, 0.7)}, "reflect"),
    ga.Bounds({"a/*": (-np.inf, 0.1), "d": (0.25, 0.25), "c/kernel": (-0.1, np.inf)}),
    ga.Bounds({"a/*": (-np.inf, 0.1), "d": (0.25, 0.25), "c/kernel": (0.01, 0.03)}, "reflect"),
]


def equal_to_the_one_beside(pop, **keywords):
    fitness = np.random.default_rng(1).standard_normal(pop.size)
    fitness[3] = np.nan
    keywords = {"crossover": ga.Uniform(), "select": ga.Tournament(3), "elite": 2, "mutate": None} | keywords
    expected = beside(pop, fitness, (3, 4), **keywords)
    ga.step(pop, fitness, seed=(3, 4), **keywords)
    for path, genes in genes_of(pop).items():
        assert genes.tobytes() == expected[path].tobytes(), path


@pytest.mark.long(but="crossover0-")
@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("crossover", CROSSOVERS)
def test_every_crossover_in_place_is_the_one_beside_it(order, dtype, crossover):
    equal_to_the_one_beside(population(order, tree=tree(dtype)), crossover=crossover)


@pytest.mark.long(but="mutate5-float32-")
@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_every_mutation_in_place_is_the_one_beside_it(order, dtype, mutate):
    equal_to_the_one_beside(population(order, tree=tree(dtype)), mutate=mutate)


@pytest.mark.long(but="-float16-leaf")
@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("mutate", [None, Add(_add, table=CAUCHY, scale=0.1)])
def test_all_bounds_in_place_are_those_beside_it(order, dtype, bounds, mutate):
    equal_to_the_one_beside(population(order, tree=tree(dtype)), mutate=mutate, bounds=bounds)


@pytest.mark.parametrize("select", [ga.Tournament(3), ga.Truncation(0.4), ga.Universal(), ga.Universal(pressure=1.2)])
@pytest.mark.parametrize("elite", [0, 1, 12])
def test_every_selection_and_number_of_elites(select, elite):
    equal_to_the_one_beside(population("leaf", tree=tree(np.float32)), select=select, elite=elite)


@pytest.mark.long(but="None-crossover1")
@pytest.mark.parametrize("crossover", [ga.Uniform(), ga.Points(3), ga.Exchange()])
@pytest.mark.parametrize("bounds", [None, ga.Bounds({"2/*": (-0.1, 0.1), "*/kernel": (-1, 0.3)}, "reflect")])
def test_leaves_of_several_dtypes_evolve_together(crossover, bounds):
    mixed = {str(i): tree(dtype) for i, dtype in enumerate(DTYPES)}
    equal_to_the_one_beside(population("leaf", tree=mixed), crossover=crossover, mutate=fs.Normal(0.1), bounds=bounds)


@pytest.mark.long
@given(
    sizes=st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=1, max_size=6).filter(
        lambda sizes: any(size and train for size, train in sizes)
    ),
    members=st.integers(1, 40),
    order=st.sampled_from(["leaf", "member"]),
    align=st.sampled_from([1, 4, 64]),
    crossover=st.sampled_from([c for c in CROSSOVERS if not isinstance(c, Layers)]),
    mutate=st.sampled_from([fs.Normal(0.1), ga.Sparse(fs.Normal(0.1), 0.02), None]),
    bounds=st.sampled_from([None, *BOUNDS[:2]]),
    data=st.data(),
)
def test_any_layout_any_number_of_members(sizes, members, order, align, crossover, mutate, bounds, data):
    shapes = {f"{i}": S((size,), np.float32 if train else np.int32) for i, (size, train) in enumerate(sizes)}
    pop = population(order, members, shapes, align=align)
    elite = data.draw(st.integers(0, members - 1))
    fitness = np.random.default_rng(1).standard_normal(members)
    operators = dict(crossover=crossover, mutate=mutate, select=ga.Universal(), elite=elite, bounds=bounds)
    expected = beside(pop, fitness, 5, **operators)
    ga.step(pop, fitness, seed=5, **operators)
    for path, genes in genes_of(pop).items():
        assert genes.tobytes() == expected[path].tobytes(), path


@pytest.mark.long
@pytest.mark.parametrize(
    ("crossover", "mutate", "bounds"),
    [(crossover, mutate, None) for crossover in FOUR for mutate in MUTATIONS[:8]]
    + [(ga.Blend(), mutate, bounds) for bounds in BOUNDS for mutate in (None, fs.Normal(1.0))]
    + [(ga.Uniform(), mutate, None) for mutate in MUTATIONS[8:]],
)
def test_threads_blocks_order_and_alignment_do_not_change_a_generation(monkeypatch, crossover, mutate, bounds):
    step, results, before = sys.modules["flatstore.ga.generation"], set(), threads()
    try:
        for n, scratch, task, order, align in [
            (2, 1 << 20, 1 << 20, "leaf", 64),
            (1, 1 << 14, 1, "leaf", 4),
            (3, 1 << 11, 1, "member", 64),
            (2, 1, 1, "member", 1),
        ]:
            set_threads(n)
            monkeypatch.setattr(step, "SCRATCH", scratch)
            monkeypatch.setattr(step, "TASK", task)
            pop = population(order, tree=tree(np.float32), align=align)
            ga.step(pop, np.arange(13.0), seed=9, mutate=mutate, crossover=crossover, bounds=bounds, elite=2)
            results.add(pop.to_vector().tobytes())
    finally:
        set_threads(before)
    assert len(results) == 1
