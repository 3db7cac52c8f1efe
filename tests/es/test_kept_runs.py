"""Runs in folders: the same call goes on, to the bit, wherever it stopped; and earlier centres come back."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.recording import run_folder
from flatstore.recording.line_text import line_of
from flatstore.recording.snapshots import save_snapshot

NOISE = fs.Normal({"b": 0, "*": 0.25})
GENERATIONS = 12


def a_store(dtype="f4"):
    return fs.Store.from_tree({"b": np.ones(3, "f4"), "n": np.int32(5), "w": np.zeros((5, 3), dtype)})


def evaluate(stacked, number):
    """A fitness that depends on the generation, of which some is not finite."""
    fitness = -np.square(np.asarray(stacked["w"], "f8") - 1).sum(axis=(1, 2)) / 3 * (1 + number)
    fitness[number % 3] = (math.nan, -math.inf, fitness[2])[number % 3]
    return fitness


def evaluate_one(params, number):
    return -np.square(np.asarray(params["w"], "f8") - 1).sum() / 3 * (1 + number)


def mezo(run=None, steps=GENERATIONS, **other):
    store = a_store()
    arguments = dict(seed=(1, 2), noise=NOISE, rate=0.02, steps=steps, run=run) | other
    return store, None, es.mezo(store, evaluate_one, **arguments)


def evolve(run=None, steps=GENERATIONS, rule=None, **other):
    store = a_store()
    optimiser = rule(store) if rule else None
    arguments = dict(seed=1, noise=NOISE, members=8, rate=0.3, optimiser=optimiser, generations=steps, run=run) | other
    return store, optimiser, es.evolve(store, evaluate, **arguments)


class Own:
    """An optimiser of one's own, whose state nobody else knows."""

    def __init__(self, store):
        self.store, self.speed = store, 0.0

    def step(self, gradient, rate):
        self.speed += rate
        self.store["w"] = self.store["w"] + np.float32(self.speed) * gradient["w"]


RUNS = {
    "mezo": mezo,
    "evolve": evolve,
    "evolve by Adam": lambda *a, **k: evolve(*a, rule=es.Adam, **k),
    "evolve with momentum, at a rate that fades": lambda *a, **k: evolve(
        *a, rule=es.Momentum, **{"rate": lambda n: 0.3 * 0.9**n} | k
    ),
    "evolve by an optimiser of one's own": lambda *a, **k: evolve(*a, rule=Own, **k),
}


@pytest.fixture(params=RUNS)
def begin(request):
    return RUNS[request.param]


@pytest.fixture(params=[0.0, 1e9], ids=["a snapshot each time", "no snapshots"], autouse=True)
def snapshots(request, monkeypatch):
    monkeypatch.setattr(run_folder, "EVERY", request.param)
    monkeypatch.setattr(run_folder, "SHARE", 0)
    return request.param == 0


def state_of(store, optimiser):
    states = [] if optimiser is None or isinstance(optimiser, Own) else list(optimiser.states.values())
    count = getattr(optimiser, "speed", getattr(optimiser, "count", None))
    return store.buffer.tobytes(), [state.buffer.tobytes() for state in states], count


def record_of(move):
    return move.number, move.fitness.tobytes(), move.seeds.tobytes(), move.weights.tobytes(), move.rate


def test_a_run_that_is_left_anywhere_goes_on_by_the_same_call_to_the_bit(tmp_path, begin):
    store, optimiser, moves = begin()
    expected = [(record_of(move), state_of(store, optimiser)) for move in moves]
    assert len(expected) == GENERATIONS
    seen = {}
    for stop in (0, 3, 3, 4, 9, 99):
        store, optimiser, moves = begin(tmp_path / "run")
        for move in moves:
            seen[move.number] = record_of(move), state_of(store, optimiser)
            assert seen[move.number] == expected[move.number]
            if move.number >= stop:
                break
        moves.close()
    assert [seen[number] for number in range(GENERATIONS)] == expected


def test_the_last_record_is_handed_out_again_and_a_run_that_is_over_has_only_that(tmp_path, begin):
    store, optimiser, moves = begin(tmp_path)
    *_, last = moves
    expected = record_of(last), state_of(store, optimiser)
    store, optimiser, moves = begin(tmp_path)
    (again,) = moves
    assert (record_of(again), state_of(store, optimiser)) == expected
    assert len(list(begin(tmp_path, GENERATIONS + 2)[2])) == 3


def test_the_members_of_the_last_record_are_there_as_they_were_evaluated(tmp_path):
    pops = [fs.Population.zeros(a_store().layout, 8) for _ in range(2)]
    for pop, stop in zip(pops, (7, 99), strict=True):
        for move in evolve(tmp_path, members=pop)[2]:
            if move.number >= min(stop, 7):
                break
    assert pops[0].buffer.tobytes() == pops[1].buffer.tobytes()


def test_a_journal_has_a_line_for_each_move_on_the_disk_before_its_record_is_there(tmp_path, begin):
    for move in begin(tmp_path)[2]:
        lines = (tmp_path / "journal.jsonl").read_text().splitlines()
        assert len(lines) == move.number + 1
        assert json.loads(lines[-1])["number"] == move.number
        assert [record_of(x) for x in es.moves(tmp_path)][-1] == record_of(move)


def test_the_newest_two_snapshots_are_kept_and_the_first(tmp_path, snapshots):
    list(evolve(tmp_path, rule=es.Adam)[2])
    names = [name for name in os.listdir(tmp_path) if name.endswith("safetensors")]
    numbers = [0, 10, 11] if snapshots else [0]
    assert sorted(names) == sorted(
        f"snapshot-{n}{part}.safetensors" for n in numbers for part in ("", ".mean", ".square")
    )


def test_an_earlier_centre_comes_from_an_older_snapshot_where_the_newest_is_damaged_or_removed(tmp_path, snapshots):
    list(evolve(tmp_path, rule=es.Adam)[2])
    expected = es.centre_of(tmp_path, GENERATIONS).to_vector()
    if not snapshots:
        return
    (tmp_path / "snapshot-11.mean.safetensors").unlink()  # as by the process that goes on with the run
    assert es.centre_of(tmp_path, GENERATIONS).to_vector().tobytes() == expected.tobytes()
    path = tmp_path / "snapshot-10.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert es.centre_of(tmp_path, GENERATIONS).to_vector().tobytes() == expected.tobytes()
    (tmp_path / "snapshot-0.safetensors").unlink()
    with pytest.raises(ValueError, match="expected a snapshot in the run .*, got none; fix"):
        es.centre_of(tmp_path, GENERATIONS)


@pytest.mark.parametrize("begin", [run for run in RUNS if "own" not in run], indirect=True)
def test_any_earlier_centre_comes_back_to_the_bit(tmp_path, begin):
    store, _, moves = begin(tmp_path)
    centres = [store.to_vector(), *(store.to_vector() for _ in moves)]
    for number, centre in enumerate(centres):
        found = es.centre_of(tmp_path, number)
        assert found.to_vector().tobytes() == centre.tobytes()
        assert list(found) == list(store)
    with pytest.raises(ValueError, match="expected a run of at least 13 moves, got 12 in"):
        es.centre_of(tmp_path, 13)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"expected a number of moves, 0 or more, got {wrong}; fix"):
            es.centre_of(tmp_path, wrong)


def test_earlier_centres_of_an_optimiser_of_ones_own_come_by_a_replay_of_its_moves(tmp_path):
    store, _, moves = evolve(tmp_path, rule=Own)
    list(moves)
    with pytest.raises(ValueError, match="expected a noise and an optimiser of this package .* fix: load snapshot-0"):
        es.centre_of(tmp_path, 3)
    centre = fs.load(tmp_path / "snapshot-0.safetensors")
    es.replay(centre, NOISE, es.moves(tmp_path), optimiser=Own(centre))
    assert centre.to_vector().tobytes() == store.to_vector().tobytes()


def test_a_journal_that_was_cut_off_leaves_no_snapshot_of_what_came_after(tmp_path, snapshots):
    list(evolve(tmp_path)[2])
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:5]))
    moves = evolve(tmp_path)[2]
    assert next(moves).number == 4  # what comes now may be evaluated to others
    moves.close()
    assert sorted(path.name for path in tmp_path.glob("snapshot-*")) == ["snapshot-0.safetensors"]


def test_a_damaged_snapshot_takes_longer_and_leads_to_the_same(tmp_path, snapshots):
    for move in evolve(tmp_path, rule=es.Adam)[2]:
        if move.number == 8:
            break
    expected, optimiser, moves = evolve(rule=es.Adam)
    list(moves)
    if snapshots:
        path = tmp_path / "snapshot-8.mean.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    store, _, moves = evolve(tmp_path, rule=es.Adam)
    list(moves)
    assert store.buffer.tobytes() == expected.buffer.tobytes()
    if snapshots:
        (tmp_path / "snapshot-11.square.safetensors").unlink()
        store, _, moves = evolve(tmp_path, rule=es.Adam)
        list(moves)
        assert store.buffer.tobytes() == expected.buffer.tobytes()
    for path in tmp_path.glob("snapshot-*"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        evolve(tmp_path, rule=es.Adam)


DIFFERENT = {
    "seed": (dict(seed=3), r"seed: \[1\] in the run, \[3\] in the call"),
    "noise": (dict(noise=fs.Normal(0.5)), "noise.scale: .* in the run, 0.5 in the call"),
    "members": (dict(members=6), "members: 8 in the run, 6 in the call"),
    "rate": (dict(rate=0.1), "rate: 0.3 in the run, 0.1 in the call"),
    "optimiser": (dict(rule=es.Adam), "optimiser: None in the run, {'kind': 'Adam'.* in the call"),
    "shape": (dict(shape=np.sign), "shape: 'centred_ranks' in the run, 'numpy.sign' in the call"),
    "chunk": (dict(chunk=16), "chunk: None in the run, 16 in the call"),
    "two": (dict(seed=3, rate=0.1), "rate: .*; seed: .* in the call; fix: call it as the run was begun"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_settings_that_differ_are_an_error_that_names_each(tmp_path, name):
    other, message = DIFFERENT[name]
    list(evolve(tmp_path, 3)[2])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"expected the settings of the run .*, got others: {message}"):
        evolve(tmp_path, **other)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    list(evolve(tmp_path, 4)[2])  # it is free


def test_other_leaves_another_algorithm_and_fewer_generations_are_errors(tmp_path):
    list(evolve(tmp_path, 5)[2])
    other = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    with pytest.raises(ValueError, match="layout: '.*' in the run, '.*' in the call"):
        es.evolve(other, evaluate, seed=1, noise=fs.Normal(0.2), members=8, rate=0.3, run=tmp_path)
    with pytest.raises(ValueError, match="algorithm: 'es.evolve' in the run, 'es.mezo' in the call"):
        mezo(tmp_path)
    with pytest.raises(ValueError, match=r"expected at least the 5 generations that the run has, got 4; .*centre_of"):
        evolve(tmp_path, 4)
    list(evolve(tmp_path, 6)[2])


def test_a_record_to_resume_from_and_a_folder_are_one_too_many(tmp_path, begin):
    with pytest.raises(ValueError, match="expected run= or resume=, got both; fix: leave resume= out"):
        begin(tmp_path / "run", resume=3)
    assert not (tmp_path / "run").exists()


def test_two_loops_on_one_folder_are_refused_until_one_is_closed(tmp_path):
    _, _, moves = evolve(tmp_path)
    next(moves)
    with pytest.raises(BlockingIOError, match=r"expected a run that nobody goes on with, got .*; fix: wait until"):
        evolve(tmp_path)
    moves.close()
    _, _, moves = evolve(tmp_path)
    del moves  # though it was never begun
    list(evolve(tmp_path)[2])


def test_after_an_error_the_folder_is_free_while_the_error_is_handled(tmp_path):
    def fails(stacked, number):
        if number == 4:
            raise KeyError("four")
        return evaluate(stacked, number)

    store = a_store()
    arguments = dict(seed=1, noise=NOISE, members=8, rate=0.3, generations=GENERATIONS, run=tmp_path)
    try:
        list(es.evolve(store, fails, **arguments))
    except KeyError as error:
        (note,) = error.__notes__
        assert note == f"the centre is as generation 4 found it; fix: evolve(..., run={str(tmp_path)!r}) goes on"
        list(es.evolve(store, evaluate, **arguments))
    expected, _, moves = evolve()
    list(moves)
    assert store.buffer.tobytes() == expected.buffer.tobytes()


def test_a_run_whose_seed_is_an_array_of_jax_goes_on_to_the_bit(tmp_path, begin):
    expected, rule, moves = begin()
    list(moves)
    seed = jnp.array((1, 2) if begin is mezo else 1)
    list(begin(tmp_path, 2, seed=seed)[2])
    store, found, moves = begin(tmp_path, seed=seed)
    list(moves)
    assert state_of(store, found) == state_of(expected, rule)
    assert len(list(es.moves(tmp_path))) == GENERATIONS
    with pytest.raises(ValueError, match=r"got others: seed: \[.*\] in the run, \[3\] in the call; fix"):
        begin(tmp_path, seed=jnp.array(3))


@pytest.mark.parametrize("kept", [True, False])
def test_fitness_whose_differences_are_too_large_is_an_error_and_not_in_the_journal(tmp_path, kept):
    run = tmp_path if kept else None
    far = dict(mezo=lambda params, n: next(sides), evolve=lambda stacked, n: np.tile([1e308, -1e308], 4))
    sides, store = iter([1e308, -1e308]), a_store()
    before = store.buffer.tobytes()
    for moves in (
        es.mezo(store, far["mezo"], seed=1, noise=NOISE, rate=1.0, run=run and run / "mezo"),
        es.evolve(
            store, far["evolve"], seed=1, noise=NOISE, members=8, rate=1.0, shape=np.copy, run=run and run / "evolve"
        ),
    ):
        with pytest.raises(ValueError, match=r"expected finite weights, got \[inf.*\]; fix: pass finite ones"):
            next(moves)
    assert store.buffer.tobytes() == before
    assert all(path.read_bytes() == b"" for path in tmp_path.glob("*/journal.jsonl"))


def test_a_move_that_is_refused_is_not_in_the_journal(tmp_path):
    store = a_store()
    moves = es.evolve(store, evaluate, seed=1, noise=NOISE, members=8, rate=1e6, run=tmp_path)
    with pytest.raises(ValueError, match="below the bound"):
        next(moves)
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected the settings of a run, got other JSON in"),
        ("[]", "expected the settings of a run in format 1, got others in"),
        ('{"format": 2}', "expected the settings of a run in format 1, got others in"),
        ("[" * 100_000, "expected the settings of a run, got other JSON in"),
        (None, "expected settings.json beside the journal of the run"),
    ],
)
def test_settings_that_are_damaged_or_gone_are_an_error(tmp_path, content, message):
    list(evolve(tmp_path, 3)[2])
    path = tmp_path / "settings.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=message):
        evolve(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"fitness": [0.0] * 7},
        {"fitness": [10**400] * 8},
        {"weights": [0.1] * 3},
        {"weights": [10**400] * 4},
        {"missing": [8]},
    ],
)
def test_a_journal_from_elsewhere_is_checked(tmp_path, change):
    moves = list(evolve(tmp_path, 2)[2])
    entry = {"number": 2, "fitness": [0.0] * 8, "weights": moves[-1].weights.tolist(), "rate": None} | change
    with open(tmp_path / "journal.jsonl", "ab") as journal:
        journal.write(line_of(entry))
    for read in (
        lambda: list(es.moves(tmp_path)),
        lambda: es.centre_of(tmp_path, 3),
        lambda: list(evolve(tmp_path)[2]),
    ):
        with pytest.raises(ValueError, match="expected a move in entry 2 of the run .*; fix"):
            read()


def test_members_that_settings_from_elsewhere_claim_take_no_memory(tmp_path):
    list(evolve(tmp_path, 2)[2])
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"members": 10**18}))
    with pytest.raises(ValueError, match="expected a move in entry 0 of the run"):
        list(es.moves(tmp_path))


@pytest.mark.parametrize("count", ["3", -1, 2**63, None, True])
def test_the_count_of_an_optimiser_in_a_snapshot_from_elsewhere_is_checked(tmp_path, count):
    store, optimiser, moves = evolve(tmp_path, 1, rule=es.Adam)
    save_snapshot(str(tmp_path), 0, {"": store, **optimiser.states}, count)
    list(moves)
    for read in (lambda: es.centre_of(tmp_path, 1), lambda: list(evolve(tmp_path, rule=es.Adam)[2])):
        with pytest.raises(ValueError, match="expected the optimiser's count in a snapshot, got .*; fix"):
            read()


def test_what_is_no_folder_of_a_run_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder as run, or nothing yet, got a file"):
        evolve(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="expected a folder as run, or nothing yet, got a file"):
        evolve(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="expected the folder of a run, got .*, which has no settings.json"):
        es.moves(tmp_path)
    with pytest.raises(ValueError, match="expected the folder of a run, got .*, which has no settings.json"):
        es.centre_of(tmp_path, 0)
