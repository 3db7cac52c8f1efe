"""Machine code on disk: never stale, never in the way."""

import logging
import os
import subprocess
import sys
import textwrap
from collections import namedtuple

import numba
import numpy as np
import pytest

from flatstore.kernels import code_cache
from flatstore.kernels.code_cache import cache_folder
from flatstore.kernels.compiler import compiled

SCALE = 3

FACTORY = """
    import numba
    from flatstore.kernels.compiler import compiled
    from shapes import area

    def generation(cross, scale):
        @compiled
        def generate(x):
            if x > 1000:
                raise ValueError("too large")
            return cross(x) * scale + area(x)
        return generate

    @compiled
    def double(x):
        return 2 * x

    @numba.njit
    def square(x):
        return x * x
"""
SHAPES = """
    import numba
    SIDE = 1
    @numba.njit
    def area(x):
        return 0 * x
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of the cache, for this process."""
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def told(caplog):
    """What the kernels tell: a call returns the lines of INFO since the last one."""
    caplog.set_level(logging.DEBUG, "flatstore.kernels")

    def lines(level=logging.INFO):
        found = [record.getMessage() for record in caplog.records if record.levelno == level]
        caplog.clear()
        return found

    code_cache._told.clear()
    lines.records = lambda level: [record for record in caplog.records if record.levelno == level]
    return lines


def triple():
    """A compiled function, new each time: what it finds is what another process would find."""

    @compiled
    def tripled(x):
        return SCALE * x

    return tripled


def write(folder, **modules):
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))


def start(tmp_path, code):
    """Start a script in a process and a file of its own; what is compiled is printed among the rest."""
    header = "import logging, sys\nlogging.basicConfig(level='INFO', format='%(message)s', stream=sys.stdout)\n"
    name = f"script{len(list(tmp_path.glob('script*')))}"  # not one that another process is about to read
    write(tmp_path, **{name: header + textwrap.dedent(code)})
    where = {"FLATSTORE_CACHE_DIR": str(tmp_path / "kept"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(tmp_path / f"{name}.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env={**os.environ, **where}, stdout=pipe, stderr=pipe, text=True)


def result(process):
    """What a script has printed, and how many functions it has compiled."""
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0, error
    told = [line for line in out.splitlines() if line.startswith("compiling")]
    return [line for line in out.splitlines() if line not in told], len(told)


def run(tmp_path, code):
    return result(start(tmp_path, code))


@pytest.mark.long
def test_closures_over_compiled_functions_are_found_in_the_next_process_and_not_mixed_up(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    use = "from factory import *\nf = generation({}, {})\nprint(f(10), f.signatures != [])\n"
    assert run(tmp_path, use.format("double", 1)) == (["20 True"], 1)
    # Another closure of the factory first: Numba would number it like the one on disk.
    both = use.format("square", 7) + use.format("double", 1)
    callers = "@numba.njit\ndef outer(x):\n    return f(x), g(x)\n"
    assert run(tmp_path, both.replace("f =", "g = f =", 1) + callers + "print(outer(10))\n") == (
        ["700 True", "20 True", "(20, 700)"],
        1,
    )
    again = (
        both + "print(double.signatures, square.signatures)\ntry: f(2000)\nexcept ValueError as error: print(error)\n"
    )
    assert run(tmp_path, again) == (["700 True", "20 True", "[] []", "too large"], 0)


@pytest.mark.long
def test_a_function_of_the_script_itself_is_kept_as_part_of_a_closure(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    script = """
        import numba
        from factory import generation
        @numba.njit
        def mine(x):
            return x + {}
        print(generation(mine, 1)(10))
    """
    assert run(tmp_path, script.format(1)) == (["11"], 1)
    assert run(tmp_path, script.format(1)) == (["11"], 0)
    assert run(tmp_path, script.format(2)) == (["12"], 1)


def test_an_edit_of_an_inlined_function_in_another_file_is_compiled(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    script = "from factory import *\nprint(generation(double, 1)(10))\n"
    assert run(tmp_path, script) == (["20"], 1)
    write(tmp_path, shapes=SHAPES.replace("return 0 * x", "return SIDE * x"))
    assert run(tmp_path, script) == (["30"], 1)
    write(tmp_path, shapes=SHAPES.replace("return 0 * x", "return SIDE * x").replace("SIDE = 1", "SIDE = 5  # sides"))
    assert run(tmp_path, script) == (["70"], 1)


def test_two_processes_at_once_both_succeed_and_leave_one_file(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    script = "from factory import *\nprint(generation(double, 1)(10))\n"
    both = [start(tmp_path, script) for _ in range(2)]
    assert [result(process)[0] for process in both] == [["20"], ["20"]]
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".kernel"]


def test_what_is_compiled_is_told_once_and_what_is_loaded_is_not(kept, told):
    assert triple()(2) == 6
    assert told() == ["compiling tripled (int64)"]
    function = triple()
    assert function(2) == 6
    assert told() == []
    assert function(2.5) == 7.5
    assert told() == ["compiling tripled (float64)"]
    assert len(list(kept.iterdir())) == 2


def test_only_the_outermost_function_is_told_and_kept(kept, told):
    inner = triple()

    @compiled
    def outer(x):
        return inner(x) + 1

    assert outer(2) == 7
    assert told() == ["compiling outer (int64)"]
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:20],
        lambda whole: whole[:-1],
        lambda whole: whole[:500] + bytes([whole[500] ^ 1]) + whole[501:],
        lambda whole: b"cos\nsystem\n(S'echo'\ntR.",
    ],
    ids=["empty", "no digest", "truncated", "one bit", "garbage"],
)
def test_a_damaged_file_is_replaced(kept, told, damage):
    triple()(2)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    told()
    assert triple()(2) == 6
    assert told() == ["compiling tripled (int64)"]
    assert triple()(2) == 6
    assert told() == []


def test_a_file_of_another_key_is_not_believed(kept, told):
    global SCALE
    triple()(2)
    (three,) = kept.iterdir()
    SCALE = 4
    try:
        assert triple()(2) == 8
        (four,) = set(kept.iterdir()) - {three}
        four.write_bytes(three.read_bytes())
        told()
        assert triple()(2) == 8
        assert told() == ["compiling tripled (int64)"]
    finally:
        SCALE = 3


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_neither_loaded_nor_written(kept, told):
    triple()(2)
    (file,) = kept.iterdir()
    for other in (file, kept):
        os.chown(other, 12345, -1)
        told()
        assert triple()(2) == 6
        assert told() == ["compiling tripled (int64)"]
        assert other.stat().st_uid == (os.geteuid() if other == file else 12345)


@pytest.mark.skipif(os.name != "posix", reason="the rights of POSIX")
@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_may_write_is_neither_loaded_nor_written_and_said_once(kept, told, which, mode):
    triple()(2)
    (file,) = kept.iterdir()
    written = file.stat().st_mtime_ns
    other = kept if which == "folder" else file
    other.chmod(mode)
    told()
    for _ in range(2):
        assert triple()(2) == 6
    warnings = [record.getMessage() for record in told.records(logging.WARNING)]
    assert warnings == [
        f"machine code is kept in this process only, and compiled anew: others may write {other}; "
        "fix: chmod go-w, or set FLATSTORE_CACHE_DIR to a private folder"
    ]
    assert told() == ["compiling tripled (int64)"] * (2 if which == "folder" else 1)  # a file is replaced
    assert (file.stat().st_mtime_ns == written) == (which == "folder")


@pytest.mark.skipif(os.name != "posix", reason="the links of POSIX")
def test_a_link_in_the_place_of_a_file_is_not_followed(kept, told, tmp_path):
    triple()(2)
    (file,) = kept.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    told()
    assert triple()(2) == 6
    assert told() == ["compiling tripled (int64)"]
    assert not file.is_symlink()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_that_is_a_link_of_another_user_is_left_alone(kept, told, tmp_path, monkeypatch):
    triple()(2)
    link = tmp_path / "link"
    link.symlink_to(kept)
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", str(link))
    told()
    assert triple()(2) == 6
    assert told() == []
    os.chown(link, 12345, -1, follow_symlinks=False)
    assert triple()(2) == 6
    assert told() == ["compiling tripled (int64)"]


def test_four_processes_with_an_empty_cache_compile_once(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    script = """
        from factory import *
        from pathlib import Path
        import sys, time
        Path(sys.argv[0]).with_name(f"ready{time.monotonic_ns()}").touch()
        while len(list(Path(sys.argv[0]).parent.glob("ready*"))) < 4:
            time.sleep(0.01)
        print(generation(double, 1)(10))
    """
    results = [result(process) for process in [start(tmp_path, script) for _ in range(4)]]
    assert [printed for printed, _ in results] == [["20"]] * 4
    assert sum(compiled for _, compiled in results) == 1
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".kernel"]


def test_a_process_that_dies_in_its_turn_does_not_keep_the_others_waiting(tmp_path):
    write(tmp_path, factory=FACTORY, shapes=SHAPES)
    script = """
        import os
        from factory import *
        {}
        print(generation(double, 1)(10))
    """
    dies = "import flatstore.kernels.compiler as compiler; compiler.write = lambda *_: os._exit(3)"
    dying = start(tmp_path, script.format(dies))
    dying.communicate(timeout=100)
    assert dying.returncode == 3
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".turn"]
    assert run(tmp_path, script.format("")) == (["20"], 1)
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".kernel"]


def test_a_process_waits_for_another_only_so_long(kept, told, monkeypatch):
    monkeypatch.setattr(code_cache, "PATIENCE", 0.05)
    triple()(2)
    (file,) = kept.iterdir()
    file.unlink()
    other = code_cache.Turn(file)
    other.take()
    told()
    assert triple()(2) == 6
    assert "another process has compiled for 0.05 s" in told(logging.DEBUG)[0]
    other.end()


def test_a_compilation_that_fails_ends_the_turn(kept):
    @compiled
    def nonsense(x):
        return x.nonsense

    for _ in range(2):
        with pytest.raises(numba.core.errors.TypingError):
            nonsense(2)
        assert list(kept.iterdir()) == []


def test_the_folder_is_private(kept):
    triple()(2)
    assert kept.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("where", ["file/below", "/proc/flatstore"])
def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch, told, where):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", str(tmp_path / where))
    assert triple()(2) == 6
    assert any("in this process only" in line for line in told(logging.DEBUG))


def test_an_empty_variable_keeps_nothing(tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLATSTORE_CACHE_DIR", "")
    assert cache_folder() is None
    assert triple()(2) == triple()(2) == 6
    assert told() == ["compiling tripled (int64)"] * 2
    assert list(tmp_path.iterdir()) == []


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATSTORE_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "flatstore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "flatstore"


def test_what_refers_to_something_unknown_works_and_is_not_kept(kept, told):
    point = namedtuple("point", "x y")

    @compiled
    def moved(x):
        return point(x, 1).y + x

    @compiled
    def first(items):
        return items[0]

    assert moved(1) == 2
    assert first(numba.typed.List([5])) == 5
    assert told() == ["compiling moved (int64)", "compiling first (ListType[int64])"]
    assert not kept.exists()


def test_arrays_are_compiled_for_their_layout(kept, told):
    @compiled
    def total(x):
        return x.sum()

    frozen = np.ones(4)
    frozen.flags.writeable = False
    assert total(np.ones(4)) == total(np.ones(8)[::2]) == total(frozen) == 4
    assert len(told()) == len(list(kept.iterdir())) == 3


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_machine_code_is_not_waited_for_nor_left_open(kept, make):
    triple()(2)
    (file,) = kept.iterdir()
    file.unlink()
    make(file, 0o700)
    before = len(os.listdir("/proc/self/fd"))
    assert code_cache.read(file) is None
    assert triple()(2) == 6
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_that_somebody_has_open_is_not_waited_for(kept):
    kept.mkdir(mode=0o700)
    os.mkfifo(kept / "a.kernel", 0o600)
    number = os.open(kept / "a.kernel", os.O_RDWR)
    try:
        assert code_cache.read(kept / "a.kernel") is None
    finally:
        os.close(number)


def test_a_damaged_file_of_any_size_is_replaced(kept, told):
    triple()(2)
    (file,) = kept.iterdir()
    os.truncate(file, 1 << 42)
    assert triple()(2) == 6
    assert file.stat().st_size < 1 << 20


FORKS = """
import os, signal, sys, threading, time
import llvmlite.binding.ffi
from numba.core.compiler_lock import global_compiler_lock
from flatstore.kernels import compiled

class Late(Exception): pass

forking, struck, main = threading.Event(), threading.Event(), threading.get_ident()
os.register_at_fork(before=forking.set)

def strikes(number, frame):
    struck.set()
    raise Late

def compiles(lock):
    with lock:
        forking.wait()
        places = []
        while len(places) < 20 or len(set(places[-20:])) > 1:  # until the fork waits for this
            time.sleep(0.01)
            frame = sys._current_frames()[main]
            places.append((frame.f_code, frame.f_lasti))
        os.kill(os.getpid(), signal.SIGALRM)
        struck.wait()
        time.sleep(0.1)

signal.signal(signal.SIGALRM, strikes)
for lock in global_compiler_lock, llvmlite.binding.ffi.lib._lock:
    forking.clear()
    struck.clear()
    other = threading.Thread(target=compiles, args=(lock,))
    other.start()
    try:
        if os.fork() == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)  # it may hang
            os._exit(compiled(lambda x: 3 * x)(2) != 6)
    except Late:
        print("raised")
    other.join()
    print(os.waitstatus_to_exitcode(os.wait()[1]), compiled(lambda x: 3 * x)(2))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_what_strikes_a_fork_that_waits_for_a_compilation_is_raised_and_the_child_can_compile():
    run = subprocess.run(
        [sys.executable, "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"FLATSTORE_CACHE_DIR": ""},
    )
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, 2 * ["raised", "0", "6"], ""), run
