"""Functions of one member, and a storm of rounds in which their workers are killed; workers import this file.

python -m tests.evaluation.of_members fork 4 1000 50    # how workers start, how many, rounds, one killed in each
"""

import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np

import flatstore as fs
from flatstore.evaluation import scorer


def score(member, number):
    """The negative distance to threes."""
    return -float(np.square(np.float64(member["w"]) - 3).sum())


def slow(member, number):
    time.sleep(0.01)
    return score(member, number)


def late(member, number):
    os.write(1, b"begun\n")  # at once: another worker may do so, too
    time.sleep(1000)


def raises(member, number):
    if number == 2:
        raise LookupError(f"not member {member['w'][0]}")
    return score(member, number)


class Unpicklable(Exception):
    def __init__(self, one, other):
        super().__init__("one argument, and another")


def raises_what_does_not_pickle(member, number):
    raise Unpicklable(1, 2)


def leaves(member, number):
    sys.exit(3)


def dies_of_sevens(member, number):
    if member["w"][0] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def dies_once(member, number):
    """Die in the middle of each member's first evaluation, but for those of odd numbers."""
    mark = os.path.join(os.environ["MARKS"], f"{number}-{int(member['w'][0])}")
    if int(member["w"][0]) % 2 == 0 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(member["w"][0])


def writes(member, number):
    member["w"][:] = 0


def assigns(member, number):
    member["w"] = np.zeros(8, "f4")


def gives(member, number):
    values = [
        np.ones(2),
        "1",
        None,
        1j,
        2**60 + 1,
        np.ma.masked_array([1.0], [True])[0],
        np.float32(2),
        True,
        np.int8(5),
    ]
    return values[number]


def nan(member, number):
    return np.nan


def whole(member, number):
    """What a member holds everywhere; an error if it is torn."""
    value = float(member["b"][0])
    assert (member["b"] == value).all() and (member["w"] == value).all(), "torn"
    return value


def storm(start, workers, rounds, every, size=24):
    """Evaluate a population that changes in each round, while a worker is killed every so often: how many were.

    Each fitness must be that of its member in its round.
    """
    rng = np.random.default_rng(rounds)
    tree = {"b": np.zeros(3, "f4"), "w": np.zeros(2_000, "f4")}
    pop = fs.Population.from_tree(tree, size).share()
    score_of = scorer(pop, whole, None, fs.Workers(workers, start))
    killed = 0
    for number in range(rounds):
        values = np.arange(size, dtype="f4") + number * size
        pop.assign(np.repeat(values[:, None], 2_003, axis=1))
        timer = None
        if number % every == every - 1:
            victims = [child.pid for child in multiprocessing.active_children()]
            victim = int(rng.choice(victims))
            timer = threading.Timer(rng.uniform(0, 0.004), os.kill, (victim, signal.SIGKILL))
            timer.start()
            killed += 1
        fitness = score_of(number)
        assert (fitness == values).all(), (number, fitness, values)
        if timer:
            timer.join()
    del score_of
    assert not multiprocessing.active_children()
    return killed


if __name__ == "__main__":
    started = time.monotonic()
    killed = storm(sys.argv[1], *map(int, sys.argv[2:]))
    print(f"{killed} workers killed in {sys.argv[3]} rounds, {time.monotonic() - started:.0f} s")
