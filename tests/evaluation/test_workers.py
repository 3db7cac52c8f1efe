"""Workers: processes that evaluate members in place; they may die, raise, and be interrupted."""

import contextlib
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.evaluation import WorkerError, scorer
from flatstore.evaluation.workers import _Worker
from tests.evaluation import of_members
from tests.example_trees import says
from tests.other_processes import segments_there, until


def numbered(size=8):
    """A shared population whose members are full of their numbers."""
    pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, size)
    pop.assign(np.repeat(np.arange(size, dtype="f4")[:, None], 8, axis=1))
    return pop.share()


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert not multiprocessing.active_children()
    assert not segments_there()
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the pipes of multiprocessing's own helpers stay


def scores(stacked, number):
    return [of_members.score({"w": row}, number) for row in np.asarray(stacked["w"])]


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_generation_evaluated_by_workers_has_the_bits_of_one_evaluated_here(order):
    run = dict(seed=3, mutate=fs.Normal(0.3), generations=4)
    pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 12, order=order)
    shared = pop.share()
    oracle = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 12)
    expected = [record.fitness for record in ga.evolve(oracle, scores, **run)]
    got = [record.fitness for record in ga.evolve(shared, of_members.score, workers=2, **run)]
    assert np.array_equal(expected, got)
    assert (shared.to_vector() == oracle.to_vector()).all()


def test_a_strategy_samples_its_members_where_workers_evaluate_them():
    def centre():
        return fs.Store.from_tree({"frozen": np.int32(5), "w": np.zeros(8, "f4")})

    run = dict(seed=3, noise=fs.Normal(0.3), rate=5.0, generations=3)
    here, there, mine = centre(), centre(), centre()
    members = fs.Population.zeros(mine.layout, 8).share()
    expected = [move.fitness for move in es.evolve(here, scores, members=8, **run)]
    got = [move.fitness for move in es.evolve(there, of_members.score, members=8, workers=2, **run)]
    for _ in es.evolve(mine, of_members.score, members=members, workers=1, **run):
        pass
    assert np.array_equal(expected, got)
    assert here.flat.tobytes() == there.flat.tobytes() == mine.flat.tobytes()
    assert members[0]["frozen"] == 5


def test_an_exception_arrives_with_its_traceback_and_the_run_goes_on_from_there():
    pop = numbered()
    run = dict(seed=1, mutate=fs.Normal(0.1), generations=4)
    with pytest.raises(LookupError, match="not member") as caught:
        for _ in ga.evolve(pop, of_members.raises, workers=2, **run):
            pass
    assert not multiprocessing.active_children()  # though the exception is still held
    assert isinstance(caught.value.__cause__, WorkerError)
    text = "".join(traceback.format_exception(caught.value))
    assert 'raise LookupError(f"not member' in text and "as it evaluated member" in text and "resume=2" in text
    records = list(ga.evolve(pop, of_members.score, workers=2, resume=2, **run))
    oracle = numbered().copy()
    expected = list(ga.evolve(oracle, scores, **run))
    assert [record.number for record in records] == [2, 3]
    assert np.array_equal(records[-1].fitness, expected[-1].fitness)


def test_what_does_not_pickle_and_an_exit_arrive_as_runtime_errors():
    pop = numbered()
    for function, what in (
        (of_members.raises_what_does_not_pickle, "Unpicklable"),
        (of_members.leaves, "SystemExit: 3"),
    ):
        with pytest.raises(RuntimeError, match=what) as caught:
            scorer(pop, function, None, 1)(0)
        assert "of_members.py" in str(caught.value.__cause__)


def test_a_member_is_read_only_in_a_worker():
    pop = numbered()
    for function in (of_members.writes, of_members.assigns):
        with pytest.raises(ValueError, match="read-only|expected memory that may be written"):
            scorer(pop, function, None, 1)(0)
    assert (pop["w"][:, 0] == np.arange(8)).all()


def test_members_whose_workers_have_died_are_evaluated_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MARKS", str(tmp_path))
    pop = numbered()
    assert (scorer(pop, of_members.dies_once, None, fs.Workers(2, "forkserver"))(0) == np.arange(8)).all()
    assert len(os.listdir(tmp_path)) == 4


def test_a_member_that_always_kills_its_worker_is_named():
    pop = numbered()
    with pytest.raises(RuntimeError) as caught:
        scorer(pop, of_members.dies_of_sevens, None, 1)(5)
    says(caught, "whose worker died 3 times (status -9) of member 7 of generation 5", "evaluate(pop[7], 5)")


def test_workers_that_cannot_start_are_an_error_that_says_why(monkeypatch):
    module = types.ModuleType("nowhere_to_be_imported")
    exec("def score(member, number):\n    return 1.0", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(RuntimeError) as caught:
        scorer(numbered(), module.score, None, 1)(0)
    says(caught, "expected workers that start", "status 1", "__main__")


def test_fitness_is_one_real_number():
    score_of = scorer(numbered(2), of_members.gives, None, 1)
    assert [score_of(number).tolist() for number in (6, 7, 8)] == [[2, 2], [1, 1], [5, 5]]
    for number, got in enumerate(["float64[2]", "", "", "complex", "integers of up to", ""]):
        with pytest.raises((ValueError, TypeError)) as caught:
            scorer(numbered(2), of_members.gives, None, 1)(number)
        says(caught, got)
    with pytest.raises(ValueError, match="got only NaN"):
        scorer(numbered(2), of_members.nan, None, 1)(0)


def test_arguments_are_checked_before_anything_starts():
    pop = numbered()
    run = dict(seed=0, mutate=None)
    for workers in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError) as caught:
            ga.evolve(pop, of_members.score, workers=workers, **run)
        says(caught, "expected workers >= 1")
    with pytest.raises(ValueError) as caught:
        fs.Workers(2, "thread")
    says(caught, "start: expected one of", "'thread'")
    with pytest.raises(ValueError) as caught:
        ga.evolve(pop, of_members.score, workers=2, chunk=4, **run)
    says(caught, "no chunk")
    for part in (pop.copy(), pop[:4]):
        with pytest.raises(BufferError) as caught:
            ga.evolve(part, of_members.score, workers=2, **run)
        says(caught, "pop.share()")
    centre = fs.Store.from_tree({"w": np.zeros(8, "f4")})
    with pytest.raises(BufferError, match="pop.share"):
        es.evolve(centre, of_members.score, seed=0, noise=fs.Normal(1), members=pop.copy(), rate=1.0, workers=2)
    with pytest.raises(TypeError) as caught:
        ga.evolve(pop, lambda member, number: 1.0, workers=2, **run)
    says(caught, "that other processes can import", "start='fork'")
    with pytest.raises(TypeError, match="can import"):  # no parameter is sent along by mistake
        ga.evolve(pop, types.MethodType(of_members.score, pop), workers=2, **run)


def test_while_workers_read_nothing_writes_the_population():
    pop = numbered()
    score_of, refused = scorer(pop, of_members.slow, None, 2), []

    def write():
        while not refused:
            with contextlib.suppress(fs.LentError):
                pop["w"] = np.array(pop["w"])
                time.sleep(0.002)
                continue
            refused.append(True)

    thread = threading.Thread(target=write)
    thread.start()
    with fs.waiting(10.0):
        assert np.array_equal(score_of(0), scores({"w": pop["w"]}, 0))
    thread.join()


def test_workers_end_with_the_loop_however_it_is_left():
    pop = numbered()
    run = dict(seed=0, mutate=fs.Normal(0.1), workers=2)
    for _ in ga.evolve(pop, of_members.score, generations=2, **run):
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    for _ in ga.evolve(pop, of_members.score, **run):
        break
    assert not multiprocessing.active_children()
    loop = ga.evolve(pop, of_members.score, **run)
    assert not multiprocessing.active_children()  # none before the first generation
    next(loop)
    del loop
    assert not multiprocessing.active_children()


# -- whole programs, killed and interrupted

FRAME = """
import multiprocessing, os, signal, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, flatstore as fs
from flatstore import ga
from tests.evaluation import of_members

def main():
    pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 64).share()
    run = ga.evolve(pop, %s, seed=0, mutate=fs.Normal(0.1), workers=fs.Workers(3, %r))
    if not %r:
        next(run)
    print(os.getpid(), flush=True)
    for record in run:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)

if __name__ == "__main__":
    main()
"""


def a_program(function, start, waits=False):
    code = FRAME % (f"of_members.{function}", start, waits)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    return process, int(process.stdout.readline())


def group_of(session):
    """The processes of a session that still run, other than multiprocessing's own servers."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(name))
    return found


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("function", ["slow", "late"])
def test_when_the_program_is_killed_its_workers_end_and_remove_its_segment(function, start):
    process, number = a_program(function, start, waits=function == "late")
    if function == "late":
        assert process.stdout.readline() == "begun\n"
    time.sleep(random.uniform(0, 1))
    assert segments_there()
    process.kill()
    process.communicate()
    until(lambda: not group_of(number))
    if function == "slow":  # killed as workers start, perhaps before one has attached: then the next who shares sweeps
        fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(1, "f4")})).share()
    until(lambda: not segments_there())


def test_what_is_left_of_a_program_killed_before_its_workers_had_started_goes_when_another_shares():
    process, number = a_program("late", "spawn", waits=True)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    until(lambda: not group_of(number))
    another = numbered()
    assert segments_there() == [another.segment]


KEPT = """
import sys, numpy as np, flatstore as fs
from flatstore import ga
from tests.evaluation import of_members
if __name__ == "__main__":
    pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 16).share()
    run = dict(seed=4, mutate=fs.Normal(0.3), generations=40, workers=2, run=sys.argv[1])
    for record in ga.evolve(pop, of_members.slow, **run):
        print(record.number, flush=True)
"""


def test_a_run_that_is_killed_goes_on_with_another_number_of_workers_to_the_same_bits(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KEPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        for _ in range(8):
            process.stdout.readline()
        time.sleep(random.uniform(0, 0.2))
        process.kill()
    shared, oracle = (fs.Population.from_tree({"w": np.zeros(8, "f4")}, 16) for _ in range(2))
    shared = shared.share()
    run = dict(seed=4, mutate=fs.Normal(0.3), generations=40)
    records = list(ga.evolve(shared, of_members.score, workers=1, run=tmp_path, **run))
    expected = list(ga.evolve(oracle, scores, **run))
    assert records[0].number >= 7 and np.array_equal(records[-1].fitness, expected[-1].fitness)
    assert (shared.to_vector() == oracle.to_vector()).all()
    until(lambda: segments_there() == [shared.segment])


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("function", ["slow", "late"])
def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(function, start):
    process, number = a_program(function, start, waits=function == "late")
    time.sleep(random.uniform(0, 2))
    os.killpg(number, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and errors.rstrip().splitlines()[-1].endswith("goes on")
    assert "KeyboardInterrupt" in errors and errors.count("Traceback") == 1, errors
    until(lambda: not group_of(number))
    assert not segments_there()


@pytest.mark.long(but="200")
@pytest.mark.parametrize("rounds", [200, 1000])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_no_read_is_torn_and_no_member_lost_while_workers_are_killed(start, rounds):
    command = [sys.executable, "-W", "ignore", "-m", "tests.evaluation.of_members", start, "4", str(rounds), "50"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{rounds // 50} workers killed")


def test_what_a_handler_raises_as_a_worker_answers_is_not_taken_for_its_death():
    def strike(number, frame):
        raise EOFError("struck")

    def answer():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGALRM)
        worker._other.send("late")

    before = signal.signal(signal.SIGALRM, strike)
    worker, answers = _Worker(multiprocessing, ("none", of_members.score)), threading.Thread(target=answer)
    try:
        with pytest.raises(EOFError, match="struck"):
            answers.start()
            worker.answer()
    finally:
        answers.join()
        signal.signal(signal.SIGALRM, before)
        worker.connection.close()
        worker._other.close()
