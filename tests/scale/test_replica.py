"""A centre that follows the moves of a run elsewhere: in one process, without an engine."""

import sys
from functools import partial

import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.scale.pool import Worker
from flatstore.scale.replica import Job, Replica, made, told
from tests.scale import jobs

NOISE = fs.Normal(0.25)


def job(make=jobs.make, optimiser=None):
    return Job(make, NOISE, optimiser, (3,), 8)


def moves(optimiser=None, shape=es.centred_ranks):
    centre = jobs.centre()
    run = dict(seed=3, noise=NOISE, members=8, rate=0.5, generations=6, shape=shape)
    return centre, list(es.evolve(centre, jobs.scores, optimiser=optimiser and optimiser(centre), **run))


@pytest.mark.parametrize("optimiser", [None, es.Adam, partial(es.Momentum, beta=0.5)])
def test_it_makes_the_moves_and_evaluates_the_members_of_the_run(optimiser):
    centre, records = moves(optimiser)
    replica = Replica(job(optimiser=optimiser))
    for record in records:
        assert np.array_equal(replica.fitness([5, 0, 1, 2, 3, 4, 6, 7])[[1, 2, 3, 4, 5, 0, 6, 7]], record.fitness)
        replica.follow([told(record)])
    assert replica.number == 6 and replica.centre.buffer.tobytes() == centre.buffer.tobytes()
    replica.follow([])


@pytest.mark.parametrize("optimiser", [None, es.Adam, es.Momentum])
def test_a_snapshot_and_the_moves_since_lead_to_the_same_bits(optimiser):
    _, records = moves(optimiser)
    first, late = Replica(job(optimiser=optimiser)), Replica(job(optimiser=optimiser))
    first.follow([told(record) for record in records[:4]])
    late.restore(first.state(4))
    assert late.digest() == first.digest() and late.number == 4
    for replica in (first, late):
        replica.follow([told(record) for record in records[4:]])
    assert late.centre.buffer.tobytes() == first.centre.buffer.tobytes()
    assert late.digest() == first.digest() and late.count == first.count


def test_the_digest_is_of_every_byte_of_the_centre_and_of_the_optimiser():
    replica = Replica(job(optimiser=es.Adam))
    seen = {replica.digest()}
    for store in (replica.centre, replica.optimiser.mean, replica.optimiser.square):
        for byte in (0, len(store.buffer) - 1):
            store.buffer[byte] ^= 1
            seen.add(replica.digest())
    replica.optimiser.count += 1
    seen.add(replica.digest())
    assert len(seen) == 8


def test_moves_that_do_not_follow_are_refused():
    _, records = moves()
    with pytest.raises(AssertionError):
        Replica(job()).follow([told(records[1])])


def test_fitness_itself_for_two_members_is_a_step_of_mezo():
    here, there = jobs.centre(), jobs.centre()
    run = dict(seed=3, noise=NOISE, rate=0.01)
    steps = list(es.mezo(here, jobs.score, steps=5, **run))
    replica = Replica(Job(jobs.make, NOISE, None, (3,), 2))

    def score(number, seeds):
        return replica.fitness([0, 1])

    by = es.evolve_by(score, there, members=2, shape=np.array, generations=5, **run)
    for step, move in zip(steps, by, strict=True):
        assert step.entry == move.entry and np.array_equal(step.fitness, move.fitness)
        replica.follow([told(move)])
    assert here.buffer.tobytes() == there.buffer.tobytes() == replica.centre.buffer.tobytes()


@pytest.mark.parametrize("optimiser", [es.Adam(jobs.centre()), lambda centre: None, "Adam"])
def test_an_optimiser_that_was_made_before_is_refused(optimiser):
    with pytest.raises(TypeError, match=r"expected es.Adam, es.Momentum or None as optimiser, got .*; fix: pass the"):
        Replica(job(optimiser=optimiser))


def test_what_an_evaluation_raises_names_the_member_and_what_does_not_pickle_is_in_words():
    replica = Replica(job(partial(jobs.made_with, jobs.raises)))
    replica.number = 2
    with pytest.raises(LookupError, match="not generation 2") as caught:
        replica.fitness([5])
    assert caught.value.__notes__ == ["it was raised in a worker, as it evaluated member 5 of generation 2"]
    worker = Worker(job(partial(jobs.made_with, jobs.raises_what_does_not_pickle)))
    with pytest.raises(RuntimeError, match="Unpicklable: one argument, and another; it was raised in a worker, as it"):
        worker.evaluate(None, ((), 0, [5], True))
    with pytest.raises(RuntimeError, match="^Unpicklable: one argument, and another$"):  # as it joins
        Worker(job(partial(jobs.raises_what_does_not_pickle, None, 0))).evaluate(None, ((), 0, [5], True))
    replica = Replica(job(partial(jobs.made_with, jobs.gives_two)))
    with pytest.raises(ValueError, match=r"expected one real number as the fitness of member 5, got .*; fix"):
        replica.fitness([5])


def test_a_name_stands_for_a_function():
    assert made("tests.scale.jobs:make", fs.Store)[1] is jobs.score
    for name in ("tests.scale.jobs", ":make", "tests.scale.jobs:", ""):
        with pytest.raises(ValueError, match=f"expected make as 'module:function', got '{name}'; fix: 'my_job:make'"):
            made(name, fs.Store)
    with pytest.raises(AttributeError):
        made("tests.scale.jobs:nothing", fs.Store)
    with pytest.raises(TypeError, match="expected a function as make, or its name, got 3; fix: pass one, or 'my_job:"):
        made(3, fs.Store)
    with pytest.raises(TypeError, match="expected a Population and a function from make, got Store, function; fix: re"):
        made(jobs.make, fs.Population)


@pytest.mark.parametrize(
    ("make", "optimiser", "message"),
    [
        (jobs.centre, None, "expected a Store and a function from make, got Store; fix: return both"),
        (lambda: (jobs.model(), jobs.score), None, r"expected a Store and .* got dict, function; fix"),
        (jobs.make, lambda centre: object(), "expected es.Adam, es.Momentum or None as optimiser, got .*; fix: pass"),
    ],
)
def test_what_make_and_the_optimiser_are_is_checked(make, optimiser, message):
    with pytest.raises(TypeError, match=message):
        Replica(job(make, optimiser))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"options": {"num_cpus": 0}}, ValueError, "expected num_cpus > 0, by which .*, got 0; fix: pass workers="),
        ({"workers": 0}, ValueError, "expected workers >= 1, got 0; fix: leave workers= out"),
        ({"batch": 1.5}, ValueError, "expected batch >= 1, got 1.5; fix"),
        ({"verify": 0}, ValueError, "expected verify >= 1, got 0; fix"),
        ({"min_fraction": 0.5}, ValueError, "expected min_fraction above 0.5, up to 1, got 0.5; fix: wait for more"),
        ({"min_fraction": 1.1}, ValueError, "got 1.1; fix"),
        ({"members": 7}, ValueError, "expected an even number of members, 2 or more, got 7; fix"),
        ({"seed": -1}, ValueError, "expected a seed of non-negative integers"),
        ({"generations": 0}, ValueError, "expected a whole number of generations >= 1, got 0; fix"),
        ({"make": jobs.centre}, TypeError, "expected a Store and a function"),
    ],
)
def test_what_a_run_is_asked_for_is_checked_before_a_cluster_is_used(change, error, message):
    pytest.importorskip("ray", reason="ray is not installed")
    run = dict(make=jobs.make, seed=3, noise=NOISE, members=8, rate=0.5)
    with pytest.raises(error, match=message):
        fs.scale.ray.evolve(**run | change)


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"expected the library 'ray', got none; fix: pip install 'flatstore\[ray\]'"):
        fs.scale.ray.evolve(jobs.make, seed=3, noise=NOISE, members=8, rate=0.5)
