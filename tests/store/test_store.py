"""Store: one model in one buffer; flat, tree and leaves are views of the same bytes."""

import copy
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax.core import FrozenDict

import flatstore as fs
from tests.example_trees import act, gap_bytes, says

F4 = np.float32


def tree() -> dict[str, Any]:
    return {"dense": {"bias": np.arange(3, dtype=F4), "kernel": np.ones((2, 3), F4)}, "step": np.int32(4)}


# -- views


def test_a_write_through_the_flat_vector_is_seen_in_the_tree() -> None:
    store = fs.Store.from_tree(tree(), align=1)
    store.flat[1] = 7
    assert store.tree["dense"]["bias"][1] == store["dense/bias"][1] == 7
    assert store.flat.shape == (9,) and store.flat.dtype == F4


def test_a_write_through_the_tree_is_seen_in_the_flat_vector_and_the_buffer() -> None:
    store = fs.Store.from_tree(tree(), align=1)
    store.tree["dense"]["kernel"][1, 2] = 6
    assert store.flat[8] == 6 and store.buffer[32:36].view(F4) == 6


def test_flat_shows_the_gaps_as_zeros_and_covers_only_trainable_leaves() -> None:
    store = fs.Store.from_tree(tree())
    np.testing.assert_array_equal(store.flat, [0, 1, 2] + [0] * 13 + [1] * 6)
    assert store.flat.size >= sum(leaf.size for leaf in store.layout.leaves if leaf.trainable)
    assert not gap_bytes(store.layout, store.buffer).any()


def test_repeated_access_gives_the_same_objects() -> None:
    store = fs.Store.from_tree(tree())
    assert store.tree is store.tree and store.flat is store.flat and store.buffer is store.buffer
    assert store["dense/bias"] is store["dense/bias"] is store.tree["dense"]["bias"] is store[("dense", "bias")]
    assert store.flats["float32"] is store.flat
    assert store.select("*bias")["dense/bias"] is store["dense/bias"]


def test_leaves_of_several_dtypes_have_a_vector_each_and_no_flat() -> None:
    store = fs.Store.from_tree({"h": np.ones(3, np.half), "s": np.ones(2, F4), "t": np.zeros(2, np.half), "n": 1})
    assert {name: flat.shape for name, flat in store.flats.items()} == {"float16": (34,), "float32": (2,)}
    with pytest.raises(ValueError) as error:
        store.flat  # noqa: B018
    says(error, "float16", "float32", "flats", "to_vector")
    store.flats["float16"][-1] = 5
    assert store["t"][1] == 5


def test_a_store_without_trainable_leaves_has_no_flat() -> None:
    store = fs.Store.from_tree({"n": np.arange(3)})
    assert store.flats == {}
    with pytest.raises(ValueError) as error:
        store.flat  # noqa: B018
    says(error, "no trainable leaf")


def test_python_numbers_are_0d_leaves_with_jax_dtypes() -> None:
    store = fs.Store.from_tree({"b": True, "c": 1j, "f": 0.5, "i": 3})
    assert [view.dtype.name for view in store.values()] == ["bool", "complex64", "float32", "int32"]
    assert all(view.shape == () and isinstance(view, np.ndarray) for view in store.values())
    store["f"][...] = 2.5
    assert store.tree["f"] == 2.5
    store["i"] = 4
    assert store["i"] == 4


def test_leaves_of_numpy_jax_and_torch_are_copied_in() -> None:
    half = torch.arange(3).to(torch.bfloat16).requires_grad_()
    source = {
        "j": jnp.arange(3.0),
        "n": np.arange(3.0)[::-1],
        "t": half,
        "g": np.float16(2),
        "e": np.arange(2, dtype=">i4"),
    }
    store = fs.Store.from_tree(source)
    assert {path: view.dtype.name for path, view in store.items()} == {
        **{"e": "int32", "g": "float16", "j": "float32", "n": "float64", "t": "bfloat16"}
    }
    assert [view.astype(float).tolist() for view in store.values()] == [[0, 1], 2, [0, 1, 2], [2, 1, 0], [0, 1, 2]]
    store["n"][:] = store["t"][:] = 9
    assert source["n"].tolist() == [2, 1, 0] and half.tolist() == [0, 1, 2]


# -- a mapping


def test_a_store_is_a_mapping_from_path_to_view() -> None:
    store = fs.Store.from_tree(tree())
    paths = ["dense/bias", "dense/kernel", "step"]
    assert list(store) == list(store.keys()) == [path for path, _ in store.items()] == paths and len(store) == 3
    assert all(view is store[path] for path, view in store.items())
    assert all(a is b for a, b in zip(store.values(), dict(store).values(), strict=True))
    assert "dense/bias" in store and "dense" not in store and ("dense", "bias") in store
    assert store.get("dense/bias") is store["dense/bias"] and store.get("nope") is None


def test_an_unknown_path_names_the_ones_that_come_near() -> None:
    store = fs.Store.from_tree(tree())
    for key, words in [("dense/bia", "dense/bias"), (("dense", "kernels"), "dense/kernel"), ("dense", "node")]:
        with pytest.raises(KeyError) as error:
            store[key]
        says(error, words)


def test_keys_that_no_leaf_has_are_not_answered() -> None:
    store = fs.Store.from_tree(tree())
    store.buffer, store.flat  # noqa: B018
    for key in ("\0buffer", "\0float32"):
        with pytest.raises(KeyError):
            store[key]


def test_select_gives_the_views_that_match() -> None:
    store = fs.Store.from_tree(tree())
    assert list(store.select("*/kernel")) == ["dense/kernel"] and list(store.select(["step", "*bias"])) == [
        "dense/bias",
        "step",
    ]
    with pytest.raises(ValueError) as error:
        store.select("*/kernl")
    says(error, "*/kernl", "dense/bias")


def test_modules_are_stores_over_each_node_in_its_own_type() -> None:
    net = FrozenDict(
        {"a": {"kernel": np.full((2, 2), 2.0), "act": act}, "b": [eqx.nn.Linear(2, 1, key=jax.random.key(0))]}
    )
    store = fs.Store.from_tree(net)
    found = dict(store.modules())
    assert list(found) == ["", "a", "b", "b/0"]
    assert {path: float(np.linalg.norm(node["kernel"])) for path, node in found.items() if "kernel" in node} == {"a": 4}
    assert [type(node.tree) for node in found.values()] == [FrozenDict, dict, list, eqx.nn.Linear]
    assert found["a"].tree["act"] is act and found["b/0"].layout.locate(0) == ("weight", (0, 0))
    found["b/0"]["bias"][:] = 3
    assert store["b/0/bias"] == 3 and found["b"].tree[0].bias == 3
    found["b/0"].assign(found["b/0"].to_vector() * 2)
    assert store["b/0/bias"] == 6
    found["a"].flat[:] = 1
    assert (store["a/kernel"] == 1).all() and found["a"].flat.shape == (4,)


# -- rebinding


def test_the_library_never_reads_through_the_tree_and_verify_names_what_was_rebound() -> None:
    store = fs.Store.from_tree(tree())
    store.verify()
    store.tree["dense"]["bias"] = np.full(3, 9, F4)
    store.tree["extra"] = np.ones(1, F4)
    del store.tree["step"]
    with pytest.raises(fs.StructureError) as error:
        store.verify()
    assert {found.path for found in error.value.differences} == {"dense/bias", "extra", "step"}
    says(error, "store['dense/bias'] = value")
    np.testing.assert_array_equal(store["dense/bias"], [0, 1, 2])
    np.testing.assert_array_equal(store.to_vector(), [0, 1, 2, 1, 1, 1, 1, 1, 1, 4])
    np.testing.assert_array_equal(store.copy().tree["dense"]["bias"], [0, 1, 2])


@pytest.mark.parametrize("value", [5.0, None, np.zeros((3, 1), F4), np.zeros(3, np.int32)], ids=str)
def test_verify_sees_any_other_object_in_the_place_of_a_view(value: Any) -> None:
    store = fs.Store.from_tree(tree())
    store.tree["dense"]["bias"] = value
    with pytest.raises(fs.StructureError) as error:
        store.verify()
    assert [found.path for found in error.value.differences] == ["dense/bias"]


def test_an_update_in_place_and_another_view_of_the_same_bytes_are_not_rebound() -> None:
    store = fs.Store.from_tree(tree())
    store.tree["dense"]["bias"] += 1
    store.tree["dense"]["kernel"] = store["dense/kernel"][:]
    store.verify()


# -- copies and the object itself


def test_a_copy_is_detached_and_equal_with_the_same_layout() -> None:
    store = fs.Store.from_tree(tree())
    for other in (store.copy(), copy.deepcopy(store)):
        assert other.layout is store.layout and other.buffer.tobytes() == store.buffer.tobytes()
        assert not np.shares_memory(other.buffer, store.buffer)
        other.flat[0] = 5
        assert store.flat[0] == 0


def test_zeros_are_zeros_that_start_at_the_alignment_whatever_the_size() -> None:
    for n in (1, 3_000_000):
        store = fs.Store.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((n,), F4)}))
        assert store["w"].shape == (n,) and not store.buffer.any() and store.buffer.ctypes.data % 64 == 0


def test_a_store_may_have_no_bytes_at_all() -> None:
    store = fs.Store.from_tree({"w": np.zeros((0, 3), F4)})
    assert store["w"].shape == (0, 3) and store.flat.shape == store.to_vector().shape == store.buffer.shape == (0,)
    store.assign(store.to_vector())
    store.assign(store.copy())


def test_more_memory_than_there_is_is_an_error_with_the_size() -> None:
    with pytest.raises(MemoryError) as error:
        fs.Store.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((2**50,), F4)}))
    says(error, f"{2**52:,}")


def test_a_store_is_slotted_and_is_not_pickled_or_copied_by_accident() -> None:
    store = fs.Store.from_tree(tree())
    with pytest.raises(AttributeError):
        store.colour = "red"
    for verb, word in [(pickle.dumps, "layout"), (copy.copy, "copy()"), (type(store), "from_tree")]:
        with pytest.raises(TypeError) as error:
            verb(*([] if verb is type(store) else [store]))
        says(error, word)


def test_to_vector_is_a_packed_copy_in_index_order() -> None:
    store = fs.Store.from_tree(tree())
    vector = store.to_vector()
    assert vector.tolist() == [0, 1, 2] + [1] * 6 + [4]
    vector[:] = 9
    assert store["step"] == 4


def test_dtypes_that_numpy_cannot_promote_have_no_vector() -> None:
    store = fs.Store.from_tree({"a": np.ones(1, np.half), "b": np.ones(1, ml_dtypes.bfloat16)})
    with pytest.raises(TypeError) as error:
        store.to_vector()
    says(error, "bfloat16, float16")


def test_a_repr_mentions_the_leaves_and_says_when_lent() -> None:
    store = fs.Store.from_tree(tree(), align=64)
    assert all(word in repr(store) for word in ["Store", "dense/kernel", "float32[2,3]", "frozen", "10 parameters"])
    assert "lent" not in repr(store)
    with store.lend():
        assert "lent" in repr(store)


def test_anything_that_can_be_iterated_names_the_leaves_to_write() -> None:
    class Pairs:
        def __iter__(self) -> Any:
            return iter([("w", np.ones(2))])

    store = fs.Store.from_tree({"w": np.zeros(2), "b": np.zeros(1)})
    store.assign(Pairs())
    assert store.to_vector().tolist() == [0, 1, 1]
