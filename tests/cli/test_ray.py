"""`flatstore evolve --workers ray`: the tasks on a cluster, and a run that goes on on another one."""

import os
import re
import signal
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

import flatstore as fs
from flatstore.cli import main
from flatstore.cli.algorithms import made_in_worker
from flatstore.cli.digits import Digits
from flatstore.cli.run_command import recall, remember
from flatstore.cli.task import Settings

pytest.importorskip("ray", reason="ray is not installed")
SHORT = ["--task", "cartpole", "--algo", "es", "--population", "4", "--hidden", "8", "--generations", "3"]


def flatstore(*arguments):
    command = [sys.executable, "-m", "flatstore", "evolve", *arguments]
    environment = os.environ | {"RAY_ADDRESS": "local"}  # a cluster of its own, whatever else runs in this machine
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout, done.stderr


def champion(folder):
    return fs.load(folder / "champion.safetensors").buffer.tobytes()


def test_a_cluster_gives_the_champion_of_local_processes_to_the_bit(tmp_path):
    for name in ("ray", "1"):
        status, out, err = flatstore(*SHORT, "--workers", name, "--out", str(tmp_path / name))
        assert (status, err) == (0, "")
        shown = re.search(r"generation 3  fitness .*  \d+ workers, 0 waiting, 0 lost, 0 late\n", out)
        assert bool(shown) == (name == "ray")
    assert champion(tmp_path / "ray") == champion(tmp_path / "1")


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_on_another_cluster_to_the_same_champion(tmp_path):
    assert flatstore(*SHORT, "--workers", "1", "--out", str(tmp_path / "whole"))[0] == 0
    command = [sys.executable, "-m", "flatstore", "evolve", *SHORT, "--workers", "ray", "--out", str(tmp_path / "cut")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as stopped:
        for line in stopped.stdout:
            if line.startswith("generation 1"):
                break
        os.killpg(stopped.pid, signal.SIGKILL)
    status, _, err = flatstore("--resume", "--workers", "ray:", "--out", str(tmp_path / "cut"))
    assert (status, err) == (0, "") and champion(tmp_path / "whole") == champion(tmp_path / "cut")


def test_a_folder_does_not_say_whose_cluster_to_trust(tmp_path):
    nothing = dict.fromkeys(["task", "algo", *Settings.__dataclass_fields__])
    remember(tmp_path, "digits", "es", Settings(4, 3, 8, 5, "ray:10.0.0.1:6379"))
    with pytest.raises(ValueError, match="expected --workers for the run in .*, which was on a .*; fix: --workers ray"):
        recall(tmp_path, nothing)
    with pytest.raises(ValueError, match=r"got --workers 2 \(it has ray:10.0.0.1:6379\); fix: leave these out"):
        recall(tmp_path, nothing | {"workers": 2})
    for workers in ("ray:10.0.0.1:6379", "ray"):
        assert recall(tmp_path, nothing | {"workers": workers})["workers"] == workers
    remember(tmp_path, "digits", "es", Settings(4, 3, 8, 5, "ray"))
    assert recall(tmp_path, nothing)["workers"] == "ray"


def test_a_cluster_without_cpus_is_refused_before_a_run_is_begun(tmp_path, monkeypatch, capsys):
    ray = Mock(**{"cluster_resources.return_value": {"memory": 1.0}})
    monkeypatch.setattr("flatstore.cli.algorithms.require", lambda *names: ray)
    assert main(["evolve", *SHORT, "--workers", "ray", "--out", str(tmp_path)]) == 2
    assert "expected a cluster with CPUs for --workers ray, got none; fix: add a node" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_interrupted_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flatstore.cli.algorithms.connect", lambda workers: None)
    monkeypatch.setattr("flatstore.scale.ray.evolve", Mock(side_effect=KeyboardInterrupt))
    assert main(["evolve", *SHORT, "--workers", "ray:10.0.0.1:6379", "--out", str(tmp_path)]) == 130
    way = f"flatstore evolve --out {tmp_path} --resume --workers ray:10.0.0.1:6379 goes on\n"
    assert capsys.readouterr().err.endswith(f"flatstore evolve: interrupted; {way}")


def test_a_worker_evaluates_digits_as_this_process_does():
    settings = Settings(population=4, generations=3, hidden=8, seed=5, workers="ray")
    centre, evaluate_one = made_in_worker(Digits, settings)
    pop, task = fs.Population.like(centre, 4), Digits(settings)
    fs.es.sample(pop, centre, fs.Rademacher(0.1), [1, 2], antithetic=True)
    with pop.lend() as stacked:
        expected = task.evaluate(stacked, 2)
    assert np.allclose([evaluate_one(member.copy(), 2) for member in pop], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--workers", "ray", "--algo", "ga"],
            "expected --algo es with --workers ray, got ga; fix",
        ),
        (["--workers", "rays"], "expected a number, or ray[:ADDRESS], got 'rays'; fix: --workers 2"),
        (
            ["--workers", "ray:127.0.0.1:1"],
            "expected a cluster of Ray at '127.0.0.1:1', got [Errno 111]",
        ),
        (["--workers", "ray:nowhere"], "expected a cluster of Ray at 'nowhere', got "),
    ],
)
def test_what_is_wrong_is_said_at_once_and_no_run_is_begun(tmp_path, arguments, message):
    status, _, err = flatstore(*arguments, "--out", str(tmp_path))
    assert status == 2 and message in err
    assert not list(tmp_path.iterdir())
