"""A journal of seeds and weights is all it takes to hold the same centre: in time, and in two processes."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE = fs.Normal({"b": 0, "*": 0.2})
TREE = {"b": np.ones(3, "f4"), "n": np.int32(5), "w": np.zeros((5, 3), "f4")}


def a_store():
    return fs.Store.from_tree(TREE)


def score(params):
    return -jnp.square(params["w"] - 1).sum()


@jax.jit
def evaluate_one(params, step):
    return score(params)


def mezo(store, **resume):
    return list(es.mezo(store, evaluate_one, seed=1, noise=NOISE, rate=0.5, steps=30, **resume))


def evolve(store, rule=None):
    evaluate = jax.jit(lambda stacked, n: jax.vmap(lambda w: score({"w": w}))(stacked["w"]))
    optimiser, rate = (rule(store), lambda n: 0.1 * 0.9**n) if rule else (None, 3.0)
    run = es.evolve(store, evaluate, seed=1, noise=NOISE, members=8, rate=rate, optimiser=optimiser, generations=30)
    return list(run)


RUNS = {
    "mezo": (mezo, None),
    "evolve": (evolve, None),
    "evolve by Adam": (lambda s: evolve(s, es.Adam), es.Adam),
    "evolve with momentum": (lambda s: evolve(s, es.Momentum), es.Momentum),
}
FORMS = {
    "records": lambda moves: moves,
    "pickled": lambda moves: pickle.loads(pickle.dumps(moves)),
    "json": lambda moves: json.loads(json.dumps([move.entry for move in moves])),
    "as they come": lambda moves: (move for move in moves),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_a_run_and_its_replay_have_the_same_bytes(run, form):
    store, other = a_store(), a_store()
    go, rule = RUNS[run]
    journal = FORMS[form](go(store))
    es.replay(other, NOISE, journal, optimiser=rule(other) if rule else None)
    assert store.buffer.tobytes() == other.buffer.tobytes()
    assert store["w"].any() and (store["b"] == 1).all()


def test_a_replay_may_stop_and_go_on_with_the_run_itself():
    store, other = a_store(), a_store()
    moves = mezo(store)
    es.replay(other, NOISE, moves[:10])
    assert len(mezo(other, resume=moves[9])) == 20
    assert store.buffer.tobytes() == other.buffer.tobytes()


def test_one_seed_and_one_weight_may_be_plain_numbers():
    store, other = a_store(), a_store()
    es.replay(store, NOISE, [(2**64 - 1, 0.5), (np.uint64(3), np.float32(-1))])
    es.update(other, NOISE, [2**64 - 1], [0.5])
    es.update(other, NOISE, [3], [-1.0])
    assert store.buffer.tobytes() == other.buffer.tobytes()


def test_a_record_tells_the_fitness_and_cannot_be_written():
    move = es.Move(5, [np.nan, -1.0, 2.0], [7], [0.5])
    assert (move.max, move.mean, move.entry) == (2.0, 0.5, [[7], [0.5]])
    assert repr(move) == "move 5: best 2, mean 0.5, 1 seeds"
    assert es.Move(0, [1.0], [2**64 - 1], [1.0], 0.25).entry == [[2**64 - 1], [1.0], 0.25]
    with pytest.raises(ValueError, match="read-only"):
        move.weights[0] = 1
    with pytest.raises(AttributeError):
        move.number = 6


@pytest.mark.parametrize("seeds", [[1.5], [-1], [True], [[1]], 1])
def test_a_record_of_seeds_that_are_none_is_refused(seeds):
    with pytest.raises(ValueError, match="expected a vector of seeds in 0 .. 2..64 - 1"):
        es.Move(0, [0.0], seeds, [1.0])


BAD = [
    ([(1, 0.5), 7], None, r"entry 1: expected \(seeds, weights\) or a record, got 7; fix"),
    ([(1,)], None, r"entry 0: expected \(seeds, weights\) or a record, got \(1,\); fix"),
    ([(1, 0.5), ([1, 2], [0.5])], None, r"entry 1: expected a weight for each seed, .* of shape \(2,\)"),
    ([(1, 0.5), (-1, 0.5)], None, "entry 1: expected a vector of seeds in 0 .. 2..64 - 1, got int64"),
    ([(1, np.nan)], None, r"entry 0: expected finite weights, got \[nan\]; fix"),
    (
        [(1, 0.5, 0.1)],
        None,
        "entry 0: expected seeds and weights alone, got the rate 0.1; fix: pass optimiser=, the one of the run",
    ),
    ([(1, 0.5)], es.Adam, "entry 0: expected a finite rate beside its seeds and weights, got the rate None; fix"),
    ([(1, 0.5, np.inf)], es.Adam, "entry 0: expected a finite rate beside its seeds and weights, got the rate inf"),
]


@pytest.mark.parametrize(("journal", "rule", "message"), BAD)
def test_a_journal_is_read_to_its_end_before_anything_is_written(journal, rule, message):
    store = a_store()
    before = store.buffer.tobytes()
    with pytest.raises(ValueError, match=message):
        es.replay(store, NOISE, journal, optimiser=rule(store) if rule else None)
    assert store.buffer.tobytes() == before


def test_an_entry_that_is_refused_tells_how_far_it_came():
    store, other = a_store(), a_store()
    with pytest.raises(ValueError, match="below the bound 32") as caught:
        es.replay(store, NOISE, [(1, 0.5), (2, 1000.0)])
    assert caught.value.__notes__ == ["1 of 2 entries were replayed"]
    es.replay(other, NOISE, [(1, 0.5)])
    assert store.buffer.tobytes() == other.buffer.tobytes()


def test_an_interrupt_before_the_first_entry_says_that_none_was_replayed(monkeypatch):
    def check(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.01)

    store = a_store()
    before = store.buffer.tobytes()
    monkeypatch.setattr("flatstore.es.journal.refuse_not_finite", check)
    with pytest.raises(KeyboardInterrupt) as caught:
        es.replay(store, NOISE, [(1, 0.5)])
    assert caught.value.__notes__[-1] == "0 of 1 entries were replayed" and store.buffer.tobytes() == before


def test_an_optimiser_of_another_store_is_refused():
    store = a_store()
    with pytest.raises(ValueError, match="expected an optimiser of this store, got <flatstore.es.optimisers.Adam"):
        es.replay(store, NOISE, [(1, 0.5, 0.1)], optimiser=es.Adam(store.copy()))


# Each process draws seeds of its own, evaluates its own half of the members, and tells the other nothing but both.
PROCESS = """
import json, os, sys
import numpy as np
from tests.es.test_journal import NOISE, a_store, es, fs
rank, hear, tell = map(int, sys.argv[1:])
hear, tell = os.fdopen(hear), os.fdopen(tell, "w")
centre = a_store()
pop = fs.Population.from_tree(centre.tree, 8)
for number in range(1000):
    seeds = fs.seeds((rank, number), 4)
    es.sample(pop, centre, NOISE, seeds, antithetic=True)
    fitness = -np.square(pop["w"] - 1).sum(axis=(1, 2))
    print(json.dumps([seeds.tolist(), fitness.tolist()]), file=tell, flush=True)
    mine, its = [seeds.tolist(), fitness.tolist()], json.loads(hear.readline())
    (s0, f0), (s1, f1) = (mine, its) if rank == 0 else (its, mine)
    ranks = es.centred_ranks(f0 + f1)
    es.update(centre, NOISE, np.array(s0 + s1, np.uint64), (ranks[::2] - ranks[1::2]) / 16)
print(centre.buffer.tobytes().hex())
"""


@pytest.mark.long
def test_two_processes_that_exchange_seeds_and_fitness_hold_the_same_centre_after_1000_generations():
    root = Path(__file__).parent.parent.parent
    (hear0, tell1), (hear1, tell0) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), *map(str, ends)], pass_fds=ends, cwd=root, text=True,
            stdout=subprocess.PIPE, env=os.environ | {"FLATSTORE_NUM_THREADS": "1"},
        )
        for rank, ends in enumerate([(hear0, tell0), (hear1, tell1)])
    ]  # fmt: skip
    for end in (hear0, tell0, hear1, tell1):
        os.close(end)
    one, other = (process.communicate(timeout=100)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert one == other
    centre = a_store()
    centre.buffer[:] = np.frombuffer(bytes.fromhex(one.strip()), np.uint8)
    assert np.abs(centre["w"] - 1).max() < 0.1
