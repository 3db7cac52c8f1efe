"""Islands: populations that evolve apart, and whose best travel, as a function of the seed."""

import json
import os
import traceback
from dataclasses import replace
from functools import partial
from operator import attrgetter

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.evaluation import best_first
from flatstore.recording import run_entries
from flatstore.recording.line_text import line_of
from flatstore.scale import island
from flatstore.scale.island import Island, Job
from tests.scale import jobs

COUNT, EVERY, MIGRANTS, EPOCHS = 3, 2, 2, 3


def fading(number):
    return fs.Normal({"b": 0.5 * 0.9**number, "*": 0.25})


OPERATORS = dict(mutate=fading, select=ga.Tournament(3), crossover=ga.Uniform(), bounds=None, elite=1)


def a_job(run, route="ring", count=COUNT):
    return Job(jobs.island, (7,), count, EVERY, MIGRANTS, route, str(run), OPERATORS)


def oracle(job):
    """All islands in this process, without folders: their populations and fitness after each epoch."""
    pops = [jobs.island(i)[0] for i in range(job.count)]
    history, records = [], None
    for epoch in range(EPOCHS):
        if epoch:
            values = [record.fitness for record in records]
            best = [pop.to_vector()[best_first(f)[:MIGRANTS]] for pop, f in zip(pops, values, strict=True)]
            theirs = [f[best_first(f)[:MIGRANTS]] for f in values]
            for i, pop in enumerate(pops):
                fitness, matrix, comes = values[i].copy(), pop.to_vector(), job.source(i, epoch)
                worst = best_first(fitness)[-MIGRANTS:]
                matrix[worst], fitness[worst] = best[comes], theirs[comes]
                pop.assign(matrix)
                mutate = fading(epoch * EVERY - 1)
                ga.step(pop, fitness, seed=(7, i, epoch - 1, EVERY - 1), **OPERATORS | {"mutate": mutate})
        first = epoch * EVERY
        records = [
            [
                *ga.evolve(
                    pop,
                    lambda stacked, n, first=first: jobs.scores(stacked, n + first),
                    seed=(7, i, epoch),
                    generations=EVERY,
                    **OPERATORS | {"mutate": lambda n, first=first: fading(n + first)},
                )
            ][-1]
            for i, pop in enumerate(pops)
        ]
        history.append([(pop.buffer.tobytes(), record.fitness) for pop, record in zip(pops, records, strict=True)])
    return history


@pytest.mark.parametrize("route", ["ring", "random"])
def test_the_best_take_the_places_of_the_worst_of_the_island_that_the_seed_says(tmp_path, route):
    job = a_job(tmp_path, route)
    islands = [Island(job, i) for i in range(COUNT)]
    for epoch, expected in enumerate(oracle(job)):
        for one, (population, fitness) in zip(islands, expected, strict=True):
            assert np.array_equal(np.frombuffer(one.evolve(epoch, 0)), fitness)
            assert one._pop.buffer.tobytes() == population


def test_a_route_is_a_ring_of_all_islands_and_a_random_one_another_in_each_epoch(tmp_path):
    for route, least in (("ring", 1), ("random", 4)):
        job, seen = Job(jobs.island, (7,), 5, 1, 1, route, "", OPERATORS), set()
        for epoch in range(20):
            ring = tuple(job.source(island, epoch) for island in range(5))
            seen.add(ring)
            at, visited = 0, []
            for _ in range(5):
                visited.append(at := ring[at])
            assert sorted(visited) == [0, 1, 2, 3, 4]
        assert len(seen) >= least and (route == "random" or seen == {(4, 0, 1, 2, 3)})


def test_an_island_is_made_again_from_its_folder_wherever_it_was(tmp_path):
    job = a_job(tmp_path)
    expected = oracle(job)
    for epoch in range(EPOCHS):
        for i in range(COUNT):
            again = Island(job, i)  # as after each of its epochs
            assert np.array_equal(np.frombuffer(again.evolve(epoch, epoch - 1)), expected[epoch][i][1])
            assert np.array_equal(np.frombuffer(Island(job, i).evolve(epoch, 0)), expected[epoch][i][1])
            assert again._pop.buffer.tobytes() == expected[epoch][i][0]
    left = sorted(os.listdir(tmp_path / "island-0"))
    assert left == ["best-1.safetensors", "best-2.safetensors", "epoch-1", "epoch-2"]  # those before are removed


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("at_its_end", [False, True])
@pytest.mark.parametrize("step", ["load", "metadata_of", "ga.step", "ga.evolve", "save", "shutil.rmtree", "os.unlink"])
def test_an_island_that_ends_at_any_step_is_made_again_from_its_folder(tmp_path, monkeypatch, step, at_its_end):
    job, ended = a_job(tmp_path), 0
    expected = oracle(job)
    for epoch in range(EPOCHS):
        for i in range(COUNT):
            with monkeypatch.context() as patch:
                function = attrgetter(step)(island)

                def killed(*arguments, function=function, patch=patch, **options):
                    patch.undo()
                    if at_its_end:
                        function(*arguments, **options)
                    raise Killed

                patch.setattr(f"flatstore.scale.island.{step}", killed)
                try:
                    Island(job, i).evolve(epoch, epoch - 1)
                except Killed:
                    ended += 1
            again = Island(job, i)
            assert np.array_equal(np.frombuffer(again.evolve(epoch, epoch - 1)), expected[epoch][i][1])
            assert again._pop.buffer.tobytes() == expected[epoch][i][0]
    assert ended == COUNT * {"load": 2, "metadata_of": 2, "ga.step": 2, "shutil.rmtree": 1, "os.unlink": 1}.get(step, 3)
    left = sorted(os.listdir(tmp_path / "island-0"))
    assert left == ["best-1.safetensors", "best-2.safetensors", "epoch-1", "epoch-2"]


@pytest.mark.parametrize(("route", "count"), [("ring", 2), ("random", 3)])
def test_islands_on_a_cluster_are_those_of_one_process_whoever_dies(cluster, tmp_path, route, count):
    run = dict(seed=7, count=count, every=EVERY, migrants=MIGRANTS, epochs=EPOCHS, run=tmp_path / "run", **OPERATORS)
    run |= {"make": partial(jobs.island_that_dies, str(tmp_path)), "options": {"num_cpus": 0.5}, "route": route}
    expected = oracle(a_job(tmp_path, route, count))
    first = fs.scale.ray.islands(**run)
    epochs = [next(first), next(first)]
    first.close()  # and another driver goes on
    epochs += fs.scale.ray.islands(**run)
    assert [epoch.number for epoch in epochs] == [0, 1, 2] and (tmp_path / "island died").exists()
    for epoch, there in zip(epochs, expected, strict=True):
        assert np.array_equal(epoch.fitness, [fitness for _, fitness in there])
    assert [entry["number"] for entry in run_entries(tmp_path / "run")] == [0, 1, 2]
    island, member = np.unravel_index(epochs[-1].fitness.argmax(), epochs[-1].fitness.shape)
    best = fs.Population.zeros(jobs.centre().layout, 8)
    best.buffer[:] = np.frombuffer(expected[-1][island][0], np.uint8)
    assert fs.scale.ray.champion(tmp_path / "run").buffer.tobytes() == best[int(member)].copy().buffer.tobytes()
    assert list(fs.scale.ray.islands(**run)) == []
    with pytest.raises(ValueError, match="expected at least the 3 epochs that the run has, got 2; fix: champion"):
        next(fs.scale.ray.islands(**run | {"epochs": 2}))
    with pytest.raises(ValueError, match="expected the settings of the run .*, got others: every: 2 in the run, 5 in"):
        next(fs.scale.ray.islands(**run | {"every": 5}))


@pytest.mark.long
def test_an_island_that_always_dies_is_named(cluster, tmp_path):
    run = dict(seed=7, count=2, every=1, migrants=1, run=tmp_path, options={"num_cpus": 0.5}, **OPERATORS)
    with pytest.raises(RuntimeError, match=r"got island \d, which died 3 times in epoch 0; fix: see what it printed"):
        next(fs.scale.ray.islands(jobs.island_that_always_dies, **run))


def test_what_an_island_raises_arrives_with_its_traceback_and_the_run_goes_on_from_its_folder(cluster, tmp_path):
    run = dict(seed=7, count=2, every=EVERY, migrants=MIGRANTS, epochs=EPOCHS, run=tmp_path / "run", **OPERATORS)
    run |= {"make": partial(jobs.island_that_raises_once, str(tmp_path)), "options": {"num_cpus": 0.5}}
    epochs = []
    with pytest.raises(LookupError, match="not generation 3") as caught:
        epochs += fs.scale.ray.islands(**run)  # the epochs before are in the folder
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise LookupError("not generation 3")' in text
    assert f"epochs; fix: islands(..., run={str(tmp_path / 'run')!r}) goes on" in text
    begun = len([*run_entries(tmp_path / "run")])
    epochs = list(fs.scale.ray.islands(**run))
    assert [epoch.number for epoch in epochs] == [*range(begun, EPOCHS)]
    for epoch in epochs:
        there = oracle(a_job(tmp_path, count=2))[epoch.number]
        assert np.array_equal(epoch.fitness, [fitness for _, fitness in there])


def test_islands_of_another_size_or_layout_are_refused_by_name(cluster, tmp_path):
    run = dict(seed=7, count=2, every=1, migrants=1, options={"num_cpus": 0.5}, **OPERATORS)
    with pytest.raises(ValueError, match=r"expected islands of equal size, got \[8, 10\] members; fix: make them so"):
        next(fs.scale.ray.islands(partial(jobs.uneven_island, 2, 0), run=tmp_path / "sizes", **run))
    with pytest.raises(fs.StructureError, match=r"'b': expected float32\[1,[34]\], got float32\[1,[34]\]; fix"):
        list(fs.scale.ray.islands(partial(jobs.uneven_island, 0, 1), run=tmp_path / "layouts", epochs=2, **run))


def test_two_drivers_do_not_go_on_with_the_same_islands(cluster, tmp_path):
    run = dict(seed=7, count=2, every=1, migrants=1, run=tmp_path, options={"num_cpus": 0.5}, **OPERATORS)
    first = fs.scale.ray.islands(jobs.island, **run)
    next(first)
    with pytest.raises(BlockingIOError, match="expected a run that nobody goes on with, got .*, which is in use; fix"):
        next(fs.scale.ray.islands(jobs.island, **run))
    first.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1}, "expected count >= 2, got 1; fix"),
        ({"every": 0}, "expected every >= 1, got 0; fix"),
        ({"migrants": 0}, "expected migrants >= 1, got 0; fix"),
        ({"route": "star"}, "expected route 'ring' or 'random', got 'star'; fix"),
        ({"epochs": 0}, "expected a whole number of epochs >= 1, got 0; fix"),
        ({"seed": -1}, "expected a seed of non-negative integers"),
    ],
)
def test_what_islands_are_asked_for_is_checked(change, message, tmp_path):
    run = dict(make=jobs.island, seed=7, count=3, every=2, run=tmp_path, mutate=None)
    with pytest.raises(ValueError, match=message):
        fs.scale.ray.islands(**run | change)


def test_what_an_island_raises_names_it_and_says_nothing_of_folders_within_the_run(tmp_path):
    make = partial(jobs.island_that_raises, LookupError("in an evaluation"))
    with pytest.raises(LookupError) as caught:
        Island(replace(a_job(tmp_path), make=make), 1).evolve(0, 0)
    assert caught.value.__notes__ == ["it was raised on island 1, in epoch 0"]
    make = partial(jobs.island_that_raises, jobs.Unpicklable(1, 2))
    with pytest.raises(RuntimeError, match="^Unpicklable: one argument, and another; it was raised on island 2, in e"):
        Island(replace(a_job(tmp_path), make=make), 2).evolve(0, 0)


def test_a_folder_that_a_node_does_not_see_is_an_error_and_is_not_made_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of the run on every node, got none at .*; fix: n"):
        Island(a_job(tmp_path / "run"), 0).evolve(0, 0)
    assert not (tmp_path / "run").exists()


def test_fewer_travel_than_there_are(tmp_path):
    job = Job(jobs.island, (7,), 2, 1, 8, "ring", str(tmp_path), OPERATORS)
    with pytest.raises(ValueError, match="expected more members than migrants, 8, got 8; fix: pass fewer migrants="):
        Island(job, 0).evolve(0, 0)


def test_a_run_of_another_kind_has_no_islands(tmp_path):
    pop, evaluate = jobs.island(0)
    next(ga.evolve(pop, evaluate, seed=0, mutate=None, run=tmp_path))
    with pytest.raises(ValueError, match="expected the fitness of islands in entry 0 of the .*; fix: name a run"):
        fs.scale.ray.champion(tmp_path)


@pytest.mark.parametrize(
    ("members", "metadata"),
    [
        (MIGRANTS, {}),
        (MIGRANTS, {"fitness": "[1.0]"}),
        (MIGRANTS, {"fitness": "[" * 10_000}),
        (MIGRANTS, {"fitness": '{"1": 0}'}),
        (9, {"fitness": json.dumps([0.0] * 9)}),
    ],
)
def test_who_comes_from_elsewhere_is_checked(tmp_path, members, metadata):
    job = a_job(tmp_path)
    islands = [Island(job, i) for i in range(COUNT)]
    for one in islands:
        one.evolve(0, 0)
    fs.save(job.best(0, 0), fs.Population.zeros(jobs.centre().layout, members), metadata=metadata)
    with pytest.raises(
        ValueError, match="expected 2 members and their fitness in .*best-0.*, got others .*; fix: take"
    ):
        islands[1].evolve(1, 0)


def test_the_champion_of_a_run_that_goes_on_meanwhile_is_that_of_a_later_epoch(tmp_path, monkeypatch):
    job = a_job(tmp_path)
    (tmp_path / "journal.jsonl").write_bytes(line_of({"number": 0, "fitness": [[0.0]] * COUNT}))
    island = Island(job, 0)
    island.evolve(0, 0)
    expected = fs.load(job.best(0, 0))[0]
    os.rename(job.best(0, 0), job.best(0, 1))

    def removed(path):
        monkeypatch.undo()
        with open(tmp_path / "journal.jsonl", "ab") as journal:
            journal.write(line_of({"number": 1, "fitness": [[0.0]] * COUNT}))
        return fs.load(path)

    monkeypatch.setattr("flatstore.scale.islands.load", removed)
    assert fs.scale.ray.champion(tmp_path).buffer.tobytes() == expected.copy().buffer.tobytes()
    os.unlink(job.best(0, 1))
    with pytest.raises(FileNotFoundError):
        fs.scale.ray.champion(tmp_path)


def test_a_run_without_an_epoch_has_no_champion(tmp_path):
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ValueError, match="expected a run of islands with an epoch, got none in .*; fix: wait"):
        fs.scale.ray.champion(tmp_path)
