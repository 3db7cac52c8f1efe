"""ES on a cluster of Ray: the bits of one process, whoever dies, joins, or is late."""

import signal
import subprocess
import sys
import traceback
from functools import partial

import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.evaluation import WorkerError
from tests.scale import jobs

RUN = dict(seed=3, noise=fs.Normal({"b": 0.5, "*": 0.25}), members=8, rate=0.5, generations=5)


def in_one_process(centre=None, optimiser=None, **changes):
    """What a run comes to without Ray: its centre and its moves."""
    centre = jobs.centre() if centre is None else centre
    moves = list(es.evolve(centre, jobs.scores, optimiser=optimiser and optimiser(centre), **RUN | changes))
    return centre, moves


def agree(run, moves, oracle):
    centre, expected = oracle
    assert run.centre.buffer.tobytes() == centre.buffer.tobytes()
    for move, other in zip(moves, expected, strict=True):
        assert np.array_equal(move.fitness, other.fitness, equal_nan=True) and move.entry == other.entry
        assert move.missing is None


@pytest.mark.parametrize(
    ("workers", "optimiser"), [(1, None), (2, es.Adam), pytest.param(4, es.Momentum, marks=pytest.mark.long)]
)
def test_the_bits_are_those_of_one_process(cluster, workers, optimiser):
    run = fs.scale.ray.evolve(jobs.make, workers=workers, optimiser=optimiser, **RUN)
    agree(run, list(run), in_one_process(optimiser=optimiser))
    # A worker that is slow to start may not have been needed.
    assert 1 <= run.counts.workers <= workers and run.counts.deaths == run.counts.lost == run.counts.late == 0


def test_a_worker_killed_in_an_evaluation_is_replaced_and_its_members_go_to_others(cluster, tmp_path):
    make = partial(jobs.killed_in_generations, str(tmp_path), 1, 3)
    run = fs.scale.ray.evolve(make, workers=2, batch=2, **RUN)
    agree(run, list(run), in_one_process())
    assert run.counts.deaths == 2 and run.counts.lost == 4


@pytest.mark.parametrize("function", ["replay", "restore"])
def test_a_worker_killed_in_a_move_or_as_it_joins_is_replaced(cluster, tmp_path, function, monkeypatch):
    monkeypatch.setattr("flatstore.scale.pool.KEPT", 1)  # so that a joiner needs a snapshot
    run = fs.scale.ray.evolve(partial(jobs.killed_in, function, str(tmp_path)), workers=1, **RUN)
    agree(run, list(run), in_one_process(jobs.large_centre()))
    assert (tmp_path / f"killed in {function}").exists()
    assert run.counts.deaths == 2


def test_a_worker_with_another_bit_is_stopped_and_named_and_what_it_evaluated_does_not_count(cluster, tmp_path):
    run = fs.scale.ray.evolve(partial(jobs.flipped, str(tmp_path)), workers=1, **RUN)
    with pytest.warns(RuntimeWarning, match=r"stopped worker 1 \(pid \d+ on .*\): .* in generation 2") as seen:
        agree(run, list(run), in_one_process())
    assert len(seen) == len(run.counts.stopped) == 1 and run.counts.lost == 1


def test_a_driver_that_is_killed_goes_on_from_its_folder_in_another_process(cluster, tmp_path):
    command = [sys.executable, "-m", "tests.scale.jobs", cluster.address, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout.readline() == "0\n" and driver.stdout.readline() == "1\n"
        driver.send_signal(signal.SIGKILL)
    run = fs.scale.ray.evolve("tests.scale.jobs:make", workers=1, run=tmp_path / "run", **RUN)
    numbers = [move.number for move in run]
    assert numbers[0] in (1, 2, 3, 4) and numbers == [*range(numbers[0], 5)]
    centre, _ = in_one_process(run=tmp_path / "one process")
    assert run.centre.buffer.tobytes() == centre.buffer.tobytes()
    journals = [(tmp_path / name / "journal.jsonl").read_bytes() for name in ("run", "one process")]
    assert journals[0] == journals[1]


def test_an_evaluation_that_raises_leaves_the_run_intact_and_arrives_with_its_traceback(cluster, tmp_path):
    run = fs.scale.ray.evolve(partial(jobs.made_with, jobs.raises), workers=1, run=tmp_path, **RUN)
    with pytest.raises(LookupError, match="not generation 2") as caught:
        for _ in run:
            pass
    assert isinstance(caught.value.__cause__, WorkerError)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise LookupError(f"not generation' in text and "as it evaluated member 0 of generation 2" in text
    assert f"the centre is as generation 2 found it; fix: evolve(..., run='{tmp_path}') goes on" in text
    assert run.centre.buffer.tobytes() == es.centre_of(tmp_path, 2).buffer.tobytes()
    assert list(run) == []  # it is closed
    centre, _ = in_one_process(run=tmp_path)
    assert centre.buffer.tobytes() == in_one_process()[0].buffer.tobytes()


@pytest.mark.long
def test_a_member_that_always_kills_its_worker_is_named(cluster):
    run = fs.scale.ray.evolve(partial(jobs.made_with, jobs.dies), workers=1, **RUN)
    with pytest.raises(RuntimeError, match="got 3 that died of member 0 of generation 0; fix"):
        next(run)


@pytest.mark.long
def test_workers_that_all_have_other_bits_are_an_error(cluster):
    run = fs.scale.ray.evolve(jobs.other_centres, workers=1, **RUN)
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="got 3 in a row with others, .*; fix: make"):
        next(run)


def test_what_is_bad_missing_or_late_is_told_apart(cluster, tmp_path):
    job = partial(jobs.made_with, partial(jobs.uneven, str(tmp_path)))
    run = fs.scale.ray.evolve(job, workers=2, min_fraction=0.7, **RUN | {"generations": None})
    moves, late = [], 0
    for move in run:
        moves.append(move)
        assert (~move.missing).sum() >= 6 if move.missing is not None else not np.isnan(move.fitness).all()
        late = run.counts.late
        if late and move.number > 3:
            break
    run.close()
    missing = sum(0 if move.missing is None else int(move.missing.sum()) for move in moves)
    assert 1 <= late <= missing <= run.counts.missing
    assert sum(int(np.isnan(move.fitness).sum()) for move in moves) > missing  # some are bad
    again = jobs.centre()

    def score(number, seeds):
        pop = fs.Population.like(again, 8)
        es.sample(pop, again, RUN["noise"], seeds, antithetic=True)
        here, came = np.array(jobs.scores(pop.tree, number)), moves[number]
        bad = np.array([int(abs(x) * 1e6) % 3 == 0 for x in here])
        here[bad | (False if came.missing is None else came.missing)] = np.nan
        assert np.array_equal(here, came.fitness, equal_nan=True)
        return here, came.missing

    for _ in es.evolve_by(score, again, **RUN | {"generations": len(moves)}):
        pass
    assert again.buffer.tobytes() == run.centre.buffer.tobytes()


def test_two_runs_share_a_cluster(cluster):
    one = fs.scale.ray.evolve(jobs.make, workers=1, **RUN)
    other = fs.scale.ray.evolve(jobs.make, workers=1, **RUN | {"seed": 4})
    moves = list(zip(one, other, strict=True))
    agree(one, [move for move, _ in moves], in_one_process())
    agree(other, [move for _, move in moves], in_one_process(seed=4))


def test_nodes_join_and_leave(cluster):
    run = fs.scale.ray.evolve(
        partial(jobs.made_with, jobs.slowly), options={"num_cpus": 2}, **RUN | {"generations": None}
    )
    moves, node = [next(run)], cluster.add(2)
    while run.counts.workers < 3:
        moves.append(next(run))
    cluster.kill(node)
    while not run.counts.deaths:
        moves.append(next(run))
    moves += [next(run), next(run)]
    assert run.counts.workers == 2
    run.close()
    agree(run, moves, in_one_process(generations=len(moves)))
