"""Runs that are killed at any instant: resumed by the same call, they are to the bit the run that was never killed.

More kills: `python -m tests.recording.test_killed_runs FOLDER KILLS SEED`, from the root of the repository.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

GENERATIONS = 300

# A process that has imported everything, and forks one for each run: most of a process's time is its imports.
EVOLVING = """
import json, os, sys, traceback
import numpy as np
import flatstore as fs
from flatstore import es, ga
from flatstore.recording import run_folder

noise = fs.Normal({"b": 0, "*": 0.25})
model = {"b": np.ones(3, "f4"), "w": np.zeros((40, 30), "f4")}


def evaluate(stacked, number):
    fitness = -np.square(np.asarray(stacked["w"]) - 1).sum(axis=(1, 2)) * (1 + number)
    fitness[number % 8] = np.nan
    return fitness


def evaluate_one(params, number):
    return -np.square(np.asarray(params["w"]) - 1).sum()


def evolve(way, folder, generations, every):
    print("ready", flush=True)
    run_folder.EVERY, run_folder.SHARE = every, 0
    x, adam = fs.Store.from_tree(model), None
    if way == "ga":
        x = fs.Population.from_tree(model, 16)
        loop = ga.evolve(x, evaluate, seed=3, mutate=noise, generations=generations, run=folder)
    elif way == "mezo":
        loop = es.mezo(x, evaluate_one, seed=3, noise=noise, rate=0.001, steps=generations, run=folder)
    else:
        adam = es.Adam(x)
        loop = es.evolve(x, evaluate, seed=3, noise=noise, members=16, rate=lambda n: 0.1 * 0.99**n, optimiser=adam,
                         generations=generations, run=folder)
    for record in loop:
        print(record.number, flush=True)
    states = [] if adam is None else [adam.count, *(state.buffer.tobytes().hex() for state in adam.states.values())]
    print("end", x.buffer.tobytes().hex(), *states, flush=True)


def load_machine_code():
    x, pop = fs.Store.from_tree(model), fs.Population.from_tree(model, 16)
    es.sample(pop, x, noise, fs.seeds(0, 8), antithetic=True)
    ga.step(pop, np.arange(16.0), seed=0, mutate=noise)
    with es.perturbed(x, noise, 0):
        pass
    es.update(x, noise, fs.seeds(0, 8), np.ones(8))
    es.Adam(x).step(x.copy(), 0.1)


load_machine_code()  # which takes longer than a run
for command in sys.stdin:
    *arguments, out = json.loads(command)
    child = os.fork()
    if not child:
        with open(out, "w") as sys.stdout:
            try:
                evolve(*arguments)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("over", flush=True)
"""


class Runs:
    """Runs in processes of their own."""

    def __init__(self, process, out):
        self.process, self.out = process, out

    def start(self, way, folder, every):
        """Begin a run, or go on with it, and return its process when that is about to begin."""
        self.out.write_text("")
        command = way, str(folder), GENERATIONS, every, str(self.out)
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        self.wait_for(1)
        return child

    def wait_for(self, lines):
        """Wait until it has said so many lines, or the last one."""
        while (said := self.out.read_text()).count("\n") < lines and "\nend" not in said and "Error" not in said:
            time.sleep(0.0005)

    def lines(self):
        """What it has said until it ended: whole lines."""
        assert self.process.stdout.readline() == "over\n"
        return [line.rstrip() for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]


@contextmanager
def runs(folder):
    command = [sys.executable, "-W", "ignore", "-c", EVOLVING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Runs(process, folder / "out.txt")
        process.stdin.close()


def fates(folder, way, kills, seed):
    """Kill a run so many times, and compare what it comes to. How many of its processes had something to go on from."""
    rng, last, went_on = random.Random(seed), -1, 0
    with runs(folder) as processes:
        processes.start(way, folder / "never killed", 1e9)
        expected = processes.lines()
        assert expected[:-1] == ["ready", *map(str, range(GENERATIONS))], expected[-30:]
        for _ in range(kills):
            child = processes.start(way, folder / "run", rng.choice([0, 0.01, 1e9]))
            processes.wait_for(rng.choice([0, 2, rng.randrange(600 // kills)]))  # many, before, or in the first moves
            time.sleep(rng.choice([0.003, 0.1]) * rng.random())
            with suppress(ProcessLookupError):  # it is over
                os.kill(child, signal.SIGKILL if rng.random() < 0.8 else signal.SIGINT)
            lines = processes.lines()
            assert lines[0] == "ready", lines
            numbers = [int(line) for line in lines[1:] if line.isdigit()]
            if numbers:  # the last one comes again, and that which was on the disk, but not yet handed out
                assert numbers[0] in ({0} if last < 0 else {last, last + 1})
                assert numbers == list(range(numbers[0], numbers[-1] + 1))
                went_on += numbers[0] > 0
                last = numbers[-1]
        processes.start(way, folder / "run", 1e9)
        lines = processes.lines()
    assert lines[-1] == expected[-1], lines[-30:]
    assert int(lines[1]) in ({0} if last < 0 else {last, last + 1})
    assert (folder / "run" / "journal.jsonl").read_bytes() == (folder / "never killed" / "journal.jsonl").read_bytes()
    left = {name for name in os.listdir(folder / "run") if not name.startswith("snapshot-")}
    assert left == {"journal.jsonl", "settings.json"}
    return went_on


@pytest.mark.long(but="-7]")
@pytest.mark.parametrize("kills", [7, 60])
@pytest.mark.parametrize("way", ["es", "ga", "mezo"])
def test_a_run_that_is_killed_at_any_instant_goes_on_to_the_bit(tmp_path, way, kills):
    assert fates(tmp_path, way, kills, seed=kills) > 0


if __name__ == "__main__":
    where, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for way in ("es", "ga", "mezo"):
        (where / way).mkdir(parents=True)
        print(f"{way}: {number} kills, {fates(where / way, way, number, seed)} with something to go on from")
