"""The loop: a generator over generations equals the loop written by hand, stops anywhere and goes on to the bit."""

import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga

SIZE = 48
NOISE = fs.Normal(0.2)

ROOT = Path(__file__).parent.parent.parent


def population(size=SIZE):
    pop = fs.Population.zeros(fs.Layout.from_tree({"b": np.zeros(3, "f4"), "w": np.zeros((5, 3), "f4")}), size)
    fs.es.sample(pop, fs.Store.zeros(pop.layout), NOISE, fs.seeds(8, size))
    return pop


@jax.jit
def evaluate(stacked, generation):
    """A fitness that depends on the generation too."""
    score = jax.vmap(lambda params: -jnp.square(params["w"] - 1).sum() - jnp.square(params["b"]).sum())
    return score(stacked) * (1 + generation)


def fitness_by_numpy(pop, number):
    return (-np.square(pop["w"] - 1).sum(axis=(1, 2)) - np.square(pop["b"]).sum(axis=1)) * (1 + number)


def test_the_generator_is_the_loop_written_by_hand_to_the_bit():
    pop, other = population(), population()
    parents = kept = None
    for number, record in enumerate(ga.evolve(pop, evaluate, seed=(4, 2), mutate=NOISE, elite=3, generations=6)):
        assert pop.buffer.tobytes() == other.buffer.tobytes()
        assert record.number == number
        np.testing.assert_allclose(record.fitness, fitness_by_numpy(other, number), rtol=1e-5)
        np.testing.assert_array_equal(record.parents, parents)
        np.testing.assert_array_equal(record.kept, kept)
        parents, kept = ga.step(other, record.fitness, seed=(4, 2, number), mutate=NOISE, elite=3)
    assert number == 5
    assert pop.buffer.tobytes() != other.buffer.tobytes()  # nobody asked for a seventh


def test_operators_reach_the_step_and_the_mutation_may_fade():
    pop, other = population(), population()
    select = ga.Truncation(0.25)
    records = ga.evolve(pop, evaluate, seed=1, mutate=lambda n: fs.Normal(0.2 / (1 + n)), select=select, elite=0)
    for number in range(3):
        record = next(records)
        assert pop.buffer.tobytes() == other.buffer.tobytes()
        ga.step(other, record.fitness, seed=(1, number), mutate=fs.Normal(0.2 / (1 + number)), select=select, elite=0)


def test_it_finds_what_the_fitness_asks_for():
    pop = population()
    for record in ga.evolve(pop, evaluate, seed=0, mutate=fs.Normal(0.05)):
        if record.max / (1 + record.number) > -0.5:
            break
    assert record.number < 200
    assert abs(pop[record.best]["w"] - 1).max() < 0.7


def test_after_break_the_population_is_the_one_of_the_last_record():
    pop = population()
    for record in ga.evolve(pop, evaluate, seed=0, mutate=NOISE):
        if record.number == 3:
            break
    np.testing.assert_allclose(record.fitness, fitness_by_numpy(pop, 3), rtol=1e-5)
    assert record.best == int(fitness_by_numpy(pop, 3).argmax())


@pytest.mark.parametrize("chunk", [16, 33, SIZE, 1000])
def test_chunks_change_nothing_and_each_is_lent(chunk):
    pop, sizes = population(), []

    def by_chunks(stacked, generation):
        sizes.append(len(stacked["w"]))
        with pytest.raises(fs.LentError):
            pop["b"] = np.zeros((SIZE, 3), "f4")
        return evaluate(stacked, generation)

    whole = [r.fitness for r in ga.evolve(population(), evaluate, seed=0, mutate=NOISE, generations=3)]
    parts = [r.fitness for r in ga.evolve(pop, by_chunks, seed=0, mutate=NOISE, generations=3, chunk=chunk)]
    np.testing.assert_array_equal(parts, whole)
    assert sizes == 3 * [part.size for part in population().chunks(chunk)]
    pop["b"] = np.zeros((SIZE, 3), "f4")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.bool_, jnp.bfloat16])
def test_fitness_may_be_any_real_numbers(dtype):
    pop = population()
    record = next(ga.evolve(pop, lambda stacked, n: np.arange(SIZE).astype(dtype), seed=0, mutate=NOISE))
    np.testing.assert_array_equal(record.fitness, np.arange(SIZE).astype(dtype).astype(float))


def test_fitness_may_be_a_leaf_that_was_lent():
    pop = fs.Population.from_tree({"w": np.float32(2)}, 16)
    records = ga.evolve(pop, lambda stacked, n: stacked["w"], seed=0, mutate=NOISE, elite=0)
    first, second = next(records), next(records)
    assert (first.fitness == 2).all()
    assert (second.fitness == pop["w"]).all()


RESUME = """
import pickle, sys
from tests.ga.test_evolution import NOISE, evaluate, ga, population
pop = population()
record, pop.buffer[:] = pickle.load(sys.stdin.buffer)
*_, last = ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=9, resume=record)
pickle.dump((last, pop.buffer), sys.stdout.buffer)
"""


def test_a_run_goes_on_in_another_process_to_the_bit():
    pop = population()
    for record in ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=9):
        if record.number == 4:
            saved = pickle.dumps((record, pop.buffer.copy()))
    done = subprocess.run(
        [sys.executable, "-c", RESUME],
        input=saved,
        capture_output=True,
        timeout=100,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    last, buffer = pickle.loads(done.stdout)
    assert buffer.tobytes() == pop.buffer.tobytes()
    assert last.number == record.number == 8
    for name in ("fitness", "parents", "kept"):
        np.testing.assert_array_equal(getattr(last, name), getattr(record, name))
        assert not getattr(last, name).flags.writeable


def test_a_generation_whose_evaluation_failed_is_resumed_by_its_number():
    def flaky(stacked, generation):
        if generation == 3 and not failed:
            failed.append(generation)
            raise KeyboardInterrupt
        return evaluate(stacked, generation)

    failed, pop, other = [], population(), population()
    with pytest.raises(KeyboardInterrupt) as caught:
        list(ga.evolve(pop, flaky, seed=7, mutate=NOISE, generations=6))
    assert caught.value.__notes__ == [
        "the population holds generation 3, not yet evaluated; fix: evolve(..., resume=3) evaluates it and goes on"
    ]
    numbers = [r.number for r in ga.evolve(pop, flaky, seed=7, mutate=NOISE, generations=6, resume=3)]
    assert numbers == [3, 4, 5]
    list(ga.evolve(other, evaluate, seed=7, mutate=NOISE, generations=6))
    assert pop.buffer.tobytes() == other.buffer.tobytes()


def test_an_interrupt_while_parents_are_chosen_leaves_the_record_to_resume_from():
    def interrupted(fitness, n, seed):
        if not pressed:
            pressed.append(signal.raise_signal(signal.SIGINT))
        return ga.Tournament()(fitness, n, seed)

    pressed, pop, other = [], population(), population()
    records = ga.evolve(pop, evaluate, seed=7, mutate=NOISE, select=interrupted, generations=5)
    record = next(records)
    with pytest.raises(KeyboardInterrupt) as caught:
        next(records)
    assert not hasattr(caught.value, "__notes__")
    list(ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=5, resume=record))
    list(ga.evolve(other, evaluate, seed=7, mutate=NOISE, generations=5))
    assert pop.buffer.tobytes() == other.buffer.tobytes()


def test_an_interrupt_in_a_step_comes_when_the_step_is_done(monkeypatch):
    breeding = sys.modules["flatstore.ga.breeding"]
    run = breeding.run

    def interrupted(*arguments):  # by the helper, while the caller waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        run(*arguments)

    pop, other = population(), population()
    records = ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=5)
    assert next(records).number == 0
    monkeypatch.setattr(breeding, "run", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        next(records)
    assert "the population holds generation 1, not yet evaluated; fix: evolve(..., resume=1)" in str(
        caught.value.__notes__
    )
    monkeypatch.undo()
    list(ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=5, resume=1))
    list(ga.evolve(other, evaluate, seed=7, mutate=NOISE, generations=5))
    assert pop.buffer.tobytes() == other.buffer.tobytes()


def test_a_step_that_was_refused_leaves_the_record_to_resume_from():
    pop, other = population(), population()
    records = ga.evolve(pop, evaluate, seed=7, mutate=NOISE)
    record = next(records)
    with pop.lend(), pytest.raises(fs.LentError) as caught:
        next(records)
    assert not hasattr(caught.value, "__notes__")
    list(ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=3, resume=record))
    list(ga.evolve(other, evaluate, seed=7, mutate=NOISE, generations=3))
    assert pop.buffer.tobytes() == other.buffer.tobytes()


@ga.PerGene
def refuse(a, b, draw):
    """A crossover that fails at one gene: the child's of the only parent that is not a number."""
    if a != a:
        raise ArithmeticError("mine")
    return a


@pytest.mark.long
def test_a_step_that_failed_half_way_is_finished_and_resumed():
    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(100_000, "f4")}), 8)
    records = ga.evolve(pop, lambda stacked, n: np.arange(8.0), seed=7, mutate=None, crossover=refuse, elite=0)
    record = next(records)
    pop["w"][:, 99_999] = np.nan
    with pytest.raises(ga.UnfinishedError) as caught:
        next(records)
    assert caught.value.__notes__ == ["once the step is finished, evolve(..., resume=1) goes on"]
    pop["w"][:, 99_999] = 0
    ga.step(pop, record.fitness, seed=(7, 0), mutate=None, crossover=refuse, elite=0, left=caught.value.left)
    again = ga.evolve(pop, lambda stacked, n: np.arange(8.0), seed=7, mutate=None, crossover=refuse, resume=1)
    assert next(again).number == 1


def test_generations_counts_those_before_a_resume():
    pop = population()
    *_, record = ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=2)
    before = pop.buffer.tobytes()
    assert list(ga.evolve(pop, evaluate, seed=7, mutate=NOISE, generations=2, resume=record)) == []
    assert pop.buffer.tobytes() == before


def test_a_record_names_the_best_and_cannot_be_written():
    record = ga.Generation(5, [np.nan, -np.inf, 2.0, 1.0, 2.0])
    assert (record.best, record.max, record.mean) == (2, 2.0, -np.inf)
    assert repr(record) == "generation 5: best 2 (member 2), mean -inf"
    assert ga.Generation(0, [np.nan, -np.inf]).best == 1
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(record)).fitness[0] = 1
    with pytest.raises(AttributeError):
        record.number = 6


BAD = [
    ({"evaluate": None}, TypeError, "expected a function to evaluate with, got NoneType; fix"),
    ({"generations": 0}, ValueError, "expected a whole number of generations >= 1, got 0; fix"),
    ({"elite": SIZE}, ValueError, "expected elite in 0 .. 47, got 48; fix"),
    ({"chunk": 0}, ValueError, "expected at_most >= 1, got 0; fix"),
    ({"chunk": 15}, ValueError, "expected at_most >= 16, .*, got 15; fix"),
    ({"seed": -1}, ValueError, "expected a seed of non-negative integers"),
    ({"seed": (1, -1)}, ValueError, "expected a seed of non-negative integers"),
    ({"mutate": fs.Normal({"none": 1.0})}, ValueError, "expected globs that match a leaf, got 'none'; fix"),
    ({"mutate": lambda n: fs.Normal({"none": 1.0})}, ValueError, "expected globs that match a leaf, got 'none'; fix"),
    ({"mutate": ga.Sparse(fs.Normal({"none": 1.0}), 0.1)}, ValueError, "expected globs that match a leaf, got 'none'"),
    ({"resume": -1}, ValueError, "expected resume >= 0, got -1; fix"),
    ({"resume": ga.Generation(2, np.zeros(4))}, ValueError, "expected a record of 48 members .*, got one of 4; fix"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_arguments_are_checked_when_it_is_called(change, kind, message):
    pop = population()
    before = pop.buffer.tobytes()
    arguments = {"evaluate": evaluate, "seed": 0, "mutate": NOISE} | change
    with pytest.raises(kind, match=message):
        ga.evolve(pop, arguments.pop("evaluate"), **arguments)
    assert pop.buffer.tobytes() == before


def test_an_order_that_jax_cannot_take_is_refused_when_it_is_called():
    with pytest.raises(BufferError, match=r"'w': expected contiguous bytes.*order='leaf'"):
        ga.evolve(population().copy(order="member"), evaluate, seed=0, mutate=NOISE)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: np.zeros((n, 1)), r"shape \(16,\), real, for the members 16 .. 31, got float64\[16,1\]; fix"),
        (lambda n: np.zeros(n, "c8"), r"shape \(16,\), real, for the members 16 .. 31, got complex64\[16\]; fix"),
        (lambda n: None, r"shape \(16,\), real, for the members 16 .. 31, got object\[\]; fix"),
        (lambda n: jnp.zeros(3), r"shape \(16,\), real, for the members 16 .. 31, got float32\[3\]; fix"),
    ],
)
def test_a_fitness_that_is_none_is_an_error_that_names_the_chunk(result, message):
    pop, calls = population(), []

    def wrong_in_the_second_chunk(stacked, generation):
        calls.append(generation)
        return result(16) if len(calls) == 2 else np.zeros(16)

    before = pop.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        next(ga.evolve(pop, wrong_in_the_second_chunk, seed=0, mutate=NOISE, chunk=16))
    assert pop.buffer.tobytes() == before
    pop["b"] = np.zeros((SIZE, 3), "f4")  # it is not lent any more


def test_nan_for_one_chunk_is_bad_luck_and_for_all_members_an_error():
    def unknown(members):
        return lambda stacked, n: np.where(np.arange(16) < members, np.nan, 1.0)

    assert next(ga.evolve(population(), unknown(15), seed=0, mutate=NOISE, chunk=16)).best == 15
    nan_first = iter([np.full(16, np.nan), np.zeros(16), np.ones(16)])
    assert next(ga.evolve(population(), lambda stacked, n: next(nan_first), seed=0, mutate=NOISE, chunk=16)).best == 32
    with pytest.raises(ValueError, match="a number in it for the members 0 .. 47, got only NaN; fix"):
        next(ga.evolve(population(), unknown(16), seed=0, mutate=NOISE, chunk=16))


@pytest.mark.parametrize("resume", [-1, True, 1.5, "3"])
def test_what_is_no_generation_cannot_be_resumed(resume):
    with pytest.raises(ValueError, match=r"expected resume >= 0, got .*; fix: pass a record"):
        ga.evolve(population(), evaluate, seed=7, mutate=NOISE, resume=resume)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crossover": ga.Exchange("none")}, "units: expected globs that match a leaf, got 'none'"),
        ({"crossover": ga.Uniform}, "expected a crossover or None, got <class"),
        ({"mutate": lambda n: 0.1}, "expected noise, Sparse, Reset, Mutate or None to mutate with, got 0.1"),
        ({"select": None}, "expected a selection"),
        ({"seed": 1.5}, "expected a seed of non-negative integers"),
    ],
)
def test_operators_are_checked_before_anything_is_evaluated(change, message):
    arguments = {"seed": 7, "mutate": NOISE} | change
    with pytest.raises((TypeError, ValueError), match=message):
        ga.evolve(population(), lambda stacked, n: pytest.fail("evaluated"), **arguments)


@pytest.mark.parametrize("fitness", [[1, 2**53 + 1], np.array([1, np.longdouble(1) + np.finfo(np.longdouble).eps])])
def test_a_record_does_not_round_fitness(fitness):
    with pytest.raises(ValueError, match="expected fitness that float64 holds exactly, got .*; fix"):
        ga.Generation(0, fitness)
