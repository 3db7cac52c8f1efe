"""Runs in folders: the same call goes on, to the bit, and evaluates nothing twice."""

import json

import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.recording import run_folder

SIZE, GENERATIONS = 16, 10


def population(order="leaf"):
    layout = fs.Layout.from_tree({"b": np.ones(3, "f4"), "n": np.int32(5), "w": np.zeros((5, 3), "f4")})
    pop = fs.Population.zeros(layout, SIZE, order=order)
    es.sample(pop, fs.Store.from_tree({"b": np.ones(3, "f4"), "n": np.int32(5), "w": np.zeros((5, 3), "f4")}),
              fs.Normal(0.3), fs.seeds(8, SIZE))  # fmt: skip
    return pop


def evaluate(stacked, number):
    fitness = -np.square(np.asarray(stacked["w"], "f8") - 1).sum(axis=(1, 2)) / 3 * (1 + number)
    fitness[number % 3] = (np.nan, -np.inf, fitness[2])[number % 3]
    return fitness


def evolve(run=None, generations=GENERATIONS, evaluate=evaluate, order="leaf", **other):
    pop = population()
    arguments = dict(seed=(1, 2), mutate=fs.Normal(0.2), elite=2, generations=generations, run=run) | other
    return pop, ga.evolve(pop, evaluate, **arguments)


WAYS = {
    "noise": {},
    "noise that fades, within bounds": dict(
        mutate=lambda n: fs.Normal(0.2 * 0.9**n), bounds=ga.Bounds({"w": (-1, 1.5), "*": (-9, 9)}, "reflect")
    ),
    "truncation, points, sparse": dict(
        select=ga.Truncation(0.25), crossover=ga.Points(2), mutate=ga.Sparse(fs.Normal(0.3), 0.2), elite=0
    ),
    "a selection of one's own": dict(
        select=lambda fitness, n, seed: np.random.default_rng(seed).integers(0, SIZE, n), crossover=None
    ),
}


@pytest.fixture(params=WAYS)
def begin(request):
    return lambda *arguments, **other: evolve(*arguments, **(WAYS[request.param] | other))


@pytest.fixture(params=[0.0, 1e9], ids=["a snapshot each time", "no snapshots"], autouse=True)
def snapshots(request, monkeypatch):
    monkeypatch.setattr(run_folder, "EVERY", request.param)
    monkeypatch.setattr(run_folder, "SHARE", 0)


def record_of(record):
    arrays = record.fitness, record.parents, record.kept
    return record.number, [None if array is None else array.tobytes() for array in arrays]


def test_a_run_that_is_left_anywhere_goes_on_by_the_same_call_to_the_bit(tmp_path, begin):
    pop, records = begin()
    expected = [(record_of(record), pop.buffer.tobytes()) for record in records]
    assert len(expected) == GENERATIONS
    seen = {}
    for stop in (0, 3, 3, 4, 8, 99):
        pop, records = begin(tmp_path / "run")
        for record in records:
            seen[record.number] = record_of(record), pop.buffer.tobytes()
            assert seen[record.number] == expected[record.number]
            if record.number >= stop:
                break
        records.close()
    assert [seen[number] for number in range(GENERATIONS)] == expected
    pop, records = begin(tmp_path / "run")
    assert [(record_of(record), pop.buffer.tobytes()) for record in records] == expected[-1:]


def test_nothing_is_evaluated_twice(tmp_path):
    numbers = []

    def counted(stacked, number):
        numbers.append(number)
        return evaluate(stacked, number)

    for stop in (4, 4, 7, 99):
        for record in evolve(tmp_path, evaluate=counted)[1]:
            if record.number >= stop:
                break
    assert numbers == list(range(GENERATIONS))


def test_a_generation_that_is_not_evaluated_is_born_and_evaluated_again(tmp_path):
    def fails(stacked, number):
        if number == 5:
            raise KeyError("five")
        return evaluate(stacked, number)

    expected, records = evolve()
    list(records)
    pop, records = evolve(tmp_path, evaluate=fails)
    with pytest.raises(KeyError) as caught:
        list(records)
    (note,) = caught.value.__notes__
    way = f"evolve(..., run={str(tmp_path)!r})"
    assert note == f"the population holds generation 5, not yet evaluated; fix: {way} evaluates it and goes on"
    pop, records = evolve(tmp_path)
    assert [record.number for record in records] == [4, 5, 6, 7, 8, 9]
    assert pop.buffer.tobytes() == expected.buffer.tobytes()


def test_a_run_goes_on_in_a_population_of_another_order(tmp_path):
    expected, records = evolve()
    list(records)
    for record in evolve(tmp_path)[1]:
        if record.number == 4:
            break
    arguments = dict(seed=(1, 2), mutate=fs.Normal(0.2), elite=2, generations=GENERATIONS, run=tmp_path)
    packed = fs.Layout.from_tree(population()[0].tree, align=64)
    pop = fs.Population.zeros(packed, SIZE, order="leaf")
    list(ga.evolve(pop, evaluate, **arguments))
    assert pop.to_vector().tobytes() == expected.to_vector().tobytes()


def test_the_journal_has_the_fitness_of_each_generation_when_its_record_is_there(tmp_path):
    for record in evolve(tmp_path)[1]:
        lines = (tmp_path / "journal.jsonl").read_text().splitlines()
        assert len(lines) == record.number + 1 and json.loads(lines[-1])["number"] == record.number
        found = list(ga.records(tmp_path))[-1]
        assert (found.number, found.best) == (record.number, record.best)
        np.testing.assert_array_equal(found.fitness, record.fitness)
        assert found.parents is None


DIFFERENT = {
    "seed": (dict(seed=3), r"seed: \[1, 2\] in the run, \[3\] in the call"),
    "mutate": (dict(mutate=None), "mutate: {'kind': 'Normal'.*} in the run, None in the call"),
    "select": (dict(select=ga.Tournament(2)), "select.k: 4 in the run, 2 in the call"),
    "crossover": (dict(crossover=None), "crossover: {'kind': 'Uniform'.*} in the run, None in the call"),
    "bounds": (dict(bounds=ga.Bounds({"*": (-9, 9)})), "bounds: None in the run, {.*'outside': 'clip'} in the call"),
    "elite": (dict(elite=1), "elite: 2 in the run, 1 in the call"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_that_differ_are_an_error_that_names_each(tmp_path, name):
    other, message = DIFFERENT[name]
    list(evolve(tmp_path, 3)[1])
    with pytest.raises(ValueError, match=f"expected the settings of the run .*, got others: {message}; fix: call it"):
        evolve(tmp_path, **other)
    list(evolve(tmp_path, 4)[1])  # it is free


def test_another_size_fewer_generations_and_runs_of_other_loops_are_errors(tmp_path):
    list(evolve(tmp_path, 5)[1])
    with pytest.raises(ValueError, match="members: 16 in the run, 8 in the call"):
        ga.evolve(fs.Population.zeros(population().layout, 8), evaluate, seed=(1, 2), mutate=fs.Normal(0.2), elite=2,
                  run=tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="expected at least the 5 generations that the run has, got 4; fix"):
        evolve(tmp_path, 4)
    with pytest.raises(ValueError, match="expected run= or resume=, got both; fix: leave resume= out"):
        evolve(tmp_path, resume=3)
    with pytest.raises(ValueError, match="expected a run of es.evolve or es.mezo, got one of 'ga.evolve'"):
        next(es.moves(tmp_path))
    with pytest.raises(ValueError, match="expected a run of es.evolve or es.mezo, got one of 'ga.evolve'"):
        es.centre_of(tmp_path, 0)
    store = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    list(es.mezo(store, lambda x, n: 0.0, seed=0, noise=fs.Normal(1), rate=1.0, steps=1, run=tmp_path / "es"))
    with pytest.raises(ValueError, match="expected a run of ga.evolve, got one of 'es.mezo'"):
        ga.records(tmp_path / "es")
