"""Layout: where every leaf lives, as a frozen value."""

import dataclasses
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

import flatstore as fs
from tests.example_trees import KEY, act, says

F4 = np.float32
TREE = {"dense": {"bias": np.ones(3, F4), "kernel": np.ones((2, 3), F4)}, "step": np.int32(4), "z": np.ones(5, np.half)}


def test_offsets_are_bytes_trainable_first_and_indices_are_packed_in_jax_order() -> None:
    layout = fs.Layout.from_tree({"a": np.zeros(3, F4), "n": np.zeros(2, np.int32), "z": np.zeros(5, F4)}, align=16)
    rows = {leaf.path: (leaf.offset, leaf.index, leaf.size, leaf.nbytes, leaf.trainable) for leaf in layout.leaves}
    assert rows == {"a": (0, 0, 3, 12, True), "n": (48, 3, 2, 8, False), "z": (16, 5, 5, 20, True)}
    assert (layout.size, layout.nbytes, layout.padding) == (10, 56, 56 - 40)


@pytest.mark.parametrize("align", [1, 16, 64, 4096])
def test_every_leaf_starts_at_the_alignment_and_at_its_item_size(align: int) -> None:
    layout = fs.Layout.from_tree(TREE, align=align)
    assert all(leaf.offset % align == leaf.offset % leaf.dtype.itemsize == 0 for leaf in layout.leaves)
    assert layout.align == align
    assert layout.padding == layout.nbytes - sum(leaf.nbytes for leaf in layout.leaves)


def test_one_dtype_with_align_1_has_no_padding() -> None:
    assert fs.Layout.from_tree(TREE["dense"], align=1).padding == 0


def test_aligning_and_freezing_never_change_an_index() -> None:
    plain = fs.Layout.from_tree(TREE)
    for other in (fs.Layout.from_tree(TREE, align=1), fs.Layout.from_tree(TREE, trainable=["*bias", "step"])):
        assert [leaf.index for leaf in other.leaves] == [leaf.index for leaf in plain.leaves] == [0, 3, 9, 10]


@pytest.mark.parametrize("align", [0, -64, 3, 48])
def test_an_alignment_is_a_power_of_two(align: int) -> None:
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree(TREE, align=align)
    says(error, "align", "power of two", str(align))


def test_floating_and_complex_leaves_train_by_default() -> None:
    dtypes = ["float16", "float64", "bfloat16", "float8_e4m3fn", "complex64", "int8", "uint8", "int64", "bool"]
    layout = fs.Layout.from_tree([np.ones(1, dtype) for dtype in dtypes])
    assert [leaf.trainable for leaf in layout.leaves] == [True] * 5 + [False] * 4


def test_trainable_takes_a_glob_a_list_of_globs_or_a_predicate_on_path_leaf_and_parent() -> None:
    def chosen(trainable: Any) -> list[str]:
        return [leaf.path for leaf in fs.Layout.from_tree(TREE, trainable=trainable).leaves if leaf.trainable]

    assert chosen("*/kernel") == ["dense/kernel"]
    assert chosen(["*bias", "step"]) == ["dense/bias", "step"]
    assert chosen([]) == []
    seen: dict[str, tuple[Any, Any]] = {}
    assert chosen(lambda path, leaf, parent: bool(seen.setdefault(path, (leaf, parent)))) == list(seen)
    assert all(leaf is parent[path.split("/")[-1]] for path, (leaf, parent) in seen.items())
    assert seen["dense/bias"][1] is TREE["dense"] and seen["z"][1] is TREE


def test_a_predicate_sees_the_users_own_node() -> None:
    net = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
    layout = fs.Layout.from_tree(net, trainable=lambda path, leaf, parent: isinstance(parent, eqx.nn.Linear))
    assert all(leaf.trainable for leaf in layout.leaves)
    assert fs.Layout.from_tree(np.ones(2), trainable=lambda path, leaf, parent: parent is None).leaves[0].trainable


@pytest.mark.parametrize("argument", [{"trainable": "*/kernl"}, {"dims": {"*/kernl": ("in", "out")}}])
def test_a_glob_that_matches_nothing_is_an_error(argument: Any) -> None:
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree(TREE, **argument)
    says(error, "*/kernl", next(iter(argument)), "dense/bias")


def test_dims_name_the_axes_and_the_first_glob_that_matches_counts() -> None:
    layout = fs.Layout.from_tree(TREE, dims={"*/kernel": ("in", None), "dense/*": ("out",)})
    assert [leaf.dims for leaf in layout.leaves] == [("out",), ("in", None), None, None]
    assert layout != fs.Layout.from_tree(TREE)
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree(TREE, dims={"*/kernel": ("in",)})
    says(error, "dense/kernel", "(2, 3)", "dims")


def test_what_holds_no_numbers_rides_along_and_comes_back() -> None:
    tree = {"act": act, "key": KEY, "name": "relu", "none": None, "raw": b"x", "w": np.ones(2, F4), "class": dict}
    layout = fs.Layout.from_tree(tree)
    assert [leaf.path for leaf in layout.leaves] == ["w"]
    back = fs.Store.from_tree(tree).tree
    assert all(back[name] is tree[name] for name in tree if name != "w")


@pytest.mark.parametrize(
    "rider",
    [np.float32, jnp.float32, np.dtype("f4"), np.add, jax.nn.relu, object()],
    ids=["class", "jnp class", "dtype", "ufunc", "jit", "object"],
)
def test_types_and_functions_of_array_libraries_ride_along(rider: Any) -> None:
    assert fs.Store.from_tree({"rider": rider, "w": np.ones(2, F4)}).tree["rider"] is rider


def test_a_layout_from_shapes_is_the_layout_from_arrays() -> None:
    def init() -> Any:
        return {"w": jnp.ones((2, 3)), "b": [jnp.zeros(3, jnp.bfloat16), jnp.int32(1)]}

    assert fs.Layout.from_tree(jax.eval_shape(init)) == fs.Layout.from_tree(init())
    numpy_size = {"w": jax.ShapeDtypeStruct((np.int64(2), np.int64(3)), F4)}
    assert fs.Layout.from_tree(numpy_size) == fs.Layout.from_tree({"w": np.zeros((2, 3), F4)})


def test_a_hundred_billion_parameters_are_planned_without_memory() -> None:
    shapes = [jax.ShapeDtypeStruct((50_000, 20_000), jnp.bfloat16) for _ in range(100)]
    tracemalloc.start()
    layout = fs.Layout.from_tree(shapes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layout.size == 10**11 and layout.nbytes == 2 * 10**11
    assert layout.locate(10**11 - 1) == ("99", (49_999, 19_999))
    assert layout.index_of("99", (49_999, 19_999)) == 10**11 - 1
    assert peak < 2**20


def test_locate_and_index_of_are_inverse_over_all_indices() -> None:
    tree = {"a": np.zeros((2, 3)), "b": np.zeros(0), "c": 1.0, "d": np.zeros((1, 4), F4), "e": np.zeros((0, 2), F4)}
    layout = fs.Layout.from_tree(tree)
    places = [layout.locate(i) for i in range(layout.size)]
    assert [layout.index_of(*place) for place in places] == list(range(11))
    assert places[5:8] == [("a", (1, 2)), ("c", ()), ("d", (0, 0))]
    for index in (-1, layout.size):
        with pytest.raises(IndexError) as error:
            layout.locate(index)
        says(error, str(index), "0 .. 10")


def test_an_index_follows_a_tied_name_to_its_home() -> None:
    w = np.zeros(3)
    layout = fs.Layout.from_tree({"a": np.zeros(2), "in": w, "out": w})
    assert layout.index_of("out", (2,)) == layout.index_of("in", (2,)) == 4
    assert layout.locate(4) == ("in", (2,)) and layout.size == 5


@pytest.mark.parametrize(
    "target", [fs.Layout.from_tree(TREE), fs.Layout.from_tree(TREE).leaves[0]], ids=["all", "leaf"]
)
def test_a_layout_and_its_rows_are_frozen_and_slotted(target: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(target, dataclasses.fields(target)[0].name, 1)
    with pytest.raises((AttributeError, TypeError)):
        target.colour = "red"
    assert not hasattr(target, "__dict__")


def test_layouts_are_equal_when_their_tables_are() -> None:
    dense = TREE["dense"]
    same = [dense, FrozenDict(dense), OrderedDict(dense), jax.tree.map(jnp.asarray, dense), {**dense, "act": act}]
    layouts = {fs.Layout.from_tree(tree) for tree in same}
    assert len(layouts) == 1
    others = [
        fs.Layout.from_tree({"bias": np.ones(3, F4), "kern": np.ones((2, 3), F4)}),
        fs.Layout.from_tree({"bias": np.ones(3, F4), "kernel": np.ones((3, 2), F4)}),
        fs.Layout.from_tree({"bias": np.ones(3, F4), "kernel": np.ones((2, 3), np.int32)}),
        fs.Layout.from_tree(dense, align=4),
        fs.Layout.from_tree(dense, trainable="bias"),
        fs.Layout.from_tree(dense, dims={"bias": ("out",)}),
    ]
    assert len({*layouts, *others}) == 7 and len({x.digest for x in others}) == 6
    assert fs.Layout.from_tree(dense) != "a layout"


def test_ties_count_for_equality() -> None:
    w = np.ones(2, F4)
    assert fs.Layout.from_tree([w, w]) != fs.Layout.from_tree([w, w], tied=False)


PROGRAM = """
import numpy as np, flatstore as fs
tree = {"dense": {"bias": np.ones(3, "f4"), "kernel": np.ones((2, 3), "f4")}, "step": np.int32(4)}
tree["z"] = np.ones(5, "f2")
print(fs.Layout.from_tree(tree, dims={"*/kernel": ("in", "out")}).digest)
"""


def test_the_digest_is_the_same_in_every_process() -> None:
    ours = fs.Layout.from_tree(TREE, dims={"*/kernel": ("in", "out")}).digest
    for seed in ("0", "12345"):
        command = [sys.executable, "-c", PROGRAM]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == ours


class Net(eqx.Module):
    """A node type that pickles by name."""

    w: Any
    act: Any


@pytest.mark.parametrize(
    "tree",
    [TREE, FrozenDict(TREE), Net(np.ones(2, F4), act), [act, np.ones(2)]],
    ids=["dict", "FrozenDict", "Equinox", "list"],
)
def test_a_layout_pickles_with_its_nodes_and_riders(tree: Any) -> None:
    layout = fs.Layout.from_tree(tree)
    other = pickle.loads(pickle.dumps(layout))
    assert other == layout and hash(other) == hash(layout) and other.size == layout.size
    assert [x.key_path for x in other.leaves] == [x.key_path for x in layout.leaves]
    store = fs.Store.zeros(other)
    store.assign(tree)
    if not isinstance(tree, eqx.Module):  # Equinox's own definition unpickles unequal, and cannot make a tree
        assert jax.tree.structure(store.tree) == jax.tree.structure(tree)


def test_check_lists_every_difference() -> None:
    layout = fs.Layout.from_tree(TREE)
    layout.check(TREE)
    layout.check(jax.tree.map(jnp.asarray, TREE))
    wrong = {"dense": {"bias": np.ones(4, F4), "kernel": np.ones((2, 3))}, "step": np.int32(4), "new": np.ones(1, F4)}
    with pytest.raises(fs.StructureError) as error:
        layout.check(wrong)
    assert {found.path for found in error.value.differences} == {"dense/bias", "dense/kernel", "z", "new"}
    says(error, "4 leaves", "float32[3]", "float32[4]", "float64[2,3]", "float16[5]", "nothing", "float32[1]")
    layout.check({**TREE, "dense": {**TREE["dense"], "kernel": np.ones((2, 3))}}, casting="same_kind")


def test_size_0_leaves_of_any_dtype_stand_anywhere() -> None:
    dtypes = ["i4", "f4", "f8", "f4", "i4", "f2"]
    for full in range(-1, len(dtypes)):
        tree = [np.ones(int(i == full), dtype) for i, dtype in enumerate(dtypes)]
        store = fs.Store.from_tree(tree)
        assert [view.size for view in store.tree] == [len(x) for x in tree]
        assert store.layout.size == (full >= 0) and store.to_vector().tolist() == [1.0] * (full >= 0)


@pytest.mark.parametrize("tree", [{}, None, [], {"a": "b", "c": None}, {"f": act}])
def test_a_tree_without_numbers_is_an_error(tree: Any) -> None:
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree(tree)
    says(error, "at least one numeric leaf")


def test_a_repr_shows_paths_places_and_padding() -> None:
    text = repr(fs.Layout.from_tree(TREE))
    assert all(word in text for word in ["dense/kernel", "float32[2,3]", "at 64", "frozen", "15 parameters", "padding"])
    assert len(repr(fs.Layout.from_tree([np.ones(1) for _ in range(1000)])).splitlines()) < 20
