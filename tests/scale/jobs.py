"""What workers make and evaluate; they import this file."""

import os
import signal
import sys
import threading
import time

import numpy as np

import flatstore as fs
from flatstore.scale.replica import Replica


def model():
    return {"b": np.zeros(3, "f4"), "frozen": np.int32(5), "w": np.zeros((6, 5), "f4")}


def centre():
    return fs.Store.from_tree(model())


def score(member, number):
    """A fitness that differs from generation to generation, and that all leaves enter."""
    return -float(np.square(np.float64(member["w"]) - number % 3).sum() + np.float64(member["b"]).sum())


def make():
    return centre(), score


def scores(stacked, number):
    """The same for `es.evolve` in one process."""
    leaves = [np.asarray(stacked[path]) for path in ("w", "b")]
    return [score({"w": w, "b": b}, number) for w, b in zip(*leaves, strict=True)]


def claimed(folder, name):
    """Whether this is the first process to claim a name."""
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_generations(folder, *numbers):
    """Workers die in the middle of evaluations, one in each of these generations."""

    def evaluate(member, number):
        if number in numbers and claimed(folder, f"killed in generation {number}"):
            die()
        return score(member, number)

    return centre(), evaluate


def killed_in(method, seconds, folder, driver):
    """A worker dies after so long in a method of `Replica`, or at its end; and one in generation 2."""
    function = getattr(Replica, method)

    def killed(self, what):
        if not what or not claimed(folder, f"killed in {method}"):
            return function(self, what)
        threading.Timer(seconds, die).start()
        function(self, what)
        die()

    if os.getpid() != driver:
        setattr(Replica, method, killed)
    return large_centre(), killed_in_generations(folder, 2)[1]


def large_centre():
    """One that takes some milliseconds to move, and nearly one to restore."""
    return fs.Store.from_tree(model() | {"large": np.zeros(4_000_000, "f4")})


def flipped(folder, path):
    """One worker's centre has another bit in a leaf from generation 2 on."""
    here = centre()

    def evaluate(member, number):
        if number == 2 and claimed(folder, "flipped"):
            here[path].view("i4")[...] ^= 1
        return score(member, number)

    return here, evaluate


def other_centres():
    """Another centre in each process."""
    return fs.Store.from_tree(model() | {"b": np.full(3, os.getpid() % 1000 / 64, "f4")}), score


def raises(member, number):
    if number == 2:
        raise LookupError(f"not generation {number}")
    return score(member, number)


class Unpicklable(Exception):
    def __init__(self, one, other):
        super().__init__("one argument, and another")


def raises_what_does_not_pickle(member, number):
    raise Unpicklable(1, 2)


def gives_two(member, number):
    return np.ones(2)


def dies(member, number):
    die()


def uneven(folder, member, number):
    """Some are NaN, and one is so slow that the generation is closed without it."""
    value = score(member, number)
    if number == 1 and claimed(folder, "slow"):
        time.sleep(1.0)
    return np.nan if int(abs(value) * 1e6) % 3 == 0 else value


def slowly(folder, member, number):
    """An evaluation that takes a while, and leaves the name of its process."""
    claimed(folder, f"evaluated by {os.getpid()}")
    time.sleep(0.01)
    return score(member, number)


def raises_elsewhere(driver):
    """What a worker needs is not on its node."""
    if os.getpid() != driver:
        raise FileNotFoundError("no data on this node")
    return make()


def made_with(evaluate):
    """The centre with another evaluation."""
    return centre(), evaluate


def island(number):
    """The first population of an island, and its evaluation."""
    pop = fs.Population.zeros(centre().layout, 8)
    fs.es.sample(pop, centre(), fs.Normal(1.0), fs.seeds((1, number), 8))
    pop["frozen"] = np.int32(5)
    return pop, scores


def island_that_dies(folder, number):
    """Island 1 dies in generation 3, in the middle of its second epoch of two."""

    def evaluate(stacked, generation):
        if number == 1 and generation == 3 and claimed(folder, "island died"):
            die()
        return scores(stacked, generation)

    return island(number)[0], evaluate


def uneven_island(members, biases, number):
    """Island 1 has more members than island 0, or more biases."""
    tree = model() | {"b": np.zeros(3 + biases * number, "f4")}
    pop = fs.Population.from_tree(tree, 8 + members * number)
    return pop, lambda stacked, generation: np.arange(8 + members * number)


def island_that_always_dies(number):
    die()


def island_that_raises(error, number):
    """An evaluation that raises an exception."""

    def evaluate(stacked, generation):
        raise error

    return island(number)[0], evaluate


def island_that_raises_once(folder, number):
    """An evaluation raises in generation 3 of an island."""

    def evaluate(stacked, generation):
        if generation == 3 and claimed(folder, "island raised"):
            raise LookupError("not generation 3")
        return scores(stacked, generation)

    return island(number)[0], evaluate


if __name__ == "__main__":
    import ray

    ray.init(address=sys.argv[1], log_to_driver=False)
    run = fs.scale.ray.evolve(
        "tests.scale.jobs:make",
        workers=1,
        run=sys.argv[2],
        seed=3,
        noise=fs.Normal({"b": 0.5, "*": 0.25}),
        members=8,
        rate=0.5,
        generations=5,
    )
    for move in run:
        print(move.number, flush=True)
        time.sleep(0.05)
