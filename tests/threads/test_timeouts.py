"""A timeout of an alarm is an `OSError`, too: it is not taken for one of the system's, and comes out."""

import errno
import os
import signal
import time

import numpy as np
import pytest

import flatstore as fs
from flatstore.files import replacing
from flatstore.kernels import code_cache, compiled, compiler
from flatstore.memory import host


@pytest.fixture
def alarm():
    def strike(number, frame):
        raise TimeoutError("the alarm")

    before = signal.signal(signal.SIGALRM, strike)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def struck(real, error):
    """A function as it is when a signal comes at its first call."""
    raised = []

    def call(*given, **named):
        if raised:
            return real(*given, **named)
        raised.append(error)
        raise error

    return call


def test_an_alarm_ends_the_wait_for_another_process_that_compiles(tmp_path, alarm):
    turn, began = code_cache.Turn(tmp_path / "a.kernel"), time.monotonic()
    turn.take()
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(TimeoutError, match="the alarm"):
            code_cache.Turn(tmp_path / "a.kernel").take()
    finally:
        turn.end()
    assert time.monotonic() - began < 30


STEPS = {
    "memory": (host, "_aligned", lambda path: fs.Store.from_tree({"w": np.zeros(3)})),
    "large memory": (host.mmap.mmap, "madvise", lambda path: fs.Store.from_tree({"w": np.zeros(1 << 20)})),
    "the lock of a save": (replacing.fcntl, "flock", lambda path: fs.save(path, STORE)),
    "the sweep of a save": (replacing.os, "scandir", lambda path: fs.save(path, STORE)),
    "one that is swept": (replacing, "_sweep_one", lambda path: fs.save(path, STORE)),
    "reading machine code": (code_cache.os, "fstat", lambda path: compile_one()),
    "loading machine code": (compiler.pickle, "loads", lambda path: compile_one()),
    "keeping machine code": (compiler._core.serialize, "dumps", lambda path: compile_one(2.0)),
    "writing machine code": (code_cache.tempfile, "mkstemp", lambda path: compile_one(2.0)),
}
STORE = fs.Store.from_tree({"w": np.zeros(3)})


def compile_one(*more):
    @compiled
    def doubled(x):
        return x + x

    return doubled(1), *map(doubled, more)


@pytest.mark.parametrize("step", STEPS)
def test_an_alarm_in_any_step_comes_out(step, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", str(tmp_path))
    compile_one()
    (tmp_path / ".flatstore-saving-0123456789abcdef").touch()
    where, name, call = STEPS[step]
    if isinstance(where, type):
        monkeypatch.setattr(host.mmap, "mmap", type("mmap", (where,), {name: struck(None, TimeoutError("the alarm"))}))
    else:
        monkeypatch.setattr(where, name, struck(getattr(where, name), TimeoutError("the alarm")))
    with pytest.raises(TimeoutError, match="the alarm"):
        call(tmp_path / "a")


@pytest.mark.parametrize(
    "step", [step for step in STEPS if "large" not in step and "loading" not in step and "keeping" not in step]
)
def test_what_the_system_refuses_is_borne_or_said_as_before(step, tmp_path, monkeypatch):
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", str(tmp_path))
    compile_one()
    where, name, call = STEPS[step]
    error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    monkeypatch.setattr(where, name, struck(getattr(where, name), error))
    if step == "memory":
        with pytest.raises(MemoryError, match="bytes of memory, got none"):
            call(tmp_path / "a")
    else:
        call(tmp_path / "a")
