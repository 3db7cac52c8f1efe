"""Saves that are killed at any instant: a whole file, old or new, and nothing left once another has saved."""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import flatstore as fs

SAVING = """
import sys, numpy as np, flatstore as fs
path, first = sys.argv[1], int(sys.argv[2])
small = fs.Store.from_tree({"w": np.zeros(20_000, "f4"), "b": np.zeros(3, "f4")})
large = fs.Population.from_tree({"w": np.zeros(150_000, "f4"), "b": np.zeros(3, "f4")}, 2, order="member")
for number in range(first, 10**9):
    x = (small, large)[number % 2]
    for path_of_leaf in ("w", "b"):
        x.leaf_view(path_of_leaf)[...] = number
    print("begin", number, flush=True)
    fs.save(path, x)
    print("saved", number, flush=True)
"""


def a_saver(path, first):
    command = [sys.executable, "-c", SAVING, str(path), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def is_whole(path):
    """The number that a file was saved with. All of it has that number, in the form that goes with it."""
    x = fs.load(path)
    (number,) = {*np.unique(x.leaf_view("w")).tolist(), *np.unique(x.leaf_view("b")).tolist()}
    assert type(x) is (fs.Population if number % 2 else fs.Store)
    return int(number)


def fates(folder, kills, seed):
    """Kill savers at random instants, and check what is there after each. How many died in the middle of a save."""
    rng, path, saved, in_the_middle = random.Random(seed), folder / "x.safetensors", -1, 0
    for _ in range(kills):
        with a_saver(path, saved + 1) as process:
            assert process.stdout.readline().startswith("begin")
            time.sleep(rng.uniform(0, 0.02) if rng.random() < 0.7 else rng.uniform(0, 0.2))
            process.kill()
            lines = process.stdout.read().splitlines(keepends=True)
        words = [line.split() for line in lines if line.endswith("\n")]
        begun = max([saved + 1, *(int(number) for word, number in words if word == "begin")])
        finished = max([saved, *(int(number) for word, number in words if word == "saved")])
        in_the_middle += begun > finished
        if path.exists():
            number = is_whole(path)
            assert number in (finished, begun)
            saved = number
        else:
            assert finished == -1
        left = set(os.listdir(folder)) - {path.name}
        assert all(name.startswith(".flatstore-saving-") for name in left) and len(left) <= 1, left
    fs.save(folder / "another", fs.Store.from_tree({"w": np.zeros(2)}))
    assert set(os.listdir(folder)) <= {path.name, "another"}
    return in_the_middle


@pytest.mark.long(but="[4]")
@pytest.mark.parametrize("kills", [4, 50])
def test_a_save_that_is_killed_leaves_a_whole_file_and_the_next_one_sweeps(tmp_path, kills):
    assert fates(tmp_path, kills, seed=kills) > 0


# Hundreds of kills: python -c "import tests.files.test_killed as t; print(t.fates(t.Path(FOLDER), 500, seed=1))"

READING = """
import sys, numpy as np, flatstore as fs
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    x = fs.load(sys.argv[1])
    assert len({*np.unique(x.leaf_view("w")).tolist(), *np.unique(x.leaf_view("b")).tolist()}) == 1
    y = fs.open(sys.argv[1], verify=True)
    assert len({*np.unique(y.leaf_view("w")).tolist(), *np.unique(y.leaf_view("b")).tolist()}) == 1
print("done", flush=True)
"""


def test_a_file_that_two_processes_save_is_whole_to_a_third_that_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    savers = [a_saver(path, first) for first in (0, 1)]
    try:
        for saver in savers:
            while not saver.stdout.readline().startswith("saved"):
                pass
        command = [sys.executable, "-W", "error", "-c", READING, str(path), "100"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.split() == ["ready", "done"], done.stderr
    finally:
        for saver in savers:
            saver.kill()
            saver.communicate()
