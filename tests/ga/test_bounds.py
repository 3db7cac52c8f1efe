"""Bounds: where genes come back to, however far outside they are, and that none is ever stored beyond."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import ga

DTYPES = [np.dtype(dtype) for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]


def brought_back(genes, pair, outside, dtype=np.float32):
    """The genes of a child that is a copy of its parent but for its bounds."""
    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(len(genes), dtype)}), 2)
    with np.errstate(over="ignore"):
        stored = np.array(genes).astype(dtype)
    pop["w"][...] = stored
    bounds = ga.Bounds({"*": pair}, outside)
    ga.step(pop, [1.0, 0.0], seed=0, mutate=None, crossover=None, bounds=bounds)
    assert pop["w"][0].tobytes() == stored.tobytes()  # the one that is kept
    return pop["w"][1].astype(np.float64)


def test_clipped_genes_lie_at_the_bound_they_are_beyond_and_others_are_left_alone():
    assert brought_back([-9, -1, 0.25, 1, 1e30], (-1, 1), "clip").tolist() == [-1, -1, 0.25, 1, 1]


def test_reflected_genes_turn_back_at_each_bound_in_turn():
    genes = [-1, 1, 0.25, 1.25, -1.25, 3, 3.25, 5.5, -7.25, 4e6 + 0.25]
    assert brought_back(genes, (-1, 1), "reflect").tolist() == [-1, 1, 0.25, 0.75, -0.75, -1, -0.75, 0.5, 0.75, 0.25]


@pytest.mark.long(but="dtype0")
@pytest.mark.parametrize("outside", ["clip", "reflect"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_genes_go_to_their_bound_and_nan_stays_nan(outside, dtype):
    low, high, unknown = brought_back([-np.inf, np.inf, np.nan], (-1, 2), outside, dtype)
    assert (low, high) == (-1, 2)
    assert np.isnan(unknown)


@pytest.mark.parametrize("outside", ["clip", "reflect"])
def test_equal_bounds_leave_one_number(outside):
    assert brought_back([-np.inf, -7, 0.5, 3, 1e30], (0.5, 0.5), outside).tolist() == [0.5] * 5


def test_one_bound_is_a_mirror_or_a_wall():
    genes = [-3, 0.5, 2, 1e30, np.inf]
    assert brought_back(genes, (0, np.inf), "clip").tolist() == [0, 0.5, 2, np.float32(1e30), np.inf]
    assert brought_back(genes, (0, np.inf), "reflect").tolist() == [3, 0.5, 2, np.float32(1e30), np.inf]
    assert brought_back(genes, (-np.inf, 0), "reflect").tolist() == [-3, -0.5, -2, -np.float32(1e30), -np.inf]
    assert (
        brought_back(genes, (-np.inf, np.inf), "reflect").tolist()
        == brought_back(genes, (-np.inf, np.inf), "clip").tolist()
    )


@pytest.mark.long
@given(
    genes=st.lists(st.floats(allow_nan=False), min_size=1, max_size=40),
    pair=st.tuples(st.floats(-1e38, 1e38), st.floats(-1e38, 1e38)).map(sorted),
    outside=st.sampled_from(["clip", "reflect"]),
    dtype=st.sampled_from(DTYPES),
)
def test_no_gene_is_stored_beyond_its_bounds_in_any_dtype(genes, pair, outside, dtype):
    try:
        after = brought_back(genes, pair, outside, dtype)
    except ValueError as error:
        assert "expected bounds with a number of" in str(error)  # noqa: PT017 (only then is an error right)
    else:
        assert (pair[0] <= after).all()
        assert (after <= pair[1]).all()


@given(
    genes=st.lists(st.floats(-1e9, 1e9, width=32), min_size=1, max_size=40),
    low=st.floats(-100, 100, width=32),
    width=st.integers(1, 4000),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)]),
)
def test_a_reflection_is_the_exact_one_to_the_rounding_of_the_gene(genes, low, width, dtype):
    high = float(np.float32(low + width / 8))
    if high <= low:
        return
    a, b = Fraction(low), Fraction(high)
    for gene, found in zip(genes, brought_back(genes, (low, high), "reflect", dtype).tolist(), strict=True):
        turn = (Fraction(gene) - a) % (2 * (b - a))
        exact = float(a + (turn if turn <= b - a else 2 * (b - a) - turn))
        assert abs(found - exact) <= 2 * np.finfo(dtype).eps * max(abs(gene), abs(low), abs(high))


def test_the_first_glob_that_matches_counts_and_other_leaves_are_free():
    pop = fs.Population.zeros(fs.Layout.from_tree({k: np.zeros(3, "f4") for k in ("a", "ab", "b", "c")}), 2)
    pop.assign(np.full((2, 12), 9.0, "f4"))
    ga.step(pop, [1.0, 0.0], seed=0, mutate=None, bounds=ga.Bounds({"a": (-1, 1), "a*": (-2, 2), "c": (-3, 3)}))
    assert {path: float(pop[path][1, 0]) for path in pop.layout.by_path} == {"a": 1, "ab": 2, "b": 9, "c": 3}


def test_bounds_reach_every_generation_of_a_run_and_are_checked_before_it():
    def evaluate(stacked, generation):
        return np.asarray(stacked["w"]).sum(axis=1)

    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(40, "f4")}), 8)
    with pytest.raises(ValueError, match="bounds: expected globs that match a leaf, got 'x'; fix"):
        ga.evolve(pop, evaluate, seed=0, mutate=None, bounds=ga.Bounds({"x": (-1, 1)}))
    bounds = ga.Bounds({"*": (-0.5, 0.5)}, outside="reflect")
    farthest = []
    for _ in ga.evolve(pop, evaluate, seed=0, mutate=lambda n: fs.Normal(1.0), bounds=bounds, generations=4):
        farthest.append(float(abs(pop["w"]).max()))
    assert farthest[0] == 0
    assert all(0.25 < x <= 0.5 for x in farthest[1:])


def test_bounds_are_a_frozen_value():
    given = {"*/kernel": (-1, 1), "*": (-5, 5)}
    bounds = ga.Bounds(given)
    given["*"] = (0, 0)
    assert bounds == ga.Bounds({"*/kernel": (-1, 1), "*": (-5, 5)})
    assert bounds == ga.Bounds(bounds.within)
    assert hash(bounds) == hash(ga.Bounds(bounds.within))
    assert bounds != ga.Bounds({"*": (-5, 5), "*/kernel": (-1, 1)})
