"""Fitness: what counts as scores, who is best, and a population lent chunk by chunk to the function that scores it."""

import re
import subprocess
import sys
from collections import UserList, deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.evaluation import (
    as_fitness,
    best_first,
    fitness_of,
    is_real,
    refuse_all_nan,
    refuse_rounded,
    refuse_unlendable,
)


def population(order="leaf"):
    pop = fs.Population.from_tree({"b": np.zeros(2, "f4"), "w": np.zeros(3, "f4")}, 48, order=order)
    pop["w"] = np.repeat(np.arange(48, dtype="f4"), 3).reshape(48, 3)
    return pop


def test_the_best_come_first_equals_keep_their_order_and_nan_is_worst():
    assert best_first(np.array([1.0, np.nan, 3.0, 1.0, -np.inf, np.nan])).tolist() == [2, 0, 3, 4, 1, 5]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u8", "bool", jnp.bfloat16, jnp.int4])
def test_real_numbers_of_any_dtype_are_fitness_as_float64_in_a_copy(dtype):
    given = np.array([0, 1, 1], dtype)
    found = as_fitness(given, 3)
    assert found.dtype == np.float64 and found.tolist() == [0, 1, 1] and not np.shares_memory(given, found)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros(4), "float64[4]"),
        (np.zeros((3, 1)), "float64[3,1]"),
        (np.zeros(3, "c8"), "complex64[3]"),
        (np.array([1, "NaT", 3], "m8[s]"), "timedelta64[s][3]"),
        (0, "int64[]"),
        (np.array([1, 2, "NaT"], "m8[s]"), "timedelta64[s][3]"),
        (np.zeros(3, "M8[s]"), "datetime64[s][3]"),
    ],
)
def test_another_shape_or_kind_is_an_error_that_says_whose_it_is(wrong, got):
    words = (
        f"expected fitness of shape (3,), real, for the members 6 .. 8, got {got}; fix: return one real number for each"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        as_fitness(wrong, 3, ", for the members 6 .. 8")
    assert not is_real(np.dtype("c8")) and not is_real(np.dtype("O")) and is_real(np.dtype("?"))


def test_scores_without_a_number_are_an_error_and_one_number_is_enough():
    refuse_all_nan(np.array([np.nan, -np.inf]))
    with pytest.raises(
        ValueError, match="members 0 .. 1, got only NaN; fix: make the evaluation return a number for at"
    ):
        refuse_all_nan(np.array([np.nan, np.nan]))


def test_a_large_population_is_scored_in_chunks_of_32_mib_unless_told_otherwise():
    sizes = []

    def evaluate(stacked, number):
        sizes.append(len(stacked["w"]))
        return np.zeros(sizes[-1])

    pop = fs.Population.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((1 << 18,), np.float32)}), 80)
    for chunk in (None, 32, pop.size):
        fitness_of(pop, evaluate, 0, chunk)
    assert sizes == [27, 27, 26, 32, 32, 16, 80]


@pytest.mark.parametrize("chunk", [None, 16, 32])
def test_a_population_is_scored_where_it_lies_chunk_by_chunk(chunk):
    seen = []

    def evaluate(stacked, number):
        seen.append((len(stacked["w"]), number))
        return stacked["w"].sum(axis=1)

    pop = population()
    assert fitness_of(pop, evaluate, 5, chunk).tolist() == [3.0 * i for i in range(48)]
    assert seen == [(n, 5) for n in {None: [48], 16: [16] * 3, 32: [32, 16]}[chunk]]
    pop["w"] = np.zeros((48, 3), "f4")  # it is not lent any more


PEAK = """
import gc, sys
import jax, jax.numpy as jnp, numpy as np, flatstore as fs

def resident(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

def score(params, x):  # kernels of shape (inputs, outputs), which XLA copies
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x.mean()

def generations(hidden, members, kind):
    shapes = {"a": {"kernel": (64, hidden), "bias": (hidden,)}, "b": {"kernel": (hidden, 10), "bias": (10,)}}
    tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: type(x) is tuple)
    layout, x = fs.Layout.from_tree(tree), np.ones((32, 64), np.float32)
    evaluate = jax.jit(lambda stacked, generation: jax.vmap(score, in_axes=(0, None))(stacked, x))
    if kind == "es":
        run = dict(noise=fs.Normal(0.1), members=members, rate=1.0)
        loop = fs.es.evolve(fs.Store.zeros(layout), evaluate, seed=1, generations=2, **run)
    else:
        pop = fs.Population.zeros(layout, members)
        loop = fs.ga.evolve(pop, evaluate, seed=1, mutate=fs.Normal(0.1), generations=2)
    for _ in loop:
        pass
    return layout.nbytes * members

generations(16, 4, sys.argv[1])  # imports, kernels
gc.collect()
before = resident("VmRSS")
population = generations(13_328, 64, sys.argv[1])
print((resident("VmHWM") - before) / population)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.long(but="[es]")
@pytest.mark.parametrize("kind", ["es", "ga"])
def test_generations_of_64_networks_of_a_million_parameters_peak_at_one_and_a_half_populations(kind):
    peaks = []
    while len(peaks) < 3 and min(peaks, default=2) > 1.5:  # at times XLA's threads hold what another chunk needs, too
        done = subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    assert 1 < min(peaks) <= 1.5, peaks


def test_a_population_is_scored_in_place_where_weights_have_the_outputs_first():
    shape, members = jax.ShapeDtypeStruct, 64
    stacked = {"weight": shape((members, 4096, 64), "f4"), "bias": shape((members, 4096), "f4")}

    def score(params, x):
        return jnp.tanh(params["weight"] @ x + params["bias"][:, None]).mean()

    program = jax.jit(jax.vmap(score, in_axes=(0, None))).lower(stacked, shape((64, 2), "f4")).compile()
    population = sum(leaf.size * 4 for leaf in jax.tree.leaves(stacked))
    assert program.memory_analysis().temp_size_in_bytes < population / 20


def test_what_jax_cannot_view_is_refused_before_anything_is_scored():
    refuse_unlendable(population(), 16)
    with pytest.raises(BufferError, match="'w': expected contiguous bytes"):
        refuse_unlendable(population("member"), None)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_integers_that_float64_would_round_are_refused(dtype):
    near = np.array([2**53, 2**53 + 1, 5], dtype)
    with pytest.raises(ValueError, match="expected fitness that float64 holds exactly, got integers of up to 90071992"):
        as_fitness(near, 3)
    assert as_fitness(np.array([2**53, 2**60, 5], dtype), 3).tolist() == [2.0**53, 2.0**60, 5.0]


LARGE = 2**53
NEXT_TO_ONE = np.nextafter(np.longdouble(1), np.longdouble(2))
ROUNDED = {  # what NumPy makes a float64 of is looked at number by number
    "integers": (np.array([LARGE + 1, 5]), f"integers of up to {LARGE + 1}; fix: subtract a constant"),
    "an integer beside a float": ([0.5, LARGE + 1], f"integers of up to {LARGE + 1}; fix: subtract a constant"),
    "another list": (UserList([0.5, LARGE + 1]), f"integers of up to {LARGE + 1}; fix: subtract a constant"),
    "a queue": (deque([0.5, LARGE + 1]), f"integers of up to {LARGE + 1}; fix: subtract a constant"),
    "an integer of NumPy's": ((np.int64(-LARGE - 1), np.uint64(2**63)), f"integers of up to {-LARGE - 1}; fix"),
    "integers of both signs": ([-1, 2**63 + 1], f"integers of up to {2**63 + 1}; fix: subtract a constant"),
    "long floats": (np.array([1, NEXT_TO_ONE]), f"longer floats such as {NEXT_TO_ONE!r}; fix: round them by .astype"),
    "a long float in a list": ([1.0, NEXT_TO_ONE], f"longer floats such as {NEXT_TO_ONE!r}; fix: round them"),
    "a long float beyond float64": (np.array([2, np.longdouble(2) ** 5000]), "longer floats such as np.longdouble("),
}


@pytest.mark.skipif(np.longdouble(1).nbytes == 8, reason="its longest floats are float64")
@pytest.mark.parametrize("name", ROUNDED)
def test_numbers_that_float64_would_round_are_refused_wherever_fitness_enters(name):
    given, got = ROUNDED[name]
    words = re.escape(f"expected fitness that float64 holds exactly, got {got}")
    pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, len(given))
    with pytest.raises(ValueError, match=words):
        as_fitness(given, len(given))
    with pytest.raises(ValueError, match=words):
        es.centred_ranks(given)
    with pytest.raises(ValueError, match=words):
        ga.step(pop, given, seed=1, mutate=None)
    with pytest.raises(ValueError, match=words):
        next(ga.evolve(pop, lambda stacked, n: given, seed=1, mutate=None))
    with pytest.raises(ValueError, match=words):
        ga.Generation(0, given)
    with pytest.raises(ValueError, match=words):
        es.Move(0, given, [1], [0.5])


def test_numbers_that_float64_holds_are_taken_from_any_list():
    exact = [np.longdouble(0.5), 2**60, -np.inf, np.nan, np.uint64(2**63), 1, True, jnp.float32(2)]
    assert np.array_equal(as_fitness(exact), [0.5, 2.0**60, -np.inf, np.nan, 2.0**63, 1, 1, 2], equal_nan=True)
    assert as_fitness(np.array([0.5, np.inf, 3], np.longdouble)).tolist() == [0.5, np.inf, 3]
    refuse_rounded([np.float32(0.1), np.array(0.1)])
    with pytest.raises(ValueError, match=r"real, got object\[2\]; fix"):
        as_fitness([2**70 + 1, 0.5])
