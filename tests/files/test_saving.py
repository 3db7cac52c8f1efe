"""Files: what is saved comes back, to the bit, as it was tied, and a failed save leaves the old file."""

import itertools
import json
import os
import signal
import threading
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import flatstore as fs
from flatstore.files import layout_of


def a_store():
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {
        "embed": {"w": shared},
        "head": {"w": shared},
        "layers": [{"bias": np.full(2, i, np.float32)} for i in range(11)],
        "half": np.array([1, -0.0, np.nan], ml_dtypes.bfloat16),
        "tiny": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
        "count": np.int64(3),
        "flag": np.array([True, False]),
        "a/b~c": np.float32(1.5),
        "name": "rides along",
    }
    return fs.Store.from_tree(tree, dims={"embed/w": ("in", "out")}, align=16)


def test_a_file_gives_back_the_same_layout_and_the_same_bits(tmp_path):
    store = a_store()
    fs.save(tmp_path / "a.safetensors", store)
    again = fs.load(tmp_path / "a.safetensors")
    assert layout_of(tmp_path / "a.safetensors").digest == store.layout.digest
    assert again.layout == store.layout
    assert again.buffer.tobytes() == store.buffer.tobytes()
    assert again["head/w"] is again["embed/w"]


def test_a_file_fills_the_tree_that_it_is_told_to_be_like(tmp_path):
    store = a_store()
    fs.save(tmp_path / "a.safetensors", store)
    again = fs.load(tmp_path / "a.safetensors", like=store.layout)
    assert again.tree["name"] == "rides along"
    assert isinstance(again.tree["layers"], list)
    assert again.buffer.tobytes() == store.buffer.tobytes()
    assert fs.load(tmp_path / "a.safetensors", like=store.tree)["count"] == 3


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    fs.save(tmp_path / "a.safetensors", fs.Store.from_tree({"w": np.eye(3, dtype="f4"), "b": np.arange(2.0)}))
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert np.array_equal(tensors["w"], np.eye(3))
    assert np.array_equal(tensors["b"], [0, 1])


def test_a_member_of_a_population_is_saved_as_a_store_of_its_own(tmp_path):
    for order in ("leaf", "member"):
        pop = fs.Population.zeros(
            fs.Layout.from_tree({"w": np.zeros((2, 3), "f4"), "b": np.zeros(3, "f4")}), 4, order=order
        )
        pop[2].assign({"w": np.ones((2, 3)), "b": np.arange(3.0)})
        fs.save(tmp_path / "a.safetensors", pop[2])
        again = fs.load(tmp_path / "a.safetensors")
        assert np.array_equal(again["w"], np.ones((2, 3)))
        assert np.array_equal(again["b"], [0, 1, 2])


def test_a_file_of_others_is_read_by_its_tensors_names(tmp_path):
    safetensors.numpy.save_file({"net.0.weight": np.eye(2), "a/b": np.ones(3), "a": np.zeros(1)}, tmp_path / "t")
    again = fs.load(tmp_path / "t")
    assert np.array_equal(again["net.0.weight"], np.eye(2))
    assert np.array_equal(again[("a/b",)], np.ones(3))
    assert isinstance(again.tree, OrderedDict)


def test_a_file_that_does_not_match_lists_every_leaf(tmp_path):
    fs.save(tmp_path / "a.safetensors", fs.Store.from_tree({"w": np.zeros((2, 3), "f4"), "old": np.zeros(1, "f4")}))
    with pytest.raises(fs.StructureError) as caught:
        fs.load(tmp_path / "a.safetensors", like={"w": np.zeros((3, 2), "f4"), "new": np.zeros(1, "f4")})
    assert {difference.path for difference in caught.value.differences} == {"w", "old", "new"}
    assert "'w': expected float32[3,2], got float32[2,3]; fix: " in str(caught.value)


def test_a_dtype_is_not_changed_on_the_way_in(tmp_path):
    fs.save(tmp_path / "a.safetensors", fs.Store.from_tree({"w": np.zeros(2, "f8")}))
    with pytest.raises(fs.StructureError, match=r"expected float32\[2\], got float64\[2\]"):
        fs.load(tmp_path / "a.safetensors", like={"w": np.zeros(2, "f4")})


def test_a_dtype_that_the_format_does_not_know_is_an_error_before_anything_is_written(tmp_path):
    store = fs.Store.from_tree({"w": np.zeros(2, "c16"), "v": np.zeros(2, "g"), "b": np.zeros(2, "f4")})
    with pytest.raises(fs.StructureError, match=r"(?s)2 leaves of a dtype that cannot be saved:.*float128.*complex128"):
        fs.save(tmp_path / "a.safetensors", store)
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    fs.save(path, fs.Store.from_tree({"w": np.zeros(2, "f4")}))
    before = path.read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        fs.save(path, fs.Store.from_tree({"w": np.ones(2, "f4")}))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_save_that_is_interrupted_again_as_it_ends_leaves_the_new_file_and_nothing_else(tmp_path, monkeypatch):
    class Struck(Exception):
        pass

    def strike(*_):
        raise Struck

    def interrupted(call):
        def interrupts(*arguments, **keywords):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            time.sleep(0.01)
            return call(*arguments, **keywords)

        return interrupts

    before = signal.signal(signal.SIGUSR1, strike)
    monkeypatch.setattr("os.fsync", interrupted(os.fsync))
    monkeypatch.setattr(Path, "unlink", interrupted(Path.unlink))
    try:
        with pytest.raises(Struck):
            fs.save(tmp_path / "a.safetensors", a_store())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]  # it came while the save was finished
    assert fs.load(tmp_path / "a.safetensors").buffer.tobytes() == a_store().buffer.tobytes()


@pytest.mark.parametrize(
    "note",
    [
        "nonsense",
        "[]",
        json.dumps({"version": 2, "align": 64, "leaves": []}),
        '{"version": 1, "align": 64, "leaves": [["x", true, null, null]]}',
    ],
)
def test_metadata_that_save_did_not_write_are_an_error(tmp_path, note):
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "t", metadata={"flatstore": note})
    with pytest.raises(ValueError, match="expected the table of leaves that save writes, got other metadata.*fix"):
        fs.load(tmp_path / "t")


def test_a_file_that_is_saved_anew_while_it_is_read_is_the_old_one_or_the_new_one(tmp_path):
    stores = [
        fs.Store.from_tree({"w": np.full(3, 1, "f4"), "x": np.zeros(2, "f4")}),
        fs.Store.from_tree({"w": np.full((2, 2), 2, "f8")}, align=1),
    ]
    fs.save(tmp_path / "a", stores[0])
    done = threading.Event()

    def save_again_and_again():
        for i in itertools.cycle([1, 0]):
            fs.save(tmp_path / "a", stores[i])
            if done.is_set():
                return

    saver = threading.Thread(target=save_again_and_again)
    saver.start()
    try:
        for _ in range(300):
            again = fs.load(tmp_path / "a")
            store = stores[again["w"].ndim - 1]
            assert again.layout == store.layout and again.buffer.tobytes() == store.buffer.tobytes()
    finally:
        done.set()
        saver.join()


def test_something_else_than_safetensors_is_an_error(tmp_path):
    (tmp_path / "t").write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="expected a safetensors file, got .*fix: "):
        fs.load(tmp_path / "t")
    with pytest.raises(FileNotFoundError):
        fs.load(tmp_path / "none")


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    fs.save(tmp_path / "a.safetensors", fs.Store.from_tree({"w": np.zeros(2, "f4")}))
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_neither_a_store_nor_a_population_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"expected a Store or a Population, got dict; fix: Store.from_tree\(tree\)"):
        fs.save(tmp_path / "a", {"w": np.zeros(2, "f4")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file in a folder that exists, got .*none/a"):
        fs.save(tmp_path / "none" / "a", fs.Store.from_tree({"w": np.zeros(2, "f4")}))


@pytest.mark.parametrize("order", [None, "leaf", "member"])
def test_a_save_takes_at_most_8_mib_of_memory_for_any_size_and_strides(tmp_path, order):
    layout = fs.Layout.from_tree({"w": np.zeros((1000, 64), "f4"), "b": np.zeros(7, "f4"), "n": np.zeros(3 << 20)})
    x = fs.Store.zeros(layout) if order is None else fs.Population.zeros(layout, 100, order="leaf")
    if order == "member":
        layout = fs.Layout.from_tree({"w": np.zeros((1000, 64), "f4"), "b": np.zeros(7, "f4")})
        x = fs.Population.zeros(layout, 200, order="member")
    tracemalloc.start()
    fs.save(tmp_path / "a", x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 8 << 20 and (tmp_path / "a").stat().st_size > 20 << 20


def test_leaves_that_fill_lines_of_64_bytes_come_first_and_the_data_start_at_one(tmp_path):
    tree = {"a": np.zeros(3, "f4"), "b": np.zeros((16, 2), "f4"), "c": np.zeros(13, "f4"), "d": np.zeros(8)}
    fs.save(tmp_path / "a", fs.Store.from_tree(tree))
    content = (tmp_path / "a").read_bytes()
    size = int.from_bytes(content[:8], "little")
    places = {name: x["data_offsets"][0] for name, x in json.loads(content[8 : 8 + size]).items() if name in tree}
    assert size % 64 == 56 and places == {"b": 0, "d": 128, "a": 192, "c": 204}


def test_axes_names_of_a_leaf_whose_path_looks_like_a_glob_come_back(tmp_path):
    store = fs.Store.from_tree({"w[0]": np.zeros((2, 3), "f4")}, dims={"w*": ("a", None)})
    fs.save(tmp_path / "a", store)
    assert fs.load(tmp_path / "a").layout == store.layout
