"""`evolve_by`: fitness from elsewhere, members that are missing, and the same runs as those of `evolve`."""

import json
import pickle

import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.recording.line_text import entry_of, line_of

NOISE = fs.Normal(0.3)
RUN = dict(seed=3, noise=NOISE, members=8, rate=2.0, generations=4)


def centre():
    return fs.Store.from_tree({"w": np.zeros(5, "f4")})


def evaluate(stacked, number):
    return -np.square(np.asarray(stacked["w"]) - number).sum(axis=1)


def elsewhere(store):
    """The score of a process that has the centre, too."""

    def score(number, seeds):
        pop = fs.Population.like(store, 2 * len(seeds))
        es.sample(pop, store, NOISE, seeds, antithetic=True)
        return evaluate({"w": pop["w"]}, number)

    return score


@pytest.mark.parametrize("rule", [None, es.Adam, es.Momentum])
def test_it_is_evolve_whoever_evaluates(rule):
    here, there = centre(), centre()
    expected = list(es.evolve(here, evaluate, optimiser=rule and rule(here), **RUN))
    got = list(es.evolve_by(elsewhere(there), there, optimiser=rule and rule(there), **RUN))
    assert here.buffer.tobytes() == there.buffer.tobytes()
    assert [move.entry for move in expected] == [move.entry for move in got]
    assert all(move.missing is None for move in got)


def test_a_run_that_one_began_goes_on_by_the_other(tmp_path):
    one, other, never = centre(), centre(), centre()
    list(es.evolve(one, evaluate, run=tmp_path / "run", **RUN | {"generations": 2}))
    numbers = [move.number for move in es.evolve_by(elsewhere(other), other, run=tmp_path / "run", **RUN)]
    assert numbers == [1, 2, 3]
    list(es.evolve(never, evaluate, **RUN))
    assert other.buffer.tobytes() == never.buffer.tobytes()


def with_holes(store, holes):
    whole = elsewhere(store)

    def score(number, seeds):
        fitness, missing = whole(number, seeds), np.zeros(2 * len(seeds), bool)
        missing[holes] = True
        return fitness, missing

    return score


def test_a_pair_of_which_one_is_missing_does_not_count_and_the_others_share_the_ranks():
    store = centre()
    move = next(es.evolve_by(with_holes(store, [3, 6, 7]), store, **RUN))
    fitness = elsewhere(centre())(0, move.seeds)
    present = [0, 1, 4, 5]
    ranks = es.centred_ranks(fitness[present])
    weights = np.zeros(4)
    weights[[0, 2]] = (ranks[0::2] - ranks[1::2]) / 4 * 2.0
    assert np.array_equal(move.weights, weights)
    assert np.flatnonzero(move.missing).tolist() == [3, 6, 7]
    assert np.isnan(move.fitness[[3, 6, 7]]).all() and np.array_equal(move.fitness[present], fitness[present])
    oracle = centre()
    es.update(oracle, NOISE, move.seeds[[0, 2]], weights[[0, 2]])
    assert abs(store["w"] - oracle["w"]).max() <= 2 * NOISE.step  # other random bits round them


def test_what_is_missing_is_told_from_nan_in_records_folders_and_pickles(tmp_path):
    store = centre()

    def score(number, seeds):
        fitness, missing = with_holes(store, [2])(number, seeds)
        fitness[5] = np.nan
        return fitness, missing

    moves = list(es.evolve_by(score, store, run=tmp_path, **RUN))
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert all(line["missing"] == [2] and line["fitness"][5] == "nan" for line in lines)
    for again in (list(es.moves(tmp_path)), pickle.loads(pickle.dumps(moves))):
        for move, other in zip(moves, again, strict=True):
            assert np.array_equal(move.missing, other.missing) and not other.missing.flags.writeable
            assert np.array_equal(move.fitness, other.fitness, equal_nan=True)
            assert np.isnan(other.fitness).nonzero()[0].tolist() == [2, 5] and other.missing.nonzero()[0] == [2]
    replayed = centre()
    es.replay(replayed, NOISE, es.moves(tmp_path))
    assert replayed.buffer.tobytes() == store.buffer.tobytes() == es.centre_of(tmp_path, 4).buffer.tobytes()


def test_it_is_told_of_a_move_when_that_is_on_the_disk_and_before_the_centre_moves(tmp_path):
    store, seen = centre(), []

    def told(move):
        lines = (tmp_path / "journal.jsonl").read_text().splitlines()
        seen.append((move.number, len(lines), store.buffer.tobytes()))

    for move in es.evolve_by(elsewhere(store), store, run=tmp_path, told=told, **RUN):
        before = es.centre_of(tmp_path, move.number).buffer.tobytes()
        assert seen[-1] == (move.number, move.number + 1, before)


def test_a_move_of_which_others_could_not_be_told_is_not_made(tmp_path):
    store = centre()

    def told(move):
        raise ConnectionError

    with pytest.raises(ConnectionError) as caught:
        next(es.evolve_by(elsewhere(store), store, run=tmp_path, told=told, **RUN))
    assert "the centre is as generation 0 found it" in caught.value.__notes__[-1]
    assert not store["w"].any() and not (tmp_path / "journal.jsonl").read_text()


ALL = np.ones(8, bool)


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (np.zeros(7), r"expected fitness of shape \(8,\), real, got float64\[7\]; fix"),
        (np.full(8, np.nan), "got only NaN; fix"),
        (
            (np.zeros(8), ALL),
            "expected the fitness of both members of a pair, got that of 0 members, no two of one pair; fix: wait",
        ),
        ((np.zeros(8), np.arange(8) % 2 == 0), "got that of 4 members, no two of one pair; fix: wait"),
        ((np.zeros(8), ALL[:7]), r"expected which members are missing, bool of shape \(8,\), got bool of shape \(7,\)"),
        ((np.zeros(8), np.ones(8)), "bool of shape .* got float64 of shape .* fix: return fitness, missing"),
    ],
)
def test_other_fitness_is_refused_before_anything_moves(scored, message):
    store = centre()
    with pytest.raises(ValueError, match=message):
        next(es.evolve_by(lambda number, seeds: scored, store, **RUN))
    assert not store["w"].any()


def test_a_journal_whose_missing_members_are_no_numbers_is_refused(tmp_path):
    store = centre()
    list(es.evolve_by(elsewhere(store), store, run=tmp_path, **RUN | {"generations": 1}))
    journal = tmp_path / "journal.jsonl"
    entry = entry_of(journal.read_bytes())
    for missing in ("all", {"1": 2}, 3, [8], [-1], [0.5], [True], [[1]], None):
        journal.write_bytes(line_of(entry | {"missing": missing}))
        with pytest.raises(ValueError, match="expected a move in entry 0 of the run"):
            list(es.moves(tmp_path))
