"""Each step of a save fails in turn, once and for ever: the old file or the new one is there, and nothing else.

The method is SQLite's: the point of failure moves by one until a run is clean (https://www.sqlite.org/testing.html).
"""

import errno
import os
from itertools import count

import numpy as np
import pytest

import flatstore as fs

STEPS = ("open", "pwrite", "fsync", "replace", "fchmod", "fchown", "close", "unlink", "stat", "fstat", "scandir")


class Faults:
    """The system, in which the call of number `at` fails; with `for_ever` all of its kind from then on."""

    def __init__(self, monkeypatch, folder, kind, at, for_ever):
        self.kind, self.at, self.for_ever = kind, at, for_ever
        self.calls, self.failed = 0, None
        for name in STEPS:
            monkeypatch.setattr(os, name, self.faulty(name, getattr(os, name)))

    def faulty(self, name, real):
        def call(*args, **keywords):
            self.calls += 1
            hit = self.calls - 1 == self.at or (self.for_ever and self.failed == name)
            if not hit:
                return real(*args, **keywords)
            self.failed = name
            if self.kind == "short":
                return (
                    real(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:]) if name == "pwrite" else real(*args)
                )
            if name == "close":
                real(*args)  # as Linux does: the number is free, whatever the result
            raise OSError(self.kind, os.strerror(self.kind))

        return call


OLD, NEW = ({"w": np.full((300, 3), value, "f4"), "b": np.full(5, value, "f8")} for value in (1, 2))


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC, errno.EINTR, errno.EDQUOT, "short"], ids=str)
@pytest.mark.parametrize("exists", [True, False], ids=["an old file", "no old file"])
def test_whichever_step_fails_the_old_file_or_the_new_one_is_there(tmp_path, kind, for_ever, exists):
    path = tmp_path / "a"
    if exists:
        fs.save(path, fs.Store.from_tree(OLD))
        path.chmod(0o600)
    old = path.read_bytes() if exists else None
    fs.save(tmp_path / "expected", fs.Store.from_tree(NEW))
    new = (tmp_path / "expected").read_bytes()
    seen = set()
    for at in count():
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, tmp_path, kind, at, for_ever)
            try:
                fs.save(path, fs.Store.from_tree(NEW))
                error = None
            except OSError as raised:
                error = raised
        now = path.read_bytes() if path.exists() else None
        assert now == new if error is None else now in (old, new)
        if now == new and error is not None:
            assert "the new file is at" in "".join(error.__notes__)
        assert error is None or kind != "short"
        left = {name for name in os.listdir(tmp_path)} - {"a", "expected"}
        assert not left or faults.failed == "unlink", (at, faults.failed, left)
        fs.save(tmp_path / "expected", fs.Store.from_tree(NEW))  # the next save sweeps
        assert set(os.listdir(tmp_path)) <= {"a", "expected"}
        seen.add(faults.failed)
        if faults.failed is None:
            break
        path.unlink(missing_ok=True)
        if exists:
            path.write_bytes(old)
            path.chmod(0o600)
    assert {"open", "pwrite", "fsync", "replace", "close"} <= seen


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_a_load_whose_reading_fails_is_an_oserror_and_no_store(tmp_path, for_ever):
    fs.save(tmp_path / "a", fs.Store.from_tree(OLD))
    from flatstore.files import contents

    real, os_preadv = contents.FileIO, os.preadv
    for at in count():
        calls = 0

        def step(at=at):
            nonlocal calls
            calls += 1
            if calls - 1 == at or (for_ever and calls > at):
                raise OSError(errno.EIO, "Input/output error")

        class Faulty(real):
            def read(self, size=-1, step=step):
                step()
                return super().read(max(1, size // 2))  # short ones, too

        def preadv(number, buffers, at, step=step):
            step()
            return os_preadv(number, [buffers[0][: max(1, len(buffers[0]) // 2)]], at)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(contents, "FileIO", Faulty)
            monkeypatch.setattr(os, "preadv", preadv)
            try:
                store = fs.load(tmp_path / "a")
            except OSError as error:
                assert error.errno == errno.EIO
                continue
        assert store["w"].tobytes() == OLD["w"].tobytes() and calls <= at
        break
    assert at > 6
