"""A run's folder: how it begins, when snapshots are due, and what each step that fails leaves.

The method is SQLite's: the point of failure moves by one until a run is clean (https://www.sqlite.org/testing.html).
"""

import errno
import json
import os
import threading
from itertools import count

import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.recording import run_folder
from flatstore.recording.run_folder import RunFolder, run_entries, settings_of
from flatstore.recording.snapshots import snapshot_note

SETTINGS = {"algorithm": "none", "seed": [1]}


def a_store(value=0):
    return fs.Store.from_tree({"w": np.full(20, value, "f4")})


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(run_folder, "time", clock)
    return clock


def numbers(folder):
    return sorted(int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("snapshot-*"))


def test_a_snapshot_is_due_after_half_a_minute_or_fifty_times_what_the_last_one_took(tmp_path, clock, monkeypatch):
    run, store, seconds = RunFolder(tmp_path / "run", SETTINGS), a_store(), [0.0, 2.0, 0.0, 0.0]
    real = run_folder.save_snapshot

    def slow(*arguments):
        clock.now += seconds.pop(0)
        real(*arguments)

    monkeypatch.setattr(run_folder, "save_snapshot", slow)
    run.begin({"": store})
    saved = []
    for number, now in enumerate([29.0, 31.0, 62.0, 132.0, 134.0, 163.0, 165.0]):
        run.append({"number": number})
        clock.now = now
        run.snapshot({"": store})
        saved.append(number + 1 in numbers(tmp_path / "run"))
    assert saved == [False, True, False, False, True, False, True]
    assert numbers(tmp_path / "run") == [0, 5, 7]
    run.snapshot({"": store})
    assert not seconds
    run.close()


def test_a_run_begins_when_its_settings_are_there_and_not_before(tmp_path):
    run = RunFolder(tmp_path / "a" / "run", SETTINGS)
    assert run.is_new and len(run) == 0
    run.close()
    run = RunFolder(tmp_path / "a" / "run", SETTINGS)
    assert run.is_new  # its process died before it had begun
    run.begin({"": a_store(1)})
    run.close()
    run, store = RunFolder(tmp_path / "a" / "run", SETTINGS), a_store()
    assert not run.is_new and run.restore({"": store}) == (0, None)
    assert (store["w"] == 1).all()
    run.close()
    assert settings_of(tmp_path / "a" / "run").keys() == {"format", "flatstore", *SETTINGS}


def test_other_files_in_the_folder_stay_and_what_killed_saves_left_goes(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".flatstore-saving-0123456789abcdef").write_text("left over")
    (tmp_path / "snapshot-0.mean.safetensors").write_text("of a run that was killed as it began")
    run = RunFolder(tmp_path, SETTINGS)
    run.begin({"": a_store()})
    run.close()
    assert sorted(os.listdir(tmp_path)) == ["journal.jsonl", "notes.txt", "settings.json", "snapshot-0.safetensors"]


@pytest.mark.parametrize("name", ["snapshot-0.safetensors", "snapshot-500.safetensors", "snapshot-3.mean.safetensors"])
def test_a_folder_with_snapshots_of_others_is_refused_and_they_stay(tmp_path, name):
    fs.save(tmp_path / name, a_store(1))
    content = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=f"expected a folder for a new run, got .*, which has '{name}'.*fix: "):
        RunFolder(tmp_path, SETTINGS)
    assert (tmp_path / name).read_bytes() == content
    os.unlink(tmp_path / name)
    run = RunFolder(tmp_path, SETTINGS)  # nobody holds it
    run.begin({"": a_store()})
    run.close()


def test_a_note_of_a_snapshot_nested_without_end_is_an_error_that_names_the_file(tmp_path):
    fs.save(tmp_path / "snapshot-0.safetensors", a_store(), metadata={"snapshot": "[" * 100_000})
    with pytest.raises(ValueError, match="expected snapshot 0 of a run, got another file at .*snapshot-0.* fix"):
        snapshot_note(str(tmp_path), 0)


def test_a_file_of_the_name_of_a_snapshot_that_is_none_is_an_error(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.begin({"": a_store()})
    fs.save(tmp_path / "snapshot-0.safetensors", a_store(1))
    with pytest.raises(ValueError, match="expected snapshot 0 of a run, got another file at .*; fix: take it away"):
        run.restore({"": a_store()})
    os.unlink(tmp_path / "snapshot-0.safetensors")
    with pytest.raises(ValueError, match="expected a snapshot in the run .*, got none; fix: take a copy"):
        run.restore({"": a_store()})
    run.close()


STEPS = ("open", "pwrite", "fsync", "fdatasync", "ftruncate", "replace", "unlink", "listdir", "fstat")


class Faults:
    """The system, in which the call of number `at` fails; with `for_ever` all of its kind from then on."""

    def __init__(self, monkeypatch, kind, at, for_ever):
        self.kind, self.at, self.for_ever = kind, at, for_ever
        self.calls, self.failed = 0, None
        for name in STEPS:
            monkeypatch.setattr(os, name, self.faulty(name, getattr(os, name)))
        monkeypatch.setattr("flatstore.recording.journal_file._flush", lambda number: os.fdatasync(number))

    def faulty(self, name, real):
        def call(*args, **keywords):
            self.calls += 1
            if self.calls - 1 != self.at and not (self.for_ever and self.failed == name):
                return real(*args, **keywords)
            self.failed = name
            if self.kind == "short":
                is_write = name == "pwrite"
                return real(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:]) if is_write else real(*args)
            raise OSError(self.kind, os.strerror(self.kind))

        return call


def evaluate(stacked, number):
    return -np.square(np.asarray(stacked["w"]) - 1).sum(axis=1)


def evolve(run, seen):
    centre = a_store()
    moves = es.evolve(
        centre, evaluate, seed=1, noise=fs.Normal(0.2), members=4, rate=0.1, optimiser=es.Momentum(centre),
        generations=4, run=run,
    )  # fmt: skip
    for move in moves:
        seen.append((move.number, move.fitness.tobytes(), centre.buffer.tobytes()))


@pytest.mark.long(but="[28-")
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC, errno.EINTR, "short"], ids=str)
def test_whichever_step_fails_the_run_goes_on_by_the_same_call_to_the_bit(tmp_path, kind, for_ever, monkeypatch):
    monkeypatch.setattr(run_folder, "EVERY", 0)
    monkeypatch.setattr(run_folder, "SHARE", 0)
    expected, failed = [], set()
    evolve(tmp_path / "clean", expected)
    for at in count():
        seen, folder = [], tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, kind, at, for_ever)
            try:
                evolve(folder, seen)
            except OSError as error:
                assert error.errno == kind
            else:
                assert seen == expected
        failed.add(faults.failed)
        handed_out = seen[-1][0] if seen else -1
        evolve(folder, seen)
        assert seen == expected[: handed_out + 1] + expected[max(0, seen[handed_out + 1][0]) :]
        assert seen[handed_out + 1][0] in (max(0, handed_out), handed_out + 1)  # at most the one in flight was lost
        assert (folder / "journal.jsonl").read_bytes() == (tmp_path / "clean" / "journal.jsonl").read_bytes()
        assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "clean").iterdir()}
        if faults.failed is None:
            break
    assert failed >= {None, "open", "pwrite", "fsync", "fdatasync", "replace", "unlink"}


def test_entries_can_be_read_while_the_run_goes_on(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.begin({"": a_store()})
    for number in range(3):
        run.append({"number": number, "fitness": [0.5]})
        assert [entry["number"] for entry in run_entries(tmp_path)] == list(range(number + 1))
    run.take_back()
    assert len(list(run_entries(tmp_path))) == 2
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])["fitness"] == [0.5]
    run.close()


def test_what_a_handler_raises_as_a_snapshot_is_read_is_not_taken_for_damage(tmp_path, monkeypatch):
    run, store, real = RunFolder(tmp_path / "run", SETTINGS), a_store(), run_folder.read_snapshot
    run.begin({"": store})
    run_folder.save_snapshot(run.path, 1, {"": a_store(1)}, None)
    for number in range(2):
        run.append({"number": number})
    errors = [ValueError("struck")]

    def struck(*arguments):
        real(*arguments)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(run_folder, "read_snapshot", struck)
    with run, pytest.raises(ValueError, match="struck"):
        run.restore({"": store})
    assert not errors


def test_of_those_that_begin_a_run_at_once_one_goes_on_and_the_others_are_told_that_it_is_in_use(tmp_path, monkeypatch):
    makes, at_once, told = run_folder.os.makedirs, threading.Barrier(4, timeout=60), []

    def made_at_once(*arguments, **named):
        at_once.wait()  # all have found that there is no folder yet
        makes(*arguments, **named)

    def begin():
        try:
            told.append(RunFolder(tmp_path / "run", SETTINGS))
        except BlockingIOError as error:
            told.append(str(error))

    monkeypatch.setattr(run_folder.os, "makedirs", made_at_once)
    beginners = [threading.Thread(target=begin) for _ in range(4)]
    for beginner in beginners:
        beginner.start()
    for beginner in beginners:
        beginner.join()
    (run,) = [found for found in told if isinstance(found, RunFolder)]
    run.close()
    assert len(told) == 4 and sum("which is in use; fix: wait" in str(found) for found in told) == 3
