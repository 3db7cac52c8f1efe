"""What is dropped as a signal comes, or struck as it opens a file: all is closed, and what is raised is not lost."""

import ctypes
import gc
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
from flatstore import ga
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


def struck_at(step, names):
    """What has a trace raise an exception at the step of that number, in the files of these names."""

    def strike(frame, event, _):
        nonlocal step
        if not frame.f_code.co_filename.endswith(names):
            return None
        step -= 1
        if not step:
            sys.settrace(None)
            raise Struck
        return strike

    return strike


OPENING = "contents.py", "mapping.py", "replacing.py", "generation_log.py", "segments.py", "holds.py", "host.py"


@HAS_SEGMENTS
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files closed as they are dropped
@pytest.mark.parametrize("opens", ["load", "open", "open a population", "seed_of", "save", "attach", "share"])
def test_what_is_struck_at_any_step_as_it_opens_files_leaves_none_open(tmp_path, opens):
    path, store, tracing = tmp_path / "x", fs.Store.from_tree(TREE), sys.gettrace()
    pop = fs.Population.create(tmp_path / "pop", store.layout, 3)
    ga.step(pop, np.arange(3.0), seed=0, mutate=fs.Normal(0.1))
    fs.save(path, store)
    shared = store.share()
    call = {
        "load": lambda: fs.load(path),
        "open": lambda: fs.open(path, "r+"),
        "open a population": lambda: fs.Population.open(tmp_path / "pop"),
        "seed_of": lambda: ga.seed_of(tmp_path / "pop"),
        "save": lambda: fs.save(path, store),
        "attach": lambda: fs.attach(shared.segment),
        "share": store.share,
    }[opens]
    call()
    gc.collect()
    files, there, step, struck = open_files(), segments_there(), 0, 0
    while struck == step:
        step += 1
        try:
            sys.settrace(struck_at(step, OPENING))
            call()
        except Struck:
            struck += 1
        finally:
            sys.settrace(tracing)
        if open_files() != files:
            gc.collect()  # what a frame holds that is in a cycle with its exception
        assert open_files() == files and segments_there() == there, step
    assert step > 15


USING = "access.py", "readers_and_writers.py", "lending.py", "waits.py"
USES = {
    "to_vector": lambda store, other: store.to_vector(),
    "copy": lambda store, other: store.copy(),
    "perturb": lambda store, other: fs.es.perturb(store, fs.Normal(0.25), 0),
    "assign": lambda store, other: store.assign(other),
    "update": lambda store, other: fs.es.update(store, fs.Normal(0.25), [1], [0.5]),
    "Adam": lambda store, other: fs.es.Adam(store).step(other.copy(), 0.1),
    "lend": lambda store, other: score(store),
}
STRIDES = {"Adam": 1 if os.environ.get("FLATSTORE_TESTS") == "all" else 9}
"""Steps from one strike to the next, where there are hundreds, and garbage is collected after each."""


def score(store):
    with store.lend() as tree:
        return tree["w"].sum()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what strikes a callback of JAX
@pytest.mark.parametrize("use", USES)
def test_what_is_struck_at_any_step_as_it_uses_memory_does_not_keep_it(use):
    tracing, step, is_struck, work = sys.gettrace(), 0, True, USES[use]
    other = fs.Store.from_tree({"w": np.ones(10, "f4")})
    while is_struck:
        step, is_struck = step + STRIDES.get(use, 1), False
        store = other.copy()
        memory = weakref.ref(store.memory)
        try:
            sys.settrace(struck_at(step, USING))
            work(store, other)
        except Struck:
            is_struck = True
        finally:
            sys.settrace(tracing)
        del store
        if memory() is not None:
            gc.collect()
        assert memory() is None, step
    assert step > 20


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
