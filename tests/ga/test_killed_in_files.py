"""Generations in a file that are killed at any instant: `Population.open` finishes them, to the bit.

More kills: `python -m tests.ga.test_killed_in_files FOLDER KILLS SEED`, from the root of the repository.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga

SIZE, GENERATIONS = 48, 12
LAYOUT = fs.Layout.from_tree(
    {
        "b": np.zeros(70, "f4"),
        "d": np.zeros(900, "f8"),
        "h": np.zeros((30, 31), "f2"),
        "n": np.int32(3),
        "w": np.zeros((200, 401), "f4"),
    }
)
WAYS = {
    "noise": dict(mutate=fs.Normal({"b": 0, "*": 0.1}), bounds=ga.Bounds({"w": (-1, 1)}, "reflect")),
    "sparse": dict(mutate=ga.Sparse(fs.Rademacher(0.1), 0.3), crossover=ga.Points(2), elite=5),
    "reset": dict(mutate=ga.Reset(-1, 1, 0.2), crossover=ga.Blend(), select=ga.Truncation(0.5)),
}


def a_generation(pop, way, number):
    fitness = np.random.default_rng(number).normal(size=SIZE)
    ga.step(pop, fitness, seed=(7, number), **WAYS[way])


def expected(way):
    """What each generation has left, in memory."""
    pop, states = fs.Population.zeros(LAYOUT, SIZE), []
    for number in range(GENERATIONS):
        a_generation(pop, way, number)
        states.append(bytes_of(pop))
    return states


def bytes_of(pop):
    return {path: pop[path].tobytes() for path in LAYOUT.by_path}


def evolve(path, way):
    pop = fs.Population.open(path)
    last = ga.seed_of(path)
    for number in range(0 if last is None else last[1] + 1, GENERATIONS):
        a_generation(pop, way, number)


def killed(path, way, seconds):
    """Evolve in a process that is killed after some seconds, unless it has finished: whether it was killed."""
    child = os.fork()
    if not child:
        try:
            evolve(path, way)
            os._exit(0)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the process failed"
    return status != 0


def fates(folder, way, kills, seed):
    """Kill a run so many times, and compare what is left: how many generations were finished after a kill."""
    rng, finished, states = random.Random(seed), 0, expected(way)
    path = folder / "members.safetensors"
    one = time.perf_counter()
    evolve(fs.Population.create(path, LAYOUT, SIZE) and path, way)
    one = (time.perf_counter() - one) / GENERATIONS
    assert bytes_of(fs.open(path)) == states[-1]
    while kills:
        path.unlink()
        fs.Population.create(path, LAYOUT, SIZE)
        while kills and killed(path, way, 2 * one * rng.random()):
            kills -= 1
            with (
                path.with_name(path.name + ".generation").open("rb")
                if ga.seed_of(path)
                else open(os.devnull, "rb") as log
            ):
                half_way = log.read(9)[8:] == b"\x01"
            if half_way:
                finished += 1
                with pytest.raises(
                    ValueError, match="expected a whole population, got one whose generation is not over"
                ):
                    fs.load(path)
            pop, last = fs.Population.open(path), ga.seed_of(path)
            assert bytes_of(pop) == (bytes_of(fs.Population.zeros(LAYOUT, SIZE)) if last is None else states[last[1]])
            assert sorted(os.listdir(folder)) <= [path.name, path.name + ".generation", path.name + ".generation-new"]
        kills and evolve(path, way)
        assert not kills or bytes_of(fs.open(path)) == states[-1]
    return finished


@pytest.mark.long(but="-12]")
@pytest.mark.parametrize("kills", [12, 30])
@pytest.mark.parametrize("way", WAYS)
def test_a_generation_that_is_killed_is_finished_to_the_bit(tmp_path, way, kills):
    command = [sys.executable, "-W", "ignore", "-m", "tests.ga.test_killed_in_files", tmp_path, str(kills), "1", way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"kills, (\d+) of them half-way", done.stdout)[1]) > 0


if __name__ == "__main__":
    where, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for way in sys.argv[4:] or WAYS:
        (where / way).mkdir(parents=True)
        print(f"{way}: {number} kills, {fates(where / way, way, number, seed)} of them half-way through a generation")
