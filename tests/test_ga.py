"""The genetic algorithm: a generation in place equals one built beside it."""

import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.noise import CROSSOVER, bits

TREE = {"a": {"bias": np.zeros(7, "f4"), "kernel": np.zeros((5, 9), "f4")}, "b": np.zeros((), "f4"), "n": np.int32(3)}


def population(order, size=13, tree=TREE, **keywords):
    pop = fs.Population.zeros(fs.Layout.from_tree(tree, **keywords), size, order=order)
    rng = np.random.default_rng(0)
    for leaf in pop.layout.homes:
        if leaf.trainable:
            pop[leaf.path] = rng.standard_normal((size, *leaf.shape)).astype(leaf.dtype)
    return pop


def beside(pop, fitness, seed, scale, select, elite):
    """The oracle: the next generation in arrays of its own, member by member, from the packed matrix."""
    matrix = pop.to_vector()
    order = sorted(range(pop.size), key=lambda i: (-fitness[i], i))
    children = sorted(order[elite:])
    keys = fs.seeds(seed, pop.size + 1)
    chosen = select(fitness, 2 * len(children), int(keys[-1]))
    out = matrix.copy()
    for row, i in enumerate(children):
        key, (a, b) = keys[i : i + 1], (chosen[row], chosen[len(children) + row])
        for leaf in pop.layout.homes:
            if leaf.trainable:
                at = slice(leaf.index, leaf.index + leaf.size)
                mixed = np.where(bits(CROSSOVER, key, at.start, at.stop)[0], matrix[a, at], matrix[b, at])
                out[i, at] = mixed + np.float32(scale) * fs.Normal(1.0).draw(key, at.start, at.stop)[0]
    return out


@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("elite", [0, 1, 5])
@pytest.mark.parametrize("select", [ga.Tournament(3), ga.Truncation(0.4)])
def test_a_generation_in_place_is_the_one_built_beside_it_to_the_bit(order, elite, select):
    pop = population(order)
    fitness = np.random.default_rng(1).standard_normal(13)
    expected = beside(pop, fitness, (3, 4), 0.1, select, elite)
    ga.step(pop, fitness, seed=(3, 4), mutate=fs.Normal(0.1), select=select, elite=elite)
    assert pop.to_vector().astype("f4").tobytes() == expected.astype("f4").tobytes()


def test_order_alignment_and_block_size_do_not_change_a_generation(monkeypatch):
    fitness = np.random.default_rng(1).standard_normal(13)
    results = []
    for order, align, scratch in [
        ("leaf", 64, 1 << 16),
        ("leaf", 4, 13 * 3),
        ("member", 64, 1),
        ("member", 1, 1 << 20),
    ]:
        monkeypatch.setattr(sys.modules["flatstore.ga.step"], "SCRATCH", scratch)
        pop = population(order, align=align)
        ga.step(pop, fitness, seed=9, mutate=fs.Normal(0.1), elite=2)
        results.append(pop.to_vector().tobytes())
    assert len(set(results)) == 1


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


def test_16_bit_genes_are_rounded_once():
    for dtype in (np.float16, ml_dtypes.bfloat16):
        pop = population("leaf", tree={"w": np.zeros(40, dtype)})
        before = pop["w"].astype("f4")
        parents, _ = ga.step(pop, np.arange(13.0), seed=2, mutate=fs.Normal(0.5), elite=1)
        keys = fs.seeds(2, 14)
        for i in range(12):
            a, b = parents[i]
            mixed = np.where(bits(CROSSOVER, keys[i : i + 1], 0, 40)[0], before[a], before[b])
            child = mixed + np.float32(0.5) * fs.Normal(1.0).draw(keys[i : i + 1], 0, 40)[0]
            assert pop["w"][i].tobytes() == child.astype(dtype).tobytes()


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


BAD = [
    ({"fitness": np.zeros(12)}, r"expected fitness of shape \(13,\), got \(12,\); fix"),
    ({"fitness": np.full(13, np.nan)}, "expected fitness with a number in it, got only NaN; fix"),
    ({"elite": 13}, r"expected elite in 0 .. 12, got 13; fix"),
    ({"elite": -1}, r"expected elite in 0 .. 12, got -1; fix"),
    ({"select": lambda fitness, n, seed: np.zeros(n + 1, int)}, "expected 24 indices of members from select"),
    ({"select": lambda fitness, n, seed: np.full(n, 13)}, "expected 24 indices of members from select"),
    ({"select": lambda fitness, n, seed: np.zeros(n)}, "expected 24 indices of members from select, got float64"),
    ({"mutate": fs.Normal({"none": 1.0})}, "scale: expected globs that match a leaf, got 'none'; fix"),
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
    ("make", "message"), [(lambda: ga.Tournament(0), "k >= 1"), (lambda: ga.Truncation(0), "share in")]
)
def test_operators_check_their_own_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nan_is_worse_than_minus_infinity():
    pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, 3)
    _, kept = ga.step(pop, [np.nan, -np.inf, 1.0], seed=1, mutate=fs.Normal(1.0), elite=2)
    assert kept.tolist() == [False, True, True]


def test_a_step_that_fails_half_way_says_which_leaves_are_new():
    pop, calls = population("leaf"), []

    def crossover(a, b, keys, start):
        calls.append(start)
        if len(calls) > 1:
            raise RuntimeError("mine")
        return a

    with pytest.raises(RuntimeError, match="mine") as caught:
        ga.step(pop, np.arange(13.0), seed=1, mutate=fs.Normal(0.1), crossover=crossover)
    assert "the leaves ['a/bias'] are the children's; fix" in caught.value.__notes__[0]
    pop["a/bias"] = np.zeros((13, 7), "f4")


def test_scratch_does_not_grow_with_the_number_of_members():
    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(8, "f4")}), 200_000)
    fitness = np.arange(200_000.0)
    tracemalloc.start()
    ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
