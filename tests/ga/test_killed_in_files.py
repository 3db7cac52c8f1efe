"""Generations in a file that are killed at any instant: `Population.open` finishes them, to the bit.

More kills: `python -m tests.ga.test_killed_in_files FOLDER HALF_WAY SEED`, from the root of the repository.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.files.half_way import UNDER_WAY

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


def evolve(path, way, opened=lambda: None):
    pop = fs.Population.open(path)
    last = ga.seed_of(path)
    opened()
    for number in range(0 if last is None else last[1] + 1, GENERATIONS):
        a_generation(pop, way, number)


def killed(path, way, seconds):
    """Evolve in a process that is killed some seconds after its start, unless it has finished: whether it was."""
    started, starts = os.pipe()
    child = os.fork()
    if not child:
        try:
            evolve(path, way, lambda: os.write(starts, b"."))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(starts)
    os.read(started, 1)
    os.close(started)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the process failed"
    return status != 0


def kills_until(folder, way, half_way, seed):
    """Kill a run until so many kills were half-way through a generation, and compare what each left: all the kills."""
    rng, kills, states = random.Random(seed), 0, expected(way)
    path = folder / "members.safetensors"
    log = path.with_name(path.name + ".generation")
    one = time.perf_counter()
    evolve(fs.Population.create(path, LAYOUT, SIZE) and path, way)
    one = (time.perf_counter() - one) / GENERATIONS
    assert bytes_of(fs.open(path)) == states[-1]
    while half_way:
        path.unlink()
        fs.Population.create(path, LAYOUT, SIZE)
        while half_way and killed(path, way, 2 * one * rng.random()):
            kills += 1
            if log.exists() and log.read_bytes()[8:16] == UNDER_WAY:
                half_way -= 1
                with pytest.raises(
                    ValueError, match="expected a whole population, got one whose generation is not over"
                ):
                    fs.load(path)
            pop, last = fs.Population.open(path), ga.seed_of(path)
            assert bytes_of(pop) == (bytes_of(fs.Population.zeros(LAYOUT, SIZE)) if last is None else states[last[1]])
            assert {*os.listdir(folder)} <= {path.name, log.name, log.name + "-new"}
        half_way and evolve(path, way)
        assert not half_way or bytes_of(fs.open(path)) == states[-1]
    return kills


@pytest.mark.long(but="-6]")
@pytest.mark.parametrize("half_way", [6, 15])
@pytest.mark.parametrize("way", WAYS)
def test_a_generation_that_is_killed_is_finished_to_the_bit(tmp_path, way, half_way):
    command = [sys.executable, "-W", "ignore", "-m", "tests.ga.test_killed_in_files", tmp_path, str(half_way), "1", way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    where, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for way in sys.argv[4:] or WAYS:
        (where / way).mkdir(parents=True)
        print(f"{way}: {kills_until(where / way, way, number, seed)} kills, {number} half-way through a generation")
