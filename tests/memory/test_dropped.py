"""What is dropped as a signal comes: it is closed, and what the handler raises is raised, not lost."""

import ctypes
import os
import signal
import subprocess
import sys
import weakref
from collections import defaultdict
from functools import partial

import numpy as np
import pytest

import flatstore as fs
from flatstore.threads import helper_threads
from tests.other_processes import segments_there

TREE = {"w": np.zeros(100_000, "f4")}
HAS_SEGMENTS = pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="the system has no segments")


class Struck(Exception):
    pass


def dropped_as_a_signal_comes(things):
    """Empty a list; a signal comes, in C, right before its first item is dropped."""

    def struck(*_):
        raise Struck

    bell = frozenset([signal])
    # What is called here is of C, so that the handler is not called before some Python is: that of a destructor.
    ring = defaultdict(partial(ctypes.CDLL(None)["raise"], signal.SIGUSR1)).__getitem__
    cord = weakref.ref(bell, ring)
    hash(cord)  # which it keeps
    things.append(bell)
    del bell
    before = signal.signal(signal.SIGUSR1, struck)
    try:
        with pytest.raises(Struck):
            things.clear()
            len(things)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert cord() is None


def open_files():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(link) for link in links if os.path.lexists(link))


@pytest.mark.parametrize("made", ["file", "population", "segment", "attached"])
def test_what_a_handler_raises_as_memory_is_dropped_is_not_lost(tmp_path, made):
    path, layout = tmp_path / "x.safetensors", fs.Layout.from_tree(TREE)
    fs.save(path, fs.Store.zeros(layout))
    shared = fs.Store.zeros(layout).share("kept") if made == "attached" else None
    fs.Store.zeros(layout).flat.sum()
    files, there = open_files(), segments_there()
    things = [
        fs.open(path, "r+")
        if made == "file"
        else fs.Population.create(tmp_path / "y", layout, 3)
        if made == "population"
        else fs.Store.zeros(layout).share("one")
        if made == "segment"
        else fs.attach("kept")
    ]
    dropped_as_a_signal_comes(things)
    assert open_files() == files and segments_there() == there
    del shared


@HAS_SEGMENTS
def test_what_a_handler_raises_as_the_last_view_of_a_lend_is_dropped_is_not_lost():
    shared, views = fs.Store.from_tree(TREE).share(), []
    with pytest.raises(fs.LentError, match="expected all lent leaves back"), shared.lend(patience=0) as tree:
        views.append(np.asarray(tree["w"]))
    with pytest.raises(fs.LentError, match="expected a buffer that nobody reads"):
        fs.es.perturb(shared, fs.Normal(0.1), 0)
    dropped_as_a_signal_comes(views)
    fs.es.perturb(shared, fs.Normal(0.1), 0)


AT_THE_END = """
import numpy as np, flatstore as fs
from flatstore import ga
layout = fs.Layout.from_tree({"w": np.zeros(64, "f4")})
kept = [fs.Population.create("members", layout, 3), fs.Store.zeros(layout).share("one"), fs.attach("one")]
kept.append(kept)
np.kept = fs.kept = [fs.open("members", "r+"), fs.Store.zeros(layout).share("other")]
fitness = lambda params, number: params["w"].sum(1)
run = ga.evolve(fs.Population.zeros(layout, 3), fitness, seed=1, mutate=fs.Normal(1), run="run")
next(run)
"""


@HAS_SEGMENTS
def test_what_is_there_as_the_interpreter_ends_ends_without_a_word(tmp_path):
    environment = os.environ | {"FLATSTORE_SHARED_DIR": str(tmp_path)}
    command = [sys.executable, "-c", AT_THE_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["members", "run"]


@pytest.mark.parametrize("kind", [helper_threads.Helper, helper_threads._Lock])
def test_what_could_not_be_made_for_lack_of_memory_is_dropped_without_a_word(kind):
    del [kind.__new__(kind)][0]  # what an exception printed here says is an error of the test
