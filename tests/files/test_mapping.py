"""Files that are opened: a store over the file's own bytes, to be read, to be written, or to be written in private."""

import os
import subprocess
import sys
import warnings
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es, ga
from flatstore.files import flush, metadata_of
from flatstore.files.header import Tensor, written
from tests.example_trees import bits, same_bits, says
from tests.files.test_header import a_file

TREE = {
    "a": {"w": bits((16, 3), "f4", 1), "b": bits((5,), "f4", 2)},
    "n": np.int32(3),
    "h": bits((4, 8), "bfloat16", 3),
}


def saved(tmp_path, tree=TREE, **options):
    fs.save(tmp_path / "a", fs.Store.from_tree(tree, **options))
    return tmp_path / "a"


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_an_opened_store_has_the_layout_and_the_bits_that_were_saved(tmp_path, mode):
    path = saved(tmp_path, dims={"a/w": ("in", "out")})
    store, loaded = fs.open(path, mode), fs.load(path)
    assert type(store) is fs.Store and store.layout == loaded.layout
    assert all(same_bits(store[at], loaded[at]) for at in loaded)
    assert same_bits(store.copy().buffer, loaded.buffer)
    assert store.memory.bytes.nbytes == sum(leaf.nbytes for leaf in store.layout.homes)
    store.verify()


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["f4", "f8", "i1", "bfloat16", "bool"])), min_size=1))
def test_any_leaves_are_views_of_the_file(tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("opened")
    path = saved(folder, {f"t{i}": bits((n,), dtype, i) for i, (n, dtype) in enumerate(kinds)})
    store, loaded = fs.open(path, "c"), fs.load(path)
    assert all(same_bits(store[at], loaded[at]) and store[at].flags.aligned for at in loaded)
    assert all(np.shares_memory(store[at], store.memory.bytes) for at in loaded if loaded[at].size)


def test_to_read_views_are_read_only_verbs_raise_and_torch_cannot_change_the_file(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    store = fs.open(path)
    for view in (store["a/w"], store.tree["h"], store.buffer):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    writes = {
        "assign": lambda: store.assign(fs.load(path)),
        "setitem": lambda: store.__setitem__("n", 4),
        "perturb": lambda: es.perturb(store, fs.Normal(0.1), 1),
    }
    for write in writes.values():
        with pytest.raises(ValueError) as caught:
            write()
        says(caught, "expected memory that may be written, got that of a file opened with mode='r'", "mode='r+'")
    with pytest.raises(fs.LentError):
        store["a/w"].__dlpack__()
    with warnings.catch_warnings(action="ignore"):
        tensor = torch.from_numpy(store["a/w"])
    assert tensor.data_ptr() == store["a/w"].__array_interface__["data"][0]
    tensor.zero_()  # past all flags: private pages
    assert path.read_bytes() == before and same_bits(fs.open(path)["a/w"], TREE["a"]["w"])


def test_what_is_written_to_an_open_file_is_in_the_file_and_its_checksums_are_gone(tmp_path):
    path = saved(tmp_path)
    size = path.stat().st_size
    store = fs.open(path, "r+")
    store["a/b"] = np.arange(5.0)
    torch.from_numpy(store["a/w"]).zero_()
    flush(store)
    again = fs.load(path)
    assert same_bits(again["a/b"], np.arange(5, dtype="f4")) and not again["a/w"].any()
    assert path.stat().st_size == size and metadata_of(path) == {"format": "pt"}
    fs.save(path, again)
    fs.open(path, verify=True)


def test_checksums_that_stand_in_a_file_twice_are_gone_in_both_places(tmp_path):
    fs.save(tmp_path / "a", fs.Store.from_tree({"w": np.ones(4, "f4")}))
    content = (tmp_path / "a").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    name = b'"flatstore.xxh3_64":'
    header = content[8:end].replace(name, name + b'"' + b"0" * 16 + b'",' + name).rstrip()
    header = header.ljust(-(-len(header) // 64) * 64 + 56)
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    store = fs.open(tmp_path / "a", "r+", verify=True)
    store["w"] = np.full(4, 2, "f4")
    assert same_bits(fs.load(tmp_path / "a")["w"], np.full(4, 2, "f4"))


def test_a_private_store_is_written_and_the_file_stays(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    store = fs.open(path, "c")
    store["n"] = 7
    torch.from_numpy(store["a/w"]).zero_()
    assert store["n"] == 7 and not store["a/w"].any()
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="expected a store of open.* mode='r\\+'.*fix: save"):
        flush(store)


def test_flat_is_a_view_of_the_file_where_one_dtype_trains(tmp_path):
    tree = {"a": np.ones((16, 4), "f4"), "b": np.zeros(5, "f4"), "n": np.arange(3, dtype="i4")}
    store = fs.open(saved(tmp_path, tree), "c")
    store.flat[:] = np.arange(69)
    assert store.flat.size == 69 and store["n"].tolist() == [0, 1, 2]
    assert sorted([*store["a"].ravel(), *store["b"]]) == list(range(69))


def test_flat_is_an_error_where_other_leaves_lie_between(tmp_path):
    tree = {"a": np.ones(16, "f4"), "b": np.zeros(5, "f4"), "n": np.arange(16, dtype="i4")}
    with pytest.raises(ValueError, match="expected leaves that lie together, got 'b' apart.*in the file.*fix: "):
        fs.open(saved(tmp_path, tree), "c").flat  # noqa: B018


def test_jax_views_aligned_leaves_and_the_error_names_the_others(tmp_path):
    tree = {
        "a": np.ones((16, 4), "f4"),
        "b": np.full((32,), 2, "bfloat16"),
        "c": np.zeros(5, "f4"),
        "d": np.zeros(3, "f4"),
    }
    store = fs.open(saved(tmp_path, tree))
    with store.lend(only=["a", "b", "c"]) as lent:
        assert lent["a"].unsafe_buffer_pointer() == store["a"].__array_interface__["data"][0]
        assert float(jnp.sum(lent["b"].astype(jnp.float32))) == 64
    with pytest.raises(BufferError, match=r"'d': expected a start at a multiple of 64 bytes, got .*copy\(\)"):
        store.lend().__enter__()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_population_is_opened_as_one_and_evolves_in_the_file_to_the_bits_of_the_one_in_memory(tmp_path, order):
    pop = fs.Population.from_tree(
        {"w": np.zeros((16, 4), "f4"), "b": np.zeros(16, "f4"), "n": np.int32(5)}, 6, order=order
    )
    pop.leaf_view("w")[...] = np.random.default_rng(0).standard_normal((6, 16, 4))
    fs.save(tmp_path / "p", pop)
    opened = fs.open(tmp_path / "p", "r+")
    assert type(opened) is fs.Population and (opened.size, opened.order) == (6, "leaf")
    assert same_bits(opened["w"], pop["w"]) and opened["n"] == 5 and same_bits(opened[2]["w"], pop[2]["w"])
    for each in (pop, opened):
        ga.step(each, np.arange(6.0), seed=3, mutate=fs.Normal(0.1))
    assert same_bits(opened["w"], pop["w"]) and same_bits(opened["b"], pop["b"])
    with opened.lend() as lent:
        assert lent["w"].shape == (6, 16, 4)
    flush(opened)
    assert same_bits(fs.load(tmp_path / "p")["w"], pop["w"])


def test_noise_on_an_opened_store_has_the_same_bits(tmp_path):
    tree = {"a": np.zeros((5, 3), "f4"), "b": np.zeros(7, "f4"), "c": np.zeros((16, 4), "f4")}
    path, noise = saved(tmp_path, tree), fs.Normal(0.1)
    opened, loaded = fs.open(path, "r+"), fs.load(path)
    for store in (opened, loaded):
        es.perturb(store, noise, 3)
    assert all(same_bits(opened[at], loaded[at]) for at in loaded)


def test_a_file_of_others_is_opened_by_its_names_and_as_a_tree_like_the_one_given(tmp_path):
    safetensors.numpy.save_file({"net.w": np.eye(3, dtype="f4"), "a/b": np.ones(5)}, tmp_path / "t")
    store = fs.open(tmp_path / "t", "c")
    assert isinstance(store.tree, OrderedDict) and np.array_equal(store["net.w"], np.eye(3))
    like = fs.open(tmp_path / "t", like={"net.w": np.zeros((3, 3), "f4"), "a": {"b": np.zeros(5)}})
    assert like.tree["a"]["b"].sum() == 5
    with pytest.raises(fs.StructureError, match=r"'net.w': expected float32\[2\], got float32\[3,3\]"):
        fs.open(tmp_path / "t", like={"net.w": np.zeros(2, "f4"), "a": {"b": np.zeros(5)}})


def test_leaves_that_numpy_cannot_view_are_an_error_that_names_them_and_load_takes_them(tmp_path):
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    (tmp_path / "t").write_bytes(a_file(header, bytes(11)))
    with pytest.raises(fs.StructureError) as caught:
        fs.open(tmp_path / "t")
    says(caught, "'b': expected a start at a multiple of 4 bytes", "fix: load the file, and save it")
    fs.save(tmp_path / "t", fs.load(tmp_path / "t"))
    assert fs.open(tmp_path / "t")["b"].tolist() == [0, 0]


def test_tied_leaves_are_one_place_and_a_file_that_has_them_twice_is_an_error(tmp_path):
    shared = np.ones((2, 3), "f4")
    store = fs.open(saved(tmp_path, {"a": shared, "b": shared}))
    assert store["a"] is store["b"]
    safetensors.numpy.save_file({"a": shared, "b": shared.copy()}, tmp_path / "t")
    with pytest.raises(fs.StructureError, match="'b': expected tied leaves once, got a tensor of its own; fix: load"):
        fs.open(tmp_path / "t", like=store.layout)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_checksum_is_verified_when_it_is_asked_for(tmp_path, mode):
    path = saved(tmp_path)
    fs.open(path, "r", verify=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store = fs.open(path)
    assert store["n"] != 3
    with pytest.raises(ValueError, match=r"expected the data that save wrote, with the checksum .*fix: "):
        fs.open(path, "c" if mode == "r+" else mode, verify=True)


@pytest.mark.parametrize("mode", ["w", "rb", "", None, 3])
def test_another_mode_is_an_error(tmp_path, mode):
    with pytest.raises(ValueError, match="mode: expected 'r', 'r\\+' or 'c', got .*fix: "):
        fs.open(saved(tmp_path), mode)


def test_a_file_that_may_not_be_written_is_not_opened_for_it_and_an_index_is_not_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        fs.open(tmp_path / "none")
    with pytest.raises(ValueError, match="expected one file, got the index .*fix: load it"):
        fs.open(tmp_path / "model.safetensors.index.json")


def test_leaves_without_elements_and_files_without_data_are_opened(tmp_path):
    store = fs.open(saved(tmp_path, {"a": np.zeros((0, 3), "f4")}), "r+")
    assert store["a"].shape == (0, 3)


def test_opening_a_file_takes_neither_memory_nor_reads_its_data(tmp_path):
    with open(tmp_path / "big", "wb") as file:
        size = 4 << 30
        header = written([Tensor("w", "F32", (size // 4,), 0, size)], {})
        file.write(header)
        file.truncate(len(header) + size)  # holes: the data take no room on the disk
    program = """
import resource, sys, flatstore as fs
before = resource.getrusage(resource.RUSAGE_SELF)
stores = [fs.open(sys.argv[1], mode) for mode in ("r", "c")]
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_maxrss - before.ru_maxrss, stores[0]["w"][-1], stores[0].flat.size)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "big")], capture_output=True, text=True)
    grown, last, count = done.stdout.split()
    assert int(grown) < 20_000 and float(last) == 0 and int(count) == size // 4, done.stderr


def test_a_save_over_an_open_file_leaves_what_is_open_as_it_was(tmp_path):
    path = saved(tmp_path)
    store = fs.open(path)
    fs.save(path, fs.Store.from_tree({"w": np.ones(3, "f4")}))
    assert same_bits(store["a/w"], TREE["a"]["w"])
    fs.save(path, store)
    assert same_bits(fs.load(path)["a/w"], TREE["a"]["w"]) and os.listdir(tmp_path) == ["a"]
