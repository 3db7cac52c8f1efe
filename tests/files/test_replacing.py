"""A file is replaced as a whole or not at all, whatever fails or kills the process, and nothing else is left."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

import flatstore as fs
from flatstore.files.replacing import replaced
from tests.conftest import ALL

OLD, NEW = (fs.Store.from_tree({"a": np.full(70_000, x, "f4"), "b": np.full((3, 5), x, "f8")}) for x in (1, 2))


def test_mode_owner_and_group_of_the_old_file_are_kept(tmp_path):
    path = tmp_path / "a"
    fs.save(path, OLD)
    for mode in (0o600, 0o640, 0o444, 0o666):
        path.chmod(mode)
        before = path.stat()
        fs.save(path, NEW)
        after = path.stat()
        assert stat.S_IMODE(after.st_mode) == mode
        assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "a"
    path.touch(0o600)
    with replaced(path) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_new_file_has_the_mode_of_any_new_file_and_the_umask_is_left_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        fs.save(tmp_path / "a", OLD)
        (tmp_path / "plain").touch()
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    link, real = tmp_path / "latest", tmp_path / "there" / "real"
    link.symlink_to(real)
    for store in (OLD, NEW):  # also before what it leads to is there
        fs.save(link, store)
        assert link.is_symlink()
        assert (fs.load(real)["b"] == store["b"]).all()
    assert os.listdir(tmp_path / "there") == ["real"]


def test_names_may_be_as_long_as_names_are(tmp_path):
    fs.save(tmp_path / ("x" * 255), OLD)
    assert os.listdir(tmp_path) == ["x" * 255]


SAVING = """
import sys
import numpy as np, flatstore as fs
stores = [fs.Store.from_tree({"a": np.full(300_000, x, "f4"), "b": np.full((3, 5), x, "f8")}) for x in (1, 2)]
print("begun", flush=True)
while True:
    for store in stores:
        fs.save(sys.argv[1], store)
"""


def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one_and_the_next_one_removes_the_rest(tmp_path):
    path, seen = tmp_path / "a.safetensors", []
    fs.save(path, fs.Store.from_tree({"a": np.full(300_000, 1, "f4"), "b": np.full((3, 5), 1, "f8")}))
    for i in range(200 if ALL else 12):
        with subprocess.Popen([sys.executable, "-c", SAVING, path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.002 + 0.0007 * (i % 40))
            process.send_signal(signal.SIGKILL)
        found = fs.load(path)
        assert len({*np.unique(found["a"]), *np.unique(found["b"])}) == 1
        seen.append(len(os.listdir(tmp_path)))
        assert seen[-1] <= 2
    assert max(seen) == 2, "no save was struck"
    fs.save(path, OLD)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_another_process_is_saving_is_not_swept_away(tmp_path):
    with replaced(tmp_path / "a") as file:
        file.write(b"first")
        with replaced(tmp_path / "a") as other:
            other.write(b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


class Fault:
    """Fails the k-th call of any of the functions that write."""

    def __init__(self, monkeypatch, k, kind):
        self.left, self.kind = k, kind
        for owner, name in ((os, "open"), (os, "fsync"), (os, "replace"), (os, "chmod"), (os, "stat")):
            monkeypatch.setattr(owner, name, self.failing(getattr(owner, name)))

    def failing(self, real):
        def call(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                raise OSError(self.kind, os.strerror(self.kind))
            return real(*arguments, **keywords)

        return call


@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC])
def test_whichever_step_fails_the_file_is_the_old_one_or_the_new_one_and_no_other_is_left(tmp_path, monkeypatch, kind):
    path, failed = tmp_path / "a", 0
    fs.save(path, OLD)
    old = path.read_bytes()
    fs.save(path, NEW)
    new = path.read_bytes()
    for k in range(1, 100):
        path.write_bytes(old)
        with monkeypatch.context() as patch:
            Fault(patch, k, kind)
            try:
                fs.save(path, NEW)
                whole = True
            except OSError:
                whole = False
        found = path.read_bytes()
        assert found == new if whole else found in (old, new)
        assert os.listdir(tmp_path) == ["a"]
        if whole:
            break
        failed += 1
    assert failed > 5
    assert whole


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_file_that_is_written_in_parts_is_written_whole(tmp_path, monkeypatch, step):
    calls = []

    class InParts(FileIO):
        def __init__(self, name, mode, buffering, opener):
            super().__init__(name, mode, opener=opener)

        def write(self, data):
            calls.append(len(data))
            return super().write(data[:step])

    store = OLD if step == 1000 else fs.Store.from_tree({"a": np.arange(9.0)})
    module = sys.modules["flatstore.files.replacing"]
    monkeypatch.setattr(module, "open", InParts, raising=False)
    fs.save(tmp_path / "a", store)
    monkeypatch.undo()
    assert len(calls) > 80
    assert fs.load(tmp_path / "a").buffer.tobytes() == store.buffer.tobytes()


def test_an_interrupt_after_the_replacement_is_raised_and_the_new_file_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    fs.save(path, OLD)
    real = os.replace

    def replace(*names):
        real(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        fs.save(path, NEW)
    assert (fs.load(path)["b"] == 2).all()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory cannot be reset here")
def test_saving_and_loading_take_no_memory_beside_the_store(tmp_path):
    script = f"""
import numpy as np, flatstore as fs
def memory(what):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(what))
def peak(call):
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    kept = call()
    return memory("VmHWM") - before
pop = fs.Population.zeros(fs.Layout.from_tree({{"a": np.zeros((512, 1024), "f4"), "b": np.zeros(9, "f4")}}), 64)
pop.buffer[:] = 1
store = fs.Store.zeros(fs.Layout.from_tree({{"a": np.zeros((32768, 1024), "f4"), "b": np.zeros(9, "f4")}}))
store.buffer[:] = 1
path = {str(tmp_path / "a")!r}
fs.save(path, fs.Store.from_tree({{"w": np.zeros(5)}})), fs.load(path)
whole, read = peak(lambda: fs.save(path, store)), peak(lambda: fs.load(path))
print(whole < 8, read < 128 + 8, peak(lambda: fs.save(path, pop[3])) < 8)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True True True\n", done.stderr
