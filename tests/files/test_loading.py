"""Files that are loaded: whole or in part, under other names, into other trees, and what is damaged."""

import builtins
import os
import tracemalloc
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy

import flatstore as fs
from flatstore.files import contents, loading, metadata_of
from tests.example_trees import bits, same_bits, says

TREE = {
    "backbone": {"w": bits((4, 3), "f4", 1), "b": bits((3,), "f4", 2)},
    "head": {"w": bits((3, 2), "f4", 3), "n": np.int32(3)},
}


def saved(tmp_path, tree=TREE, **options):
    fs.save(tmp_path / "a", fs.Store.from_tree(tree, **options))
    return tmp_path / "a"


class Net(NamedTuple):
    w: object
    b: object


def test_some_leaves_are_loaded_by_globs_and_put_into_a_model_that_has_others(tmp_path):
    part = fs.load(saved(tmp_path), only="backbone/*")
    assert list(part) == ["backbone/b", "backbone/w"] and same_bits(part["backbone/w"], TREE["backbone"]["w"])
    model = fs.Store.from_tree({"backbone": {"w": np.zeros((4, 3), "f4"), "b": np.zeros(3, "f4")}, "new": np.ones(5)})
    model.assign(part.items())
    assert same_bits(model["backbone/b"], TREE["backbone"]["b"]) and model["new"].all()
    assert list(fs.load(tmp_path / "a", only=["*/n", "*/b"])) == ["backbone/b", "head/n"]


def test_nodes_and_leaves_are_renamed_on_the_way_and_then_fit_another_tree(tmp_path):
    path = saved(tmp_path, dims={"backbone/w": ("in", "out")})
    store = fs.load(path, only="backbone/*", rename={"backbone": "encoder/0"})
    assert list(store) == ["encoder/0/b", "encoder/0/w"] and store.layout.leaf("encoder/0/w").dims == ("in", "out")
    like = Net(np.zeros((4, 3), "f4"), np.zeros(3, "f4"))
    net = fs.load(path, only="backbone/*", rename={"backbone/*": "*"}, like=like)
    assert isinstance(net.tree, Net) and same_bits(net.tree.w, TREE["backbone"]["w"])
    swapped = fs.load(path, rename={"head": "backbone", "backbone": "head"})
    assert same_bits(swapped["backbone/w"], TREE["head"]["w"])


def test_names_of_others_become_paths_where_they_are_renamed(tmp_path):
    safetensors.numpy.save_file({"net.0.w": np.ones(2), "net.0.b": np.zeros(1), "n": np.ones(3)}, tmp_path / "t")
    store = fs.load(tmp_path / "t", rename={"net.0.*": "net/0/*"})
    assert store.tree["net"]["0"]["w"].sum() == 2 and list(store) == ["n", "net/0/b", "net/0/w"]
    assert list(fs.load(tmp_path / "t", only="net.0.*")) == ["net.0.b", "net.0.w"]


def test_names_of_others_with_slashes_are_chosen_as_they_are_in_the_file_and_kept_by_like(tmp_path):
    names = {"a/b": np.ones(2, "f4"), "a/c": np.zeros(1, "f4"), "d": np.ones(3, "f4")}
    safetensors.numpy.save_file(names, tmp_path / "t")
    assert list(fs.load(tmp_path / "t", only="a/*")) == ["a~1b", "a~1c"]
    assert list(fs.load(tmp_path / "t", only=["a/b", "d"], rename={"*~1*": "*/*"})) == ["a/b", "d"]
    with pytest.raises(ValueError, match=r"only: expected globs that match a leaf, got 'x/\*'; fix: .*\['a/b', "):
        fs.load(tmp_path / "t", only="x/*")
    fs.save(
        tmp_path / "u", fs.load(tmp_path / "t", like={"a": {"b": names["a/b"], "c": names["a/c"]}, "d": names["d"]})
    )
    assert safetensors.numpy.load_file(tmp_path / "u").keys() == names.keys()


def test_a_tied_leaf_is_loaded_by_any_of_its_names(tmp_path):
    shared = bits((2, 3), "f4", 1)
    path = saved(tmp_path, {"a": shared, "b": {"c": shared, "d": np.zeros(2, "f4"), "e": shared}})
    store = fs.load(path, only="b/*")
    assert store["b/c"] is store["b/e"] and same_bits(store["b/c"], shared) and len(store.layout.homes) == 2
    whole = fs.load(path, rename={"a": "z"})
    assert list(whole) == ["z", "b/c", "b/d", "b/e"] and whole["z"] is whole["b/e"]


def test_a_file_that_has_tied_leaves_twice_is_loaded_if_they_are_the_same(tmp_path):
    shared = bits((300, 3), "f4", 1)
    layout = fs.Layout.from_tree({"a": shared, "b": shared, "c": np.ones(2)})
    safetensors.numpy.save_file({"a": shared, "b": shared.copy(), "c": np.ones(2)}, tmp_path / "t")
    assert same_bits(fs.load(tmp_path / "t", like=layout)["b"], shared)
    safetensors.numpy.save_file({"a": shared, "b": shared[::-1].copy(), "c": np.ones(2)}, tmp_path / "t")
    with pytest.raises(fs.StructureError, match="'b': expected the values of 'a', got other values; fix: "):
        fs.load(tmp_path / "t", like=layout)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": "nothing/*"}, "only: expected globs that match a leaf, got 'nothing/*'"),
        ({"rename": {"nothing": "x"}}, "rename: expected patterns that match a leaf or a node, got 'nothing'"),
        ({"rename": {"*/w": "w*"}}, "rename: expected another name for each leaf, got "),
        ({"rename": {"backbone/w": "head"}}, "rename: expected paths that make a tree, got others in "),
        ({"rename": {"head/w": "backbone"}}, "rename: expected paths that make a tree, got others in "),
        ({"rename": {"a*": "b"}}, "rename: expected as many '*' in the new name"),
        ({"only": "head/*", "like": TREE}, "'backbone/w': expected float32[4,3], got nothing"),
    ],
)
def test_globs_and_names_that_do_not_fit_are_errors_that_say_so(tmp_path, options, words):
    if "w*" in str(options):
        options = {"rename": {"backbone/w": "x", "head/w": "x"}}
    with pytest.raises(ValueError) as caught:
        fs.load(saved(tmp_path), **options)
    says(caught, words)


@pytest.mark.parametrize("only", [3, [3], str.isupper, b"head/w"])
def test_what_is_no_glob_is_an_error_that_says_so(tmp_path, only):
    with pytest.raises(TypeError, match=r"only: expected globs, got .*; fix: a string like '\*/bias'"):
        fs.load(saved(tmp_path), only=only)


def test_data_that_were_changed_are_an_error_that_names_leaf_and_file_unless_nobody_asks(tmp_path):
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40  # of head/w, which lies last: the others fill 64 bytes together
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        fs.load(path)
    says(caught, "'head/w': expected the data that save wrote, with the checksum ", repr(str(path)), "verify=False")
    assert not same_bits(fs.load(path, verify=False)["head/w"], TREE["head"]["w"])
    assert fs.load(path, only="backbone/*")["backbone/w"].size == 12


def test_a_bit_that_flips_anywhere_is_noticed_or_changes_nothing(tmp_path):
    path = saved(tmp_path, {"w": bits((5,), "f4", 1), "n": np.int32(3)})
    content, expected = path.read_bytes(), fs.load(path)
    for byte in range(len(content)):
        bad = bytearray(content)
        bad[byte] ^= 1 << byte % 8
        path.write_bytes(bad)
        try:
            again = fs.load(path)
        except ValueError:
            continue
        if again.layout == expected.layout:
            assert again.buffer.tobytes() == expected.buffer.tobytes()


@pytest.mark.parametrize("text", ["", "00", "x" * 16, "0" * 64])
def test_checksums_that_save_did_not_write_are_an_error_or_none(tmp_path, text):
    own = {"flatstore.xxh3_64": text}
    safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "t", metadata=own)
    assert metadata_of(tmp_path / "t") == {}
    if text == "x" * 16:  # of the right length: blanked, as far as anybody knows
        assert fs.load(tmp_path / "t")["w"].sum() == 2
        return
    with pytest.raises(ValueError, match="expected the checksums that save writes, got other metadata in .*fix: "):
        fs.load(tmp_path / "t")


def test_a_file_is_opened_once_and_read_into_the_memory_of_the_store(tmp_path, monkeypatch):
    path = saved(tmp_path, {f"l{i}": np.full((1 << 20,), i, "f4") for i in range(8)})
    opened, real = [], contents.FileIO
    monkeypatch.setattr(contents, "FileIO", lambda *args, **keywords: opened.append(args) or real(*args, **keywords))
    monkeypatch.setattr(builtins, "open", lambda *args, **_: pytest.fail(f"opened {args}"))
    tracemalloc.start()
    store = fs.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(opened) == 1
    # The store's own memory is a map, which is not traced.
    assert store.buffer.nbytes == 32 << 20 and peak < 2 << 20
    assert store["l7"][-1] == 7


@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_any_number_of_threads_reads_the_same_in_any_pieces(tmp_path, monkeypatch, number, order):
    tree = {f"l{i}": bits((i, 3), "f4", i) for i in range(9)} | {"n": np.int32(4)}
    pop = fs.Population.from_tree(tree, 3, order=order)
    for i, leaf in enumerate(pop.layout.leaves):
        if leaf.trainable:
            pop[leaf.path][...] = i
    fs.save(tmp_path / "p", pop)
    monkeypatch.setattr(loading, "threads", lambda: number)
    for piece, at_once in ((1 << 20, 1), (8, 1), (8, 0), (4, 0)):
        monkeypatch.setattr(loading, "PIECE", piece)
        monkeypatch.setattr(loading, "_AT_ONCE", at_once)
        loaded = fs.load(tmp_path / "p")
        paths = list(pop.layout.by_path)
        assert len(paths) == 10 and all(loaded[path].tobytes() == pop[path].tobytes() for path in paths)


def test_thousands_of_leaves_with_names_of_axes_take_a_number_of_steps_that_grows_with_them(tmp_path):
    import cProfile
    import pstats

    steps = []
    for layers in (200, 800):
        tree = {f"layer_{i}": {"w": np.zeros((2, 2), "f4"), "b": np.zeros(2, "f4")} for i in range(layers)}
        path = saved(tmp_path, tree, dims={"*/w": ("in", "out")})
        profile = cProfile.Profile()
        profile.runcall(fs.load, path)
        steps.append(pstats.Stats(profile).total_calls)
    assert steps[1] < 4.2 * steps[0]


def test_like_may_be_a_tree_a_store_or_a_layout(tmp_path):
    path = saved(tmp_path)
    store = fs.Store.from_tree(TREE)
    for like in (TREE, store, store.layout):
        again = fs.load(path, like=like)
        assert again.layout == store.layout and type(again.tree["head"]) is dict
    assert isinstance(fs.load(path).tree, OrderedDict)


def test_a_device_or_a_folder_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="expected a safetensors file, got .*a device or a pipe"):
            fs.load(path)
    with pytest.raises(IsADirectoryError):
        fs.load(tmp_path)
