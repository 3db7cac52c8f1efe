"""An edited layout is that of the edited tree: nodes, names, ties and what trains."""

from collections import OrderedDict, defaultdict
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given

import flatstore as fs
from tests.example_trees import F4, Pair, act, same_bits, says, trees
from tests.surgery.models import S, net


def test_what_is_dropped_renamed_and_added_makes_the_layout_of_the_edited_tree() -> None:
    new = fs.replan(
        fs.Layout.from_tree(net()),
        drop="Dense_2",
        rename={"Dense_0": "encoder", "*/kernel": "*/weight"},
        add={"head": {"weight": S((4, 5), "bfloat16"), "n": S((), "int32")}, "Dense_1/scale": np.ones(4, F4)},
    )
    old = net()
    edited = {
        "encoder": old["Dense_0"],
        "Dense_1": {"bias": old["Dense_1"]["bias"], "weight": old["Dense_1"]["kernel"], "scale": np.ones(4, F4)},
        "head": {"weight": np.zeros((4, 5), "bfloat16"), "n": np.int32(0)},
    }
    assert new == fs.Layout.from_tree(edited)
    assert new.treedef == jax.tree.structure(edited)


def test_the_first_pattern_counts_and_stars_stand_for_the_same_text() -> None:
    layout = fs.Layout.from_tree({"a": {"x": {"w": 1.0}}, "b": {"w": 2.0}})
    assert list(fs.replan(layout, rename={"a*w": "first*v", "*/w": "rest/*"}).by_path) == ["first/x/v", "rest/b"]
    assert list(fs.replan(layout, rename={"*": "model/*"}).by_path) == ["model/a/x/w", "model/b/w"]
    assert list(fs.replan(layout, drop="b", rename={"a/*": "*"}).by_path) == ["x/w"]
    assert list(fs.replan(layout, rename={"a": "b", "b": "a"}).by_path) == ["a/w", "b/x/w"]
    assert list(fs.replan(fs.Layout.from_tree(np.ones(2)), rename={"": "w"}).by_path) == ["w"]


def test_a_pattern_of_rename_means_brackets_literally() -> None:
    layout = fs.Layout.from_tree({"a[0]": 1.0, "a0": 2.0})
    assert list(fs.replan(layout, rename={"a[0]": "b"}).by_path) == ["a0", "b"]


@given(trees())
def test_nothing_edited_is_nothing_changed(tree: Any) -> None:
    layout = fs.Layout.from_tree(tree, align=16)
    same = fs.replan(layout)
    assert same == layout and same.treedef == layout.treedef
    assert [(i, x) for i, x in same.riders] == [(i, x) for i, x in layout.riders]


@given(trees())
def test_a_tree_that_moves_as_a_whole_keeps_its_nodes_and_bytes(tree: Any) -> None:
    store = fs.Store.from_tree({"a": {"b": tree}})
    rename = {"a/b": "c/d/e"}
    new = fs.transfer(store, fs.replan(store.layout, rename=rename), rename=rename)
    assert jax.tree.structure(new.tree) == jax.tree.structure({"c": {"d": {"e": tree}}})
    assert new.layout == fs.Layout.from_tree({"c": {"d": {"e": tree}}})
    assert all(map(same_bits, map(new.__getitem__, new), map(store.__getitem__, store)))


@pytest.mark.parametrize("keys", [dict, FrozenDict, OrderedDict, lambda x: defaultdict(list, x)])
def test_a_mapping_may_lose_and_gain_children_and_keeps_its_type(keys: Any) -> None:
    layout = fs.Layout.from_tree(Pair(keys({"u": 1.0, "v": 2.0}), keys({3: 1.0, 12: 2.0})))
    new = fs.replan(layout, drop=["left/u", "right/12"], add={"left/w": S((2,), F4), "right/7": S((3,), F4)})
    assert list(new.by_path) == ["left/v", "left/w", "right/3", "right/7"]
    tree = fs.Store.zeros(new).tree
    assert type(tree) is Pair and type(tree.left) is type(tree.right) is type(keys({}))
    assert list(tree.right) == [3, 7]
    if isinstance(tree.left, defaultdict):
        assert tree.left.default_factory is list


def test_an_nnx_state_keeps_its_type() -> None:
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    layout = fs.Layout.from_tree({"net": state})
    tree = fs.Store.zeros(fs.replan(layout, drop="*/bias*", rename={"net": "encoder"})).tree["encoder"]
    assert isinstance(fs.Store.zeros(fs.replan(layout, rename={"net": "m"})).tree["m"], nnx.State)
    assert isinstance(tree["kernel"], nnx.Param)


def test_a_list_stays_a_list_while_its_numbers_are_in_a_row() -> None:
    layout = fs.Layout.from_tree({"layers": [np.ones(i + 1, F4) for i in range(11)]})
    longer = fs.replan(layout, add={"layers/11": S((12,), F4)})
    assert [leaf.size for leaf in longer.leaves] == list(range(1, 13))
    assert type(fs.Store.zeros(fs.replan(layout, drop="layers/10")).tree["layers"]) is list
    with pytest.raises(ValueError) as error:
        fs.replan(layout, drop="layers/3")
    says(error, "'layers'", "list", "numbers in a row")
    closed = fs.replan(layout, drop="layers/10", rename={"layers/9": "layers/0", "layers/0": "layers/9"})
    assert [leaf.size for leaf in closed.leaves] == [10, 2, 3, 4, 5, 6, 7, 8, 9, 1]


def test_a_node_that_cannot_lose_or_gain_a_child_says_so() -> None:
    layout = fs.Layout.from_tree({"p": Pair(1.0, 2.0), "q": Pair(3.0, 4.0), "n": {0: 1.0}})
    for edit in ({"drop": "p/left"}, {"rename": {"p/left": "p/middle"}}, {"add": {"p/middle": S((), F4)}}):
        with pytest.raises(ValueError) as error:
            fs.replan(layout, **edit)
        says(error, "'p'", "Pair", "'left', 'right'")
    with pytest.raises(ValueError) as error:
        fs.replan(layout, add={"n/a": S((), F4)})
    says(error, "'n'", "dict")
    swapped = fs.replan(layout, rename={"p/left": "p/right", "p/right": "p/left", "q": "r"})
    assert type(fs.Store.zeros(swapped).tree["r"]) is Pair


def test_a_whole_tree_can_be_put_below_a_node() -> None:
    layout = fs.Layout.from_tree(Pair(1.0, {"w": 2.0}))
    tree = fs.Store.zeros(fs.replan(layout, rename={"*": "net/*"})).tree
    assert type(tree) is dict and type(tree["net"]) is Pair
    with pytest.raises(ValueError) as error:
        fs.replan(layout, rename={"left": "a", "right": "b"})
    says(error, "Pair", "'a', 'b'")


def test_what_rides_along_moves_with_its_path() -> None:
    layout = fs.Layout.from_tree({"a": {"f": act, "w": 1.0, "e": {}}, "b": [1.0, None, "relu"]})
    tree = fs.Store.zeros(fs.replan(layout, drop="b/2", rename={"a": "c"})).tree
    assert tree["c"]["f"] is act and tree["c"]["e"] == {} and tree["b"][1] is None and len(tree["b"]) == 2
    assert fs.replan(layout, drop="*/f", add={"b/3": "tanh"}).riders[-1][1] == "tanh"


def test_ties_dims_and_what_trains_are_kept() -> None:
    w = np.ones((2, 3), F4)
    tree = {"a": w, "b": w, "c": w, "n": np.arange(3), "z": np.ones(2, F4)}
    layout = fs.Layout.from_tree(tree, trainable=["a", "b", "c", "n"], dims={"[abc]": ("in", "out")})
    new = fs.replan(layout, drop="a", rename={"c": "A"})
    rows = {leaf.path: (leaf.tied, leaf.trainable, leaf.dims) for leaf in new.leaves}
    assert rows == {
        "A": (None, True, ("in", "out")),
        "b": ("A", True, ("in", "out")),
        "n": (None, True, None),
        "z": (None, False, None),
    }


def test_a_layout_added_twice_is_two_models_with_ties_of_their_own() -> None:
    w = np.ones(2, F4)
    tied = fs.Layout.from_tree(Pair(w, w), trainable=())
    new = fs.replan(fs.Layout.from_tree({"x": 1.0}), add={"p": tied, "q": tied})
    assert [(leaf.path, leaf.tied, leaf.trainable) for leaf in new.leaves] == [
        ("p/left", None, False),
        ("p/right", "p/left", False),
        ("q/left", None, False),
        ("q/right", "q/left", False),
        ("x", None, True),
    ]
    assert type(fs.Store.zeros(new).tree["q"]) is Pair


def test_order_moves_leaves_in_memory_and_leaves_every_index_alone() -> None:
    tree = {**net(), "n": np.arange(3), "h": np.ones(3, np.float16)}
    layout = fs.Layout.from_tree(tree, align=1)
    new = fs.replan(layout, order=["*/kernel", "Dense_2/*"])
    assert new != layout and [x.index for x in new.leaves] == [x.index for x in layout.leaves]
    in_memory = [x.path for x in sorted(new.leaves, key=lambda x: x.offset) if x.dtype == F4]
    assert in_memory == [*(f"Dense_{i}/kernel" for i in range(3)), "Dense_2/bias", "Dense_0/bias", "Dense_1/bias"]
    store = fs.transfer(fs.Store.from_tree(tree, align=1), new)
    kernels = np.concatenate([tree[f"Dense_{i}"]["kernel"].ravel() for i in range(3)])
    np.testing.assert_array_equal(store.flats["float32"][: kernels.size], kernels)
    np.testing.assert_array_equal(store.to_vector(), fs.Store.from_tree(tree, align=1).to_vector())


def test_noise_follows_the_index_and_not_the_order_in_memory() -> None:
    store = fs.Store.from_tree(net())
    other = fs.transfer(store, fs.replan(store.layout, order="*/kernel"))
    for one in (store, other):
        fs.es.snap(one, fs.Normal(0.1))
        fs.es.perturb(one, fs.Normal(0.1), 5)
    np.testing.assert_array_equal(store.to_vector(), other.to_vector())
    assert store.flat[:4].tolist() == store["Dense_0/bias"].tolist()
    assert other.flat[:12].tolist() == other["Dense_0/kernel"].ravel().tolist()


# -- views


def test_a_write_through_a_path_changes_the_model() -> None:
    store = fs.Store.from_tree(net())
    flat, kernel = store.flat, store.tree["Dense_1"]["kernel"]
    before = kernel.copy()
    store["Dense_1/kernel"] /= np.linalg.norm(store["Dense_1/kernel"])
    np.testing.assert_allclose(kernel, before / np.linalg.norm(before), rtol=1e-6)
    assert store["Dense_1/kernel"] is kernel and np.shares_memory(flat, kernel)
    assert np.isclose(np.linalg.norm(kernel), 1)
