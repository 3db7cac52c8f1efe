"""The workers of a run as the driver sees them, with an engine that does nothing."""

from unittest.mock import MagicMock

import pytest

import flatstore as fs
from flatstore.scale.pool import Pool
from flatstore.scale.replica import Held, Job
from tests.scale import jobs


@pytest.fixture
def pool(monkeypatch):
    ray = MagicMock(**{"exceptions.ActorHandleNotFoundError": LookupError})
    monkeypatch.setattr("flatstore.scale.pool.require", lambda *names: ray)
    job = Job(jobs.make, fs.Normal(0.25), None, (3,), 8)
    pool = Pool(job, Held(job), None, {}, workers=4, batch=1, verify=1, min_fraction=1.0)
    ray.is_initialized.return_value = False
    pool._open(0)
    ray.is_initialized.return_value = True
    return pool


def test_ray_is_started_as_it_is_by_its_own_calls_and_not_again(pool):
    pool._ray.init.assert_called_once_with()
    pool._ray.is_initialized.return_value = False
    pool._open(1)
    pool._ray.init.assert_called_once_with()


def test_workers_of_a_cluster_that_was_left_have_ended(pool):
    pool._ray.is_initialized.return_value = False
    pool.close()  # `kill` would start a cluster
    pool._ray.kill.assert_not_called()
    pool._open(1)
    pool._ray.is_initialized.return_value = True
    pool._ray.kill.side_effect = LookupError("of another session")
    pool.close()
    assert pool._ray.kill.call_count == 4 and not pool._workers


def test_workers_that_start_together_and_die_together_count_as_one(pool):
    for _ in range(2):
        for worker in list(pool._workers):  # such as on a node that goes
            pool._died(worker, OSError())
    assert pool.counts.deaths == 8 and len(pool._workers) == 4
    with pytest.raises(RuntimeError, match="expected workers that go on, got 3 that died as they start; fix"):
        pool._died(pool._workers[0], OSError())


def test_workers_that_have_evaluated_nothing_are_not_asked_for_their_bits(pool):
    for worker in pool._workers:
        worker.is_ready = True
    pool._ask(pool._workers[0], [0])
    pool._workers[0].is_busy = False
    asked = pool._workers[0].actor.evaluate.remote
    asked.reset_mock()
    pool._take = MagicMock(return_value=False)
    pool.check(0)
    assert asked.call_count == 1  # all actors are the same mock
