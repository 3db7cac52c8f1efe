"""Populations in files on a system in which one step fails, once or for ever: whole, and gone on with to the bit.

The method is SQLite's: the point of failure moves by one until nothing fails (https://www.sqlite.org/testing.html).
"""

import errno
import fcntl
import mmap
import os
from itertools import count

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.ga import disk_order

SIZE = 12
GENERATIONS = 3
LAYOUT = fs.Layout.from_tree({"b": np.zeros(5, "f4"), "d": np.zeros(90, "f8"), "w": np.zeros((20, 41), "f4")})
OS_STEPS = ("open", "fstat", "posix_fallocate", "pwrite", "fsync", "replace", "unlink", "posix_fadvise", "dup")


class Faults:
    """The system, in which the call of number `at` fails; with `for_ever` all of its kind from then on."""

    def __init__(self, patch, kind, at, for_ever):
        self.kind, self.at, self.for_ever = kind, at, for_ever
        self.calls, self.failed = 0, None
        for module, names in ((os, OS_STEPS), (fcntl, ("flock",)), (mmap, ("mmap",))):
            for name in names:
                patch.setattr(module, name, self.faulty(name, getattr(module, name)))

    def faulty(self, name, real):
        def call(*args, **keywords):
            self.calls += 1
            if self.calls - 1 == self.at or (self.for_ever and self.failed == name):
                self.failed = name
                raise OSError(self.kind, os.strerror(self.kind))
            return real(*args, **keywords)

        return call


def evolve(pop, first):
    for number in range(first, GENERATIONS):
        fitness = np.random.default_rng(number).normal(size=SIZE)
        ga.step(pop, fitness, seed=(7, number), mutate=fs.Normal(0.1))
        yield bytes_of(pop)


def bytes_of(pop):
    return {at: pop[at].tobytes() for at in LAYOUT.by_path}


def opened(path):
    """The population of a file, made if there is none, and the number of its generation."""
    pop = fs.Population.open(path) if path.exists() else fs.Population.create(path, LAYOUT, SIZE)
    return pop, number_of(path)


def number_of(path):
    seed = ga.seed_of(path)
    return 0 if seed is None else seed[1] + 1


@pytest.fixture
def states():
    pop = fs.Population.zeros(LAYOUT, SIZE)
    return [bytes_of(pop), *evolve(pop, 0)]


@pytest.mark.parametrize("reopened", [True, False], ids=["opened again", "the same"])
@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_whichever_step_fails_the_file_has_a_generation_and_goes_on_to_the_bit(
    tmp_path, monkeypatch, states, kind, for_ever, reopened
):
    monkeypatch.setattr(disk_order, "LEAST", 1 << 12)
    monkeypatch.setattr(disk_order, "_is_in_memory", lambda _: False)
    failed = set()
    for at in count():
        (tmp_path / str(at)).mkdir()
        path = tmp_path / str(at) / "p"
        with pytest.MonkeyPatch.context() as patch:
            faults, pop, error = Faults(patch, kind, at, for_ever), None, None
            try:
                pop, number = opened(path)
                for state in evolve(pop, number):
                    number += 1
                    assert state == states[number]
                pop, number = opened(path)
                assert number == GENERATIONS and bytes_of(pop) == states[number]
            except (OSError, ga.UnfinishedError) as raised:
                error = raised if isinstance(raised, OSError) else raised.__cause__
                assert error.errno == kind
                error = raised
        if reopened or pop is None or isinstance(error, ga.UnfinishedError):
            pop = None
            pop, number = opened(path)
        number = number_of(path)  # also if it was over when the step failed
        assert bytes_of(pop) == states[number]
        assert list(evolve(pop, number)) == states[number + 1 :]
        left = {name.name for name in path.parent.iterdir()} - {"p", "p.generation"}
        assert not left or faults.failed == "unlink", (at, left)
        fs.save(path.parent / "other", fs.Store.zeros(LAYOUT))  # which sweeps what could not be removed
        assert {name.name for name in path.parent.iterdir()} == {"p", "p.generation", "other"}, (at, faults.failed)
        failed.add(faults.failed)
        if faults.failed is None:
            break
    assert failed >= {None, "open", "posix_fallocate", "mmap", "replace", "flock", "fstat"}
