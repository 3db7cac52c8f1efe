"""The genetic algorithm: what a step keeps, what it refuses, and what it takes beside the population."""

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.ga.generation import Family, Operators, dtype_loop, genes_of
from tests.ga import oracle as generations

TREE = {"a": {"bias": np.zeros(7, "f4"), "kernel": np.zeros((5, 9), "f4")}, "b": np.zeros((), "f4"), "n": np.int32(3)}


def population(order, **keywords):
    return generations.population(order, **{"tree": TREE} | keywords)


def test_elites_are_kept_to_the_bit_and_the_record_says_who_came_from_whom():
    pop = population("leaf")
    fitness = np.arange(13.0)
    fitness[3] = np.nan
    before = pop.to_vector()
    parents, kept = ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1), elite=3)
    assert kept.nonzero()[0].tolist() == [10, 11, 12]
    assert parents[10:].tolist() == [[10, 10], [11, 11], [12, 12]]
    assert parents.shape == (13, 2)
    assert (pop.to_vector()[kept] == before[kept]).all()
    assert (pop.to_vector()[~kept] != before[~kept]).any(axis=1).all()


def test_shared_leaves_gaps_and_leaves_of_scale_zero_stay_as_they_were():
    pop = population("leaf")
    pop["a/bias"] = np.broadcast_to(np.arange(7, dtype="f4"), (13, 7))
    ga.step(pop, np.arange(13.0), seed=1, mutate=fs.Normal({"*/bias": 0, "*": 1.0}))
    assert (pop["a/bias"] == np.arange(7)).all()
    assert pop["n"] == 0
    data = np.zeros(pop.buffer.size, bool)
    for leaf in pop.layout.homes:
        start = pop.start_of(leaf)
        data[start : start + leaf.nbytes * (13 if leaf.trainable else 1)] = True
    assert not pop.buffer[~data].any()


BAD = [
    ({"fitness": np.zeros(12)}, r"expected fitness of shape \(13,\), real, got float64\[12\]; fix"),
    ({"fitness": np.zeros(13, complex)}, r"expected fitness of shape \(13,\), real, got complex128\[13\]; fix"),
    ({"fitness": list("abcdefghijklm")}, r"expected fitness of shape \(13,\), real, got str32\[13\]; fix"),
    (
        {"fitness": np.full(13, np.nan)},
        "a number in it for the members 0 .. 12, got only NaN; fix",
    ),
    ({"elite": 13}, r"expected elite in 0 .. 12, got 13; fix"),
    ({"elite": -1}, r"expected elite in 0 .. 12, got -1; fix"),
    ({"select": lambda fitness, n, seed: np.zeros(n + 1, int)}, "expected 24 indices of members from select"),
    ({"select": lambda fitness, n, seed: np.full(n, 13)}, "expected 24 indices of members from select"),
    ({"select": lambda fitness, n, seed: np.zeros(n)}, "expected 24 indices of members from select, got float64"),
    ({"mutate": fs.Normal({"none": 1.0})}, "scale: expected globs that match a leaf, got 'none'; fix"),
    ({"crossover": ga.Exchange("none")}, "units: expected globs that match a leaf, got 'none'; fix"),
    ({"select": ga.Universal(by="fitness"), "fitness": np.arange(-1.0, 12)}, "fitness >= 0, finite and not all zero"),
    ({"select": ga.Universal(by="fitness"), "fitness": np.zeros(13)}, "not all zero, .*; fix: pass by='rank'"),
    ({"bounds": ga.Bounds({"none": (-1, 1)})}, "bounds: expected globs that match a leaf, got 'none'; fix"),
    ({"bounds": ga.Bounds({"n": (-1, 1)})}, "bounds: expected globs that match a leaf, got 'n'; fix: paths are like"),
    (
        {"bounds": ga.Bounds({"b": (0.1, 0.1)})},
        "'b': expected bounds with a number of float32 between them, got 0.1 and 0.1; fix: pass bounds further apart",
    ),
    ({"bounds": ga.Bounds({"b": (1e39, np.inf)})}, "a number of float32 between them, got 1e[+]39 and inf; fix"),
    (
        {"mutate": ga.Mutate(lambda gene, scale, draw: gene, scale={"none": 1.0})},
        "scale: expected globs that match a leaf, got 'none'; fix",
    ),
    (
        {"mutate": ga.Mutate(lambda gene, scale, draw: gene, scale=1e39)},
        "expected scales that are finite in float32, got others; fix",
    ),
    (
        {"mutate": ga.Mutate(lambda gene, scale, draw: gene, bits=1, table=[1e39, 0])},
        "expected numbers in a table that are finite in float32, got others; fix",
    ),
    ({"left": [("float32", 0.0, 3.0)]}, "of genes of float32 in 0 .. 53, got float32 in 0.0 .. 3.0; fix"),
    ({"left": [("float32", False, True)]}, "of genes of float32 in 0 .. 53, got float32 in False .. True; fix"),
    ({"left": [("float64", 0, 3)]}, "do not overlap, of genes of float32 in 0 .. 53, got float64 in 0 .. 3; fix"),
    ({"left": [("float32", 0, 99)]}, "do not overlap, of genes of float32 in 0 .. 53, got float32 in 0 .. 99; fix"),
    (
        {"left": [("float32", 0, 9), ("float32", 8, 9)]},
        "do not overlap, .*, got float32 in 8 .. 9; fix",
    ),
    ({"mutate": fs.Normal(1e39)}, "expected draws of .* that are finite in float32, got others; fix"),
    ({"mutate": ga.Reset(-1e39, 1)}, "expected values of Reset.* that are finite in float32, got others; fix"),
    ({"crossover": ga.Blend(1e39)}, "expected numbers in a table that are finite in float32, got others; fix"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_argument_is_an_error_and_nothing_is_written(change, message):
    pop = population("leaf")
    before = pop.buffer.tobytes()
    arguments = {"fitness": np.arange(13.0), "seed": 1, "mutate": fs.Normal(0.1)} | change
    with pytest.raises(ValueError, match=message):
        ga.step(pop, arguments.pop("fitness"), **arguments)
    assert pop.buffer.tobytes() == before


def test_a_lent_population_is_not_stepped():
    pop = population("leaf")
    before = pop.buffer.tobytes()
    with pop.lend(), pytest.raises(fs.LentError):
        ga.step(pop, np.arange(13.0), seed=1, mutate=fs.Normal(0.1))
    assert pop.buffer.tobytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mutate": 0.1},
            r"expected noise, .* Mutate or None to mutate with, got 0.1; fix: fs.Normal\(0.02\), or ga.Mu",
        ),
        ({"mutate": fs.Normal}, "expected noise, Sparse, Reset, Mutate or None to mutate with, got <class"),
        ({"mutate": ga.PerGene(max)}, "expected noise, Sparse, Reset, Mutate or None to mutate with, got PerGene"),
        ({"crossover": ga.Mutate(max)}, "expected a crossover or None, got Mutate"),
        ({"bounds": {"*": (-1, 1)}}, r"expected Bounds or None, got {.*; fix: ga.Bounds\({'\*': \(-1, 1\)}\)"),
        ({"crossover": ga.Uniform}, r"expected a crossover or None, got <class .*; fix: ga.Uniform\(\)"),
        ({"crossover": max}, r"expected a crossover or None, got <built-in .*; fix: .* ga.PerGene"),
        ({"select": ga.Tournament}, r"expected a selection \(fitness, n, seed\) -> indices, got <class .*; fix"),
        ({"select": None}, r"expected a selection \(fitness, n, seed\) -> indices, got None; fix"),
        ({"elite": 2.0}, "float"),
    ],
)
def test_what_is_no_operator_is_a_type_error_and_nothing_is_written(change, message):
    pop = population("leaf")
    before = pop.buffer.tobytes()
    with pytest.raises(TypeError, match=message):
        ga.step(pop, np.arange(13.0), **{"seed": 1, "mutate": None} | change)
    assert pop.buffer.tobytes() == before
    with pytest.raises(TypeError, match="expected noise like .*, got None; fix"):
        ga.Sparse(None, 0.1)
    with pytest.raises(TypeError, match=r"expected a function of \(a, b, draw\), got .*; fix: take three arguments"):
        ga.PerGene(lambda a, b: a)
    with pytest.raises(TypeError, match=r"expected a function of \(gene, scale, draw\), got .*; fix: take three arg"):
        ga.Mutate(lambda gene, draw: gene)


def test_a_selection_may_sort_what_it_is_given():
    fitness = np.arange(13.0)[::-1].copy()
    ga.step(population("leaf"), fitness, seed=1, mutate=None, select=lambda f, n, seed: f.sort() or np.zeros(n, int))
    assert fitness.tolist() == np.arange(13.0)[::-1].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ga.Tournament(0), "k >= 1"),
        (lambda: ga.Truncation(0), "share in"),
        (lambda: ga.Universal(by="age"), "by='rank' or 'fitness', got 'age'; fix"),
        (lambda: ga.Universal(pressure=3), r"a pressure in \[1, 2\], got 3; fix"),
        (lambda: ga.Points(0), "k >= 1 cuts, got 0; fix"),
        (lambda: ga.Blend(-1), "alpha >= -0.5, got -1; fix"),
        (lambda: ga.Blend(np.nan), "alpha >= -0.5, got nan; fix"),
        (lambda: ga.PerGene(max, bits=7), "0, 1, 8, 16 or 32 random bits per gene, got 7; fix"),
        (lambda: ga.PerGene(max, table=[1.0]), r"a table of 2 \*\* bits numbers .*, got shape \(1,\) for 16; fix"),
        (lambda: ga.PerGene(max, bits=32, table=[1.0]), r"got shape \(1,\) for 32; fix"),
        (lambda: ga.Mutate(max, bits=7), "0, 1, 8, 16 or 32 random bits per gene, got 7; fix"),
        (lambda: ga.Mutate(max, table=[1.0]), r"a table of 2 \*\* bits numbers .*, got shape \(1,\) for 16; fix"),
        (lambda: ga.Mutate(max, scale=-1), "a scale > 0 .*, got -1; fix"),
        (lambda: ga.Bounds({}), "expected bounds for a glob, got none; fix"),
        (lambda: ga.Bounds({"*": (1, -1)}), r"'\*': expected bounds low <= high, got 1.0 and -1.0; fix"),
        (lambda: ga.Bounds({"*": (np.nan, 1)}), r"'\*': expected bounds low <= high, got nan and 1.0; fix"),
        (lambda: ga.Bounds({"*": (np.inf, np.inf)}), r"'\*': expected bounds low <= high, got inf and inf; fix"),
        (lambda: ga.Bounds({"*": (-np.inf, -np.inf)}), r"expected bounds low <= high, got -inf and -inf; fix"),
        (lambda: ga.Bounds({"*": 1}), r"'\*': expected bounds \(low, high\), got 1; fix: .* \(-1, 1\)$"),
        (lambda: ga.Bounds({"*": (1, 2, 3)}), r"'\*': expected bounds \(low, high\), got \(1, 2, 3\); fix"),
        (lambda: ga.Bounds({"*": (-1, 1)}, "wrap"), "expected outside='clip' or 'reflect', got 'wrap'; fix"),
        (lambda: ga.Sparse(fs.Normal(1.0), 0), r"a rate in \(0, 1\], got 0; fix"),
        (lambda: ga.Sparse(fs.Normal(1.0), 1.1), r"a rate in \(0, 1\], got 1.1; fix"),
        (lambda: ga.Reset(1, -1), "bounds low <= high, got 1 and -1; fix"),
        (lambda: ga.Reset(0, np.inf), "bounds low <= high, got 0 and inf; fix"),
        (lambda: ga.Reset(0, 1, rate=-1), r"a rate in \(0, 1\], got -1; fix"),
        (lambda: ga.Reset(None, 1), "bounds low <= high, got None and 1; fix"),
        (lambda: ga.Reset(0, "1"), "bounds low <= high, got 0 and '1'; fix"),
        (lambda: ga.Reset(0, 1, rate="a"), r"a rate in \(0, 1\], got 'a'; fix"),
        (lambda: ga.Sparse(fs.Normal(1.0), "a"), r"a rate in \(0, 1\], got 'a'; fix"),
        (lambda: ga.Sparse(fs.Normal(1.0), [0.1]), r"a rate in \(0, 1\], got \[0.1\]; fix"),
        (lambda: ga.Tournament("4"), "k >= 1 members, got '4'; fix"),
        (lambda: ga.Tournament(2.5), "k >= 1 members, got 2.5; fix"),
        (lambda: ga.Truncation(None), "share in .*, got None; fix"),
        (lambda: ga.Universal(pressure="high"), r"a pressure in \[1, 2\], got 'high'; fix"),
        (lambda: ga.Points(2.5), "k >= 1 cuts, got 2.5; fix"),
        (lambda: ga.Blend("0.5"), "alpha >= -0.5, got '0.5'; fix"),
        (lambda: ga.Blend(1j), "alpha >= -0.5, got 1j; fix"),
        (lambda: ga.Bounds({"*": ("-1", "1")}), r"'\*': expected bounds \(low, high\), got \('-1', '1'\); fix"),
        (lambda: ga.Mutate(max, bits=1, table=["a", "b"]), "a table of real numbers, got <U1; fix: pass an array"),
        (lambda: ga.Mutate(max, bits=1, table=["1", "2"]), "a table of real numbers, got <U1; fix"),
        (lambda: ga.PerGene(max, bits=1, table=[1j, 2]), "a table of real numbers, got complex128; fix"),
        (lambda: ga.PerGene(max, bits=1, table=[None, 2]), "a table of real numbers, got object; fix"),
        (lambda: ga.PerGene(max, bits=1, table=[[1], [2, 3]]), "a table of real numbers, got ValueError: .*; fix"),
    ],
)
def test_operators_check_their_own_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("within", [(-1, 1), None, 3, {3: (-1, 1)}, [("*", (-1, 1)), (-1, 1)], "*", {None: (0, 1)}])
def test_bounds_without_a_glob_are_a_type_error(within):
    with pytest.raises(TypeError, match=r"expected a pair \(low, high\) for each glob, got .*; fix: Bounds\({'\*'"):
        ga.Bounds(within)


@pytest.mark.parametrize(
    "function", [lambda gene, scale, *, draw: gene, lambda gene, scale, **more: gene, lambda gene, scale: gene]
)
def test_a_function_that_cannot_be_called_with_three_numbers_is_a_type_error(function):
    for operator in (ga.Mutate, ga.PerGene):
        with pytest.raises(TypeError, match=r"expected a function of \(.*\), got .*; fix: take three arguments"):
            operator(function)


MASKED = np.ma.masked_array([0.0, 9.0, 1.0], [False, True, False])


@pytest.mark.parametrize("fitness", [MASKED, [0.0, np.ma.masked, 1.0], MASKED.astype("f4")])
def test_masked_fitness_is_a_type_error_and_nothing_is_written(fitness):
    pop = population("leaf", size=3)
    before = pop.buffer.tobytes()
    with pytest.raises(TypeError, match="'fitness': expected an array without a mask, got a Masked.*; fix: pass x.fil"):
        ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1))
    assert pop.buffer.tobytes() == before


def test_a_masked_table_is_a_type_error():
    for operator in (ga.Mutate, ga.PerGene):
        for table in (MASKED[:2], [np.ma.masked, 1.0]):
            with pytest.raises(TypeError, match="'table': expected an array without a mask, got a Masked.*; fix"):
                operator(lambda a, b, c: a, bits=1, table=table)


def test_leaves_that_cannot_be_computed_with_are_named():
    for dtype in (np.int32, np.complex64):
        pop = fs.Population.from_tree({"w": np.zeros(3, "f4"), "x": np.zeros(3, dtype)}, 3, trainable="*")
        with pytest.raises(
            ValueError, match="'x': expected a leaf of float32, .* to evolve, got .*; fix: leave it out"
        ):
            ga.step(pop, np.arange(3.0), seed=1, mutate=None)


def test_a_population_of_one_is_its_own_parent():
    pop = population("leaf", size=1)
    before = pop.to_vector()
    parents, kept = ga.step(pop, [1.0], seed=1, mutate=None, elite=0)
    assert (parents.tolist(), kept.tolist()) == ([[0, 0]], [False])
    assert (pop.to_vector() == before).all()
    with pytest.raises(ValueError, match=r"elite in 0 .. 0, got 1"):
        ga.step(pop, [1.0], seed=1, mutate=None)


def test_nan_is_worse_than_minus_infinity():
    pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, 3)
    _, kept = ga.step(pop, [np.nan, -np.inf, 1.0], seed=1, mutate=fs.Normal(1.0), elite=2)
    assert kept.tolist() == [False, True, True]


def test_time_goes_by_what_trains_not_by_what_lies_between():
    tree = {"a": np.zeros(500, "f4"), "b": np.zeros(30_000_000, "i1"), "c": np.zeros(500, "f4")}
    pop = fs.Population.zeros(fs.Layout.from_tree(tree), 4)
    operators, family = Operators(ga.Uniform(), None, None), Family(*np.zeros((4, 1), int))
    ranges = genes_of({"float32": dtype_loop(pop, "float32", operators, family, fs.seeds(1, 1))})
    assert ranges == [("float32", 0, 500), ("float32", 30_000_500, 30_001_000)]
