"""Files: what other libraries ask of the metadata, what they wrote there, and the dtypes that they write."""

import json
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from huggingface_hub import load_state_dict_from_file
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors import safe_open

import flatstore as fs
from flatstore.files import layout_of, metadata_of
from tests.example_trees import bits, same_bits, says


def a_store():
    return fs.Store.from_tree(
        {"weight": np.arange(6, dtype="f4").reshape(2, 3), "bias": np.ones(2, ml_dtypes.bfloat16)}
    )


def file_of(header, data=b""):
    """The bytes of a safetensors file with this header, as they are: nothing is checked."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_equal_stores_give_equal_files_whatever_the_metadata(tmp_path_factory, metadata):
    assume("flatstore" not in metadata)
    folder = tmp_path_factory.mktemp("equal")
    files = [folder / f"{i}.safetensors" for i in range(3)]
    for file in files:
        fs.save(file, a_store(), metadata=metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert metadata_of(files[0]) == {"format": "pt", **metadata}
    assert same_bits(fs.load(files[0]).buffer, a_store().buffer)
    assert safetensors.numpy.load_file(files[0]).keys() == {"weight", "bias"}


def test_the_hub_loads_what_save_writes_and_not_what_says_numpy(tmp_path):
    store = a_store()
    fs.save(tmp_path / "a.safetensors", store)
    tensors = load_state_dict_from_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["weight"], torch.arange(6.0).reshape(2, 3)) and tensors["bias"].dtype == torch.bfloat16
    with safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
    fs.save(tmp_path / "a.safetensors", store, metadata={"format": "np"})
    with pytest.raises(OSError, match="does not contain the valid metadata"):
        load_state_dict_from_file(tmp_path / "a.safetensors")


def test_metadata_of_others_are_read_and_kept_where_they_are_passed_on(tmp_path):
    theirs = {"format": "flax", "license": "мит", "": "empty", "nested": '{"a": [1]}'}
    safetensors.numpy.save_file({"w": np.eye(2)}, tmp_path / "a", metadata=theirs)
    assert metadata_of(tmp_path / "a") == theirs
    store = fs.load(tmp_path / "a")
    fs.save(tmp_path / "a", store, metadata=metadata_of(tmp_path / "a"))
    assert metadata_of(tmp_path / "a") == theirs
    assert fs.load(tmp_path / "a").layout == store.layout
    fs.save(tmp_path / "a", store)
    assert metadata_of(tmp_path / "a") == {"format": "pt"}
    safetensors.numpy.save_file({"w": np.eye(2)}, tmp_path / "a")
    assert metadata_of(tmp_path / "a") == {}


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"steps": 3}, TypeError, "got 'steps': 3; fix: json.dumps the value"),
        ({3: "steps"}, TypeError, "got 3: 'steps'"),
        ({"half": "\ud800"}, TypeError, "metadata: expected strings by name"),
        ([("a", "b")], TypeError, "metadata: expected strings by name, got [('a', 'b')]; fix: pass a dict"),
        ("ab", TypeError, "metadata: expected strings by name, got 'ab'; fix: pass a dict"),
        (3, TypeError, "metadata: expected strings by name, got 3; fix: pass a dict"),
        (0, TypeError, "metadata: expected strings by name, got 0; fix: pass a dict"),
        ({"flatstore": "{}"}, ValueError, "metadata: expected names other than flatstore's own, got 'flatstore'"),
    ],
)
def test_metadata_that_cannot_be_written_are_an_error_and_the_old_file_stays(tmp_path, metadata, error, words):
    fs.save(tmp_path / "a", a_store())
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(error) as caught:
        fs.save(tmp_path / "a", a_store(), metadata=metadata)
    says(caught, words)
    assert (tmp_path / "a").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_the_format_cannot_hold_is_an_error_before_anything_is_written(tmp_path, name):
    with pytest.raises(
        fs.StructureError, match="expected a name that safetensors can write, got .*fix: rename the key"
    ):
        fs.save(tmp_path / "a", fs.Store.from_tree({name: np.ones(2)}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e5m2", "complex64"])
def test_every_byte_of_the_newer_dtypes_comes_back_and_torch_reads_the_same(tmp_path, name):
    values = bits((16, 16), name, 3) if name == "complex64" else np.arange(256, dtype=np.uint8).view(name)
    store = fs.Store.from_tree({"w": values})
    fs.save(tmp_path / "a", store)
    assert fs.load(tmp_path / "a").layout == store.layout
    assert same_bits(fs.load(tmp_path / "a")["w"], values)
    with safe_open(tmp_path / "a", "pt") as file:
        theirs = file.get_tensor("w")
    assert str(theirs.dtype) == f"torch.{name}" and theirs.view(torch.uint8).numpy().tobytes() == values.tobytes()


@pytest.mark.parametrize(("name", "bits_each"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_a_dtype_whose_values_share_bytes_is_an_error_that_names_the_tensor(tmp_path, name, bits_each):
    tensor = {"dtype": name, "shape": [8], "data_offsets": [0, bits_each]}
    (tmp_path / "a").write_bytes(file_of({"w": tensor, "__metadata__": {"kept": "too"}}, bytes(bits_each)))
    for read in (fs.load, layout_of):
        with pytest.raises(fs.StructureError) as caught:
            read(tmp_path / "a")
        says(caught, f"'w': expected a dtype of NumPy or JAX, got {name}", "convert the file")
    assert metadata_of(tmp_path / "a") == {"kept": "too"}


@pytest.mark.parametrize("shape", [[1] * 65, [1] * 70, [0, 2**62], [2**40, 0, 2**40], [2**63, 0]])
def test_a_shape_that_numpy_cannot_have_is_an_error_that_names_the_tensor(tmp_path, shape):
    size = 0 if 0 in shape else 4
    (tmp_path / "a").write_bytes(
        file_of({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    )
    for read in (fs.load, layout_of):
        with pytest.raises(fs.StructureError) as caught:
            read(tmp_path / "a")
        says(caught, "'w': expected a shape that NumPy can have, of at most 64 axes, got ")


@pytest.mark.parametrize("shape", [(1,) * 64, (0, 2**50), (0,), ()])
def test_shapes_at_the_edge_of_what_numpy_can_have_come_back(tmp_path, shape):
    store = fs.Store.from_tree({"w": np.zeros(shape, "f4"), "x": np.float32(1)})
    fs.save(tmp_path / "a", store)
    assert fs.load(tmp_path / "a").layout == store.layout


def test_a_file_without_tensors_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty").write_bytes(file_of({}))
    for read in (fs.load, layout_of):
        with pytest.raises(ValueError, match="expected a file with tensors, got none in '.*empty'; fix: "):
            read(tmp_path / "empty")


def test_axes_whose_names_are_no_strings_are_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(fs.StructureError) as caught:
        fs.save(tmp_path / "a", fs.Store.from_tree({"w": np.zeros((2, 3))}, dims={"w": (3, None)}))
    says(caught, "'w': expected names of axes that are strings or None, got (3, None)")
    assert not list(tmp_path.iterdir())


def test_a_layout_that_is_mostly_gaps_is_neither_saved_nor_loaded_but_one_that_is_just_aligned_is(tmp_path):
    store = fs.Store.from_tree({"w": np.ones(2, "f4"), "x": np.ones(3, "f4")}, align=2**20)
    fs.save(tmp_path / "a", store)
    assert fs.load(tmp_path / "a").layout == store.layout
    with pytest.raises(ValueError) as caught:
        fs.save(tmp_path / "a", fs.Store.from_tree({"w": np.ones(2, "f4")}, align=2**28))
    says(caught, "align: expected gaps of at most 134,217,728 bytes, got 268,435,456 for align=268435456", "align=64")
    assert fs.load(tmp_path / "a").layout == store.layout


def test_a_tree_whose_paths_are_no_tree_of_strings_is_loaded_into_one_like_it(tmp_path):
    tree = OrderedDict([(1, np.ones(2, "f4")), ("1", OrderedDict(b=np.zeros(3, "f4")))])
    store = fs.Store.from_tree(tree)
    assert list(store) == ["1", "1/b"]
    fs.save(tmp_path / "a", store)
    with pytest.raises(ValueError) as caught:
        fs.load(tmp_path / "a")
    says(caught, "got '1', which is both", "fix: load(path, like=...) takes a tree or a layout in place of the table")
    again = fs.load(tmp_path / "a", like=tree)
    assert again.layout == store.layout and again.buffer.tobytes() == store.buffer.tobytes()


def test_names_of_the_axes_of_a_0_d_leaf_come_back(tmp_path):
    store = fs.Store.from_tree({"w": np.float32(1), "x": np.zeros(2, "f4")}, dims={"w": ()})
    fs.save(tmp_path / "a", store)
    assert fs.load(tmp_path / "a").layout == store.layout


def test_a_file_as_the_first_version_wrote_it_gives_back_its_layout(tmp_path):
    shared = np.ones((2, 3), "f4")
    tree = OrderedDict(a=OrderedDict(b=shared), c=np.arange(4, dtype="i4"), d=shared)
    expected = fs.Layout.from_tree(tree, align=16, trainable=["a/b", "d"], dims={"a/b": ("in", None)})
    note = (
        '{"version": 1, "align": 16, "leaves": [["a/b", true, null, ["in", null]], ["c", false, null, null], '
        '["d", true, "a/b", null]]}'
    )
    safetensors.numpy.save_file({"a/b": shared, "c": tree["c"]}, tmp_path / "a", metadata={"flatstore": note})
    assert fs.load(tmp_path / "a").layout == layout_of(tmp_path / "a") == expected
    assert np.array_equal(fs.load(tmp_path / "a")["c"], [0, 1, 2, 3])
