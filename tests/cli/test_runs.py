"""Runs on the command line: stopped and gone on with, earlier centres, learning curves from the journals."""

import json
import re
import shutil
import signal
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

import flatstore as fs
from flatstore.cli import main
from tests.cli.test_evolve import flatstore

SHORT = ["--population", "16", "--generations", "60", "--hidden", "4"]


def interrupted(*arguments, after):
    """Start a run, and press Ctrl-C when its journal has some lines: (status, what it says)."""
    folder = arguments[arguments.index("--out") + 1]
    command = [sys.executable, "-m", "flatstore", "evolve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                with open(f"{folder}/journal.jsonl") as file:
                    if len(file.readlines()) >= after:
                        break
            except FileNotFoundError:
                pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    return process.returncode, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    status, _, err = flatstore("evolve", *SHORT, "--out", str(folder))
    assert (status, err) == (0, "")
    return folder


@pytest.mark.long(but="[es]")
@pytest.mark.parametrize("algo", ["es", "ga", "mezo"])
def test_a_run_that_is_interrupted_says_how_it_goes_on_and_comes_to_the_same_champion(tmp_path, algo):
    short = SHORT if algo != "mezo" else SHORT[2:]
    one, other = tmp_path / "one", tmp_path / "an other"
    assert flatstore("evolve", "--algo", algo, *short, "--out", str(one))[0] == 0
    status, err = interrupted("--algo", algo, *short, "--out", str(other), after=5)
    assert status == 130
    assert err.endswith(f"flatstore evolve: interrupted; flatstore evolve --out '{other}' --resume goes on\n")
    assert not (other / "champion.safetensors").exists()
    status, out, err = flatstore("evolve", "--out", str(other), "--resume")
    assert (status, err) == (0, "") and "generations        60\n" in out
    for name in ("champion.safetensors", "journal.jsonl"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    assert matplotlib.image.imread(other / "curve.png").shape[0] > 300
    points = [[json.loads(line) for line in (x / "curve.jsonl").read_text().splitlines() if line] for x in (one, other)]
    assert points[0] == points[1]
    status, out, _ = flatstore("evolve", "--out", str(other), "--resume")  # it is over: the same again
    assert status == 0 and (other / "champion.safetensors").read_bytes() == (one / "champion.safetensors").read_bytes()


def test_a_folder_with_a_run_is_not_begun_again_by_mistake(whole):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    status, out, err = flatstore("evolve", *SHORT, "--out", str(whole))
    assert (status, out) == (2, "")
    assert err.startswith("flatstore evolve: expected a folder without a run as --out, got") and "--resume" in err
    status, _, err = flatstore("evolve", "--algo", "ga", "--seed", "9", "--out", str(whole), "--resume")
    assert status == 2 and "got --algo ga (it has es), --seed 9 (it has 0); fix: leave these out" in err
    assert {path: path.read_bytes() for path in whole.iterdir()} == before


def test_where_there_is_no_run_there_is_nothing_to_go_on_with(tmp_path):
    status, _, err = flatstore("evolve", "--out", str(tmp_path / "none"), "--resume")
    assert status == 2 and "expected --out with a run to go on with, got" in err
    assert err.endswith("fix: leave --resume out to begin\n")
    assert not (tmp_path / "none").exists()


def test_a_folder_whose_run_was_begun_elsewhere_is_neither_begun_nor_gone_on_with(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "command.json").unlink()
    assert main(["evolve", "--out", str(tmp_path / "run")]) == 2
    assert main(["evolve", "--out", str(tmp_path / "run"), "--resume"]) == 2
    begun, resumed = capsys.readouterr().err.splitlines()
    assert "expected a folder without a run as --out" in begun
    assert resumed.endswith("fix: take a copy of the run, or begin by another --out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task": "digits"}', "expected --out with a run to go on with, got 'run' ('algo')"),
        ("[" * 100_000, "expected --out with a run to go on with, got 'run' ("),
        ('"task": "none"', "expected --task digits, cartpole, got 'none' in 'run'"),
        ('"algo": "none"', "expected --algo es, ga, mezo for --task digits, got none"),
        (
            '"population": 18',
            "expected the settings of the run 'run', got others: chunk: 16 in the run, 18 in the call",
        ),
        ("curve.jsonl", "expected a folder to write to, got 'run' (curve.jsonl is a folder)"),
    ],
)
def test_a_folder_that_was_damaged_is_one_line_and_status_2(tmp_path, whole, monkeypatch, capsys, content, message):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if content.startswith('"'):
        content = re.sub(content.split(":")[0] + r": [^,]*", content, (run / "command.json").read_text())
    if content == "curve.jsonl":
        (run / content).unlink()
        (run / content).mkdir()
    else:
        (run / "command.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert main(["evolve", "--out", "run", "--resume"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"flatstore evolve: {message}") and err.count("\n") == 1


def test_a_run_that_another_process_goes_on_with_is_refused(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run")
    from flatstore.recording.journal_file import Journal

    journal = Journal(str(tmp_path / "run" / "journal.jsonl"))
    status, _, err = flatstore("evolve", "--out", str(tmp_path / "run"), "--resume")
    assert status == 2 and "expected a run that nobody goes on with, got" in err
    journal.close()


def test_replay_writes_any_earlier_centre(tmp_path, whole):
    status, out, err = flatstore("replay", str(whole), "--to", "60", "--out", str(tmp_path / "last"))
    assert (status, err) == (0, "") and re.search(r"written .*last: 310 parameters after 60 generations", out)
    last, champion = fs.load(tmp_path / "last"), fs.load(whole / "champion.safetensors")
    assert last.to_vector().tobytes() == champion.to_vector().tobytes()
    assert flatstore("replay", str(whole), "--to", "12")[0] == 0
    expected = fs.es.centre_of(whole, 12)
    assert fs.load(whole / "centre-12.safetensors").to_vector().tobytes() == expected.to_vector().tobytes()
    assert (expected.to_vector() != last.to_vector()).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--to", "61"], "expected a run of at least 61 moves, got 60"),
        (["RUN", "--to", str(2**64)], f"expected a run of at least {2**64} moves, got 60"),
        (["RUN", "--to", "-1"], "expected a number of moves, 0 or more, got -1"),
        (["none", "--to", "1"], "expected the folder of a run, got 'none', which has no settings.json"),
        (["RUN", "--to", "1", "--out", "none/x"], "expected a file in a folder that exists, got 'none/x'"),
    ],
)
def test_what_cannot_be_replayed_is_one_line_and_status_2(tmp_path, whole, arguments, message):
    arguments = [str(whole) if argument == "RUN" else argument for argument in arguments]
    status, out, err = flatstore("replay", *arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"flatstore replay: {message}") and err.count("\n") == 1


def test_plot_draws_the_curves_of_several_runs_from_their_journals(tmp_path, whole):
    pop = fs.Population.from_tree({"w": np.zeros(8, "f4")}, 16)

    def evaluate(stacked, number):
        fitness = -np.square(np.asarray(stacked["w"]) - 1).sum(axis=1)
        fitness[: 16 if number < 0 else 15] = np.nan
        return fitness

    for record in fs.ga.evolve(pop, evaluate, seed=0, mutate=fs.Normal(0.1), run=tmp_path / "mine"):
        if record.number == 5:
            break
    with open(tmp_path / "mine" / "journal.jsonl", "a") as file:
        file.write('{"number":6,"fitne')  # it is being written
    status, out, err = flatstore("plot", str(whole), str(tmp_path / "mine"), "--out", str(tmp_path / "x.png"))
    assert (status, err) == (0, "") and out == f"written  {tmp_path / 'x.png'}\n"
    picture = matplotlib.image.imread(tmp_path / "x.png")[..., :3]
    assert picture.shape[0] > 300
    for colour in ((0x1F, 0x5F, 0xA8), (0xC4, 0x57, 0x2E)):
        assert (abs(picture * 255 - colour).max(axis=-1) < 2).sum() > 100
    status, out, err = flatstore("plot", str(tmp_path))
    assert status == 2 and err.startswith("flatstore plot: expected the folder of a run, got")
