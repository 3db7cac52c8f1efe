"""Segments: for their owner only, checked by those who attach, removed by their creator, or by the next who shares."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import Memory, segments
from flatstore.store.sharing import Shared, text_of
from tests.example_trees import says, tree
from tests.other_processes import Other, segments_there, until


def path_of(name):
    return f"{segments.folder()}/{segments.prefix()}{name}"


def test_a_segment_is_for_its_owner_only_and_removed_with_the_store():
    shared = fs.Store.from_tree(tree(3)).share("own")
    status = os.stat(path_of("own"))
    assert (status.st_mode & 0o7777, status.st_uid, status.st_nlink) == (0o600, os.geteuid(), 1)
    view = shared["a/w"]
    part = fs.attach("own")
    del shared
    assert "own" not in segments_there()
    assert (view == 3).all() and (part["a/w"] == 3).all()  # what is held stays


def test_the_umask_neither_opens_nor_closes_it():
    before = os.umask(0o777)
    try:
        shared = fs.Store.from_tree(tree(3)).share()
    finally:
        os.umask(before)
    assert (fs.attach(shared.segment)["a/w"] == 3).all()


def test_names_are_checked_and_one_in_use_is_an_error():
    store = fs.Store.from_tree(tree())
    for name in ("", "a/b", "../x", ".hidden", "x" * 101, "a b", 7, b"x"):
        with pytest.raises(ValueError, match="expected a name") as caught:
            store.share(name)
        says(caught)
    for name in ("../x", None):
        with pytest.raises(ValueError, match="expected a name"):
            fs.attach(name)
    first = store.share("taken")
    with pytest.raises(FileExistsError) as caught:
        store.share("taken")
    says(caught, "a name that is free", "'taken'")
    del first
    assert store.share("taken").segment == "taken"
    assert store.share().segment != store.share().segment
    with pytest.raises(FileNotFoundError) as caught:
        fs.attach("taken")
    says(caught, "a segment named 'taken'")


def test_a_name_stays_in_use_while_its_creator_lives_and_is_free_once_that_was_killed():
    with Other() as other:
        assert other("x = fs.Store.from_tree({'w': np.ones(4)}).share('theirs'); x.segment")
        other("y = fs.Store.from_tree({'w': np.ones(4)}).share()")
        with pytest.raises(FileExistsError):
            fs.Store.from_tree(tree()).share("theirs")
        attached = fs.attach("theirs")
        other.kill()
        assert len(segments_there()) == 2
        with pytest.raises(ValueError, match="got one that has ended") as caught:
            fs.attach("theirs")
        says(caught, "a creator of 'theirs' that lives")
        mine = fs.Store.from_tree(tree()).share("theirs")
        assert segments_there() == ["theirs"]
        assert (attached["w"] == 1).all() and (attached.to_vector() == 1).all()  # it was whole
        assert mine.segment == "theirs"
    del mine
    assert not segments_there()


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "1 / 0", "os.kill(os.getpid(), signal.SIGINT)"])
def test_a_creator_that_ends_removes_its_segments(end):
    code = f"import os, signal, sys, flatstore as fs\nx = fs.Store.from_tree({{'w': 1.0}}).share('ends')\n{end}"
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert not segments_there()


def test_a_process_that_attached_and_ends_takes_nothing_with_it():
    shared = fs.Store.from_tree(tree(3)).share("stays")
    with Other() as other:
        assert other("x = fs.attach('stays'); float(x['a/w'].sum())") == "18.0"
        other.end()
    with Other() as other:
        assert other("x = fs.attach('stays'); float(x['a/w'].sum())") == "18.0"
        other.kill()
    assert (fs.attach("stays")["a/w"] == 3).all() and shared.segment == "stays"


def test_a_forked_child_neither_removes_nor_keeps_a_segment():
    code = """if True:
    import os, sys, time, warnings, numpy as np, flatstore as fs
    warnings.simplefilter("ignore")
    def say(what):
        os.write(1, f"{what}\\n".encode())  # at once: two processes do
    x = fs.Store.from_tree({'w': np.ones(4)}).share('forked')
    child = os.fork()
    if not child:
        try:
            x["w"] = np.zeros(4)
        except ValueError as error:
            say("refused" if "of another process" in str(error) else error)
        with fs.waiting(10.0):
            assert x.to_vector()[0] in (1, 2)
        del x
        say("left" if os.path.exists(sys.argv[1]) else "gone")
        time.sleep(20)
        sys.exit()
    with fs.waiting(10.0):
        x["w"] = np.full(4, 2.0)
    say(child)
    time.sleep(20)
    """
    process = subprocess.Popen([sys.executable, "-c", code, path_of("forked")], stdout=subprocess.PIPE, text=True)
    with process:
        said = [process.stdout.readline().strip() for _ in range(3)]
        (child,) = [int(word) for word in said if word.isdigit()]
        try:
            assert {*said} == {"refused", "left", str(child)}
            process.kill()
            process.wait()
            mine = fs.Store.from_tree(tree()).share("forked")  # though the child lives
            assert segments_there() == ["forked"] and mine.segment
        finally:
            os.kill(child, 9)


def test_processes_that_share_the_same_names_at_once_lose_none():
    code = """if True:
    import numpy as np, flatstore as fs
    made = 0
    while made < 20:
        try:
            x = fs.Store.from_tree({'w': np.ones(4)}).share("common")
        except FileExistsError:  # another's, for now
            continue
        y = fs.attach("common")  # ours, for as long as we have it
        assert (y["w"] == 1).all()
        made += 1
        x = y = None
    print(made)
    """
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in running] == ["20\n"] * 4 and not segments_there()


# -- what others may have put there


def some(name, content=b"", mode=0o600):
    with open(path_of(name), "wb") as file:
        file.write(content)
    os.chmod(path_of(name), mode)
    return path_of(name)


def whole(shared):
    with open(path_of(shared.segment), "rb") as file:
        return file.read()


@pytest.fixture
def name():
    yield "hostile"
    if os.path.lexists(path_of("hostile")):
        os.unlink(path_of("hostile"))


def test_a_file_that_others_may_read_or_own_is_refused(name):
    shared = fs.Store.from_tree(tree(3)).share(name)
    for mode in (0o640, 0o604, 0o644, 0o400, 0o700, 0o4600):
        os.chmod(path_of(name), mode)
        with pytest.raises(PermissionError) as caught:
            fs.attach(name)
        says(caught, "for its owner only", f"{mode:04o}")
    os.chmod(path_of(name), 0o600)
    if os.geteuid() == 0:
        os.chown(path_of(name), 65534, -1)
        with pytest.raises(PermissionError) as caught:
            fs.attach(name)
        says(caught, "owner 65534")
        os.chown(path_of(name), 0, -1)
    assert fs.attach(name).layout == shared.layout


def test_links_folders_pipes_and_files_with_other_names_are_refused(name, tmp_path):
    shared = fs.Store.from_tree(tree(3)).share()
    at = path_of(name)
    makes = {
        "a link": lambda: os.symlink(path_of(shared.segment), at),
        "several names": lambda: os.link(path_of(shared.segment), at),
        "a pipe": lambda: os.mkfifo(at, 0o600),
    }
    for got, make in makes.items():
        make()
        with pytest.raises(ValueError) as caught:
            fs.attach(name)
        says(caught, got)
        with pytest.raises(FileExistsError):  # nor is anything written there
            shared.share(name)
        os.unlink(at)
    os.mkdir(at)
    with pytest.raises((ValueError, OSError)):
        fs.attach(name)
    with pytest.raises(FileExistsError):
        shared.share(name)
    os.rmdir(at)
    assert (shared["a/w"] == 3).all()


def test_a_segment_cut_at_any_byte_or_changed_in_any_byte_of_its_text_is_refused(name):
    shared = fs.Store.from_tree(tree(3)).share()
    content = whole(shared)
    length = struct.unpack_from("<8sQQQ", content)[2]
    stops = [*range(0, 64 + length, 7), 4095, 4096, 4097, len(content) - 1]
    for stop in stops:
        some(name, content[:stop])
        with pytest.raises(ValueError) as caught:
            fs.attach(name)
        says(caught, "a segment named 'hostile'")
    some(name, content + b"\0")
    with pytest.raises(ValueError, match="not 4"):
        fs.attach(name)
    for at in [*range(48), *range(64, 64 + length, 11)]:
        some(name, content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError) as caught:
            fs.attach(name)
        says(caught)
    some(name, content)
    with pytest.raises(ValueError, match="got one that has ended"):  # a copy has no creator
        fs.attach(name)


def test_a_text_of_others_with_the_right_digest_is_refused_too(monkeypatch):
    store = fs.Store.from_tree(tree(3))
    good = store.share()
    text = text_of(Shared(store.layout, None, None))
    assert fs.attach(good.segment).layout == store.layout
    changes = [
        ("", text),
        ("{", text),
        ("[]", text),
        ("{}", text),
        ("[" * 100_000, text),
        ('"align": 1e300', '"align": 64'),
        ('"size": 3, "order": "leaf"', '"size": null, "order": null'),
        ('"size": -1, "order": "leaf"', '"size": null, "order": null'),
        ('"size": "x", "order": 3', '"size": null, "order": null'),
        ('"float64"', '"float32"'),
        ('"shape": [4611686018427387904, 16]', '"shape": [2, 3]'),
        ('"shape": [2, 4]', '"shape": [2, 3]'),
        ('"shape": 5', '"shape": [2, 3]'),
        ('"leaves": {"a/b": [64,', '"leaves": {"a/b": [0,'),
    ]
    for new, old in changes:
        assert old in text
        changed = text.replace(old, new)
        array, segment = segments.make_segment("other", changed, store.layout.nbytes)
        with pytest.raises(ValueError) as caught:
            fs.attach("other")
        says(caught)
        del array, segment


def test_a_lack_of_room_is_found_before_anything_is_written():
    layout = fs.Layout.from_tree({"w": np.broadcast_to(np.float32(0), (1 << 46,))})
    with pytest.raises(MemoryError) as caught:
        Memory.shared("large", "", layout.nbytes)
    says(caught, "bytes of shared memory", "--shm-size")
    assert "large" not in segments_there()


def test_without_shared_memory_the_error_says_what_else_there_is(monkeypatch):
    monkeypatch.setenv("FLATSTORE_SHARED_DIR", "/no/such/folder")
    for call in (fs.Store.from_tree(tree()).share, lambda: fs.attach("x")):
        with pytest.raises(OSError) as caught:
            call()
        says(caught, "memory to share", "save a file")


def test_files_and_mappings_are_closed_in_the_end():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(50):
        shared = fs.Store.from_tree(tree()).share()
        attached = fs.attach(shared.segment)
        attached.to_vector()
        shared["a/w"] = np.ones((2, 3), "f4")
        with attached.lend():
            pass
    del shared, attached
    until(lambda: open_files() <= before + 1)


STEPS = "segments.lock", "segments.weakref.finalize", "segments._write", "segments.Segment", "holds.when_dropped"


@pytest.mark.parametrize("step", STEPS)
def test_whichever_step_of_sharing_lacks_memory_no_segment_is_left(step, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setenv("FLATSTORE_SHARED_DIR", str(tmp_path))
    store = fs.Store.from_tree({"w": np.zeros(3)})
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(f"flatstore.memory.{step}", failing)
        store.share()
    assert os.listdir(tmp_path) == []
    links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
    assert not [link for link in links if os.path.lexists(link) and os.readlink(link).startswith(str(tmp_path))]


def test_what_attaches_without_memory_leaves_no_file_open(monkeypatch):
    def failing(*_):
        raise MemoryError

    shared = fs.Store.from_tree(tree()).share()
    fs.attach(shared.segment)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("flatstore.memory.holds.when_dropped", failing)
        fs.attach(shared.segment)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_what_came_in_the_place_of_a_segment_stays_when_that_is_dropped(name):
    shared = fs.Store.from_tree(tree(3)).share(name)
    os.unlink(path_of(name))
    other = fs.Store.from_tree(tree(4)).share(name)
    del shared
    assert (fs.attach(name)["a/w"] == 4).all() and other.segment == name
