"""The edit that plans a model moves its bytes: each leaf once, into its counterpart."""

import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from tests.example_trees import F4, Pair, act, same_bits, says, trees
from tests.surgery.models import S, filled, net

EDIT: dict[str, Any] = {
    "drop": "Dense_2",
    "rename": {"Dense_0": "encoder"},
    "add": {"head/kernel": S((4, 5), F4), "head/bias": np.full(5, 7, F4)},
}


def test_the_same_edit_plans_the_model_and_moves_its_bytes() -> None:
    old = fs.Store.from_tree(net())
    new = fs.transfer(old, fs.replan(old.layout, **EDIT), **EDIT)
    for node, was in (("encoder", "Dense_0"), ("Dense_1", "Dense_1")):
        for name in ("kernel", "bias"):
            assert same_bits(new[f"{node}/{name}"], net()[was][name])
    np.testing.assert_array_equal(new["head/bias"], [7] * 5)  # arrays are moved in too
    np.testing.assert_array_equal(new["head/kernel"], np.zeros((4, 5)))
    assert same_bits(old.to_vector(), fs.Store.from_tree(net()).to_vector())


def test_a_store_that_is_added_is_its_tree() -> None:
    w = np.arange(4, dtype=F4)
    head = fs.Store.from_tree(Pair({"w": w, "act": act}, (w, np.int32(3))), trainable="*/[w0]")
    old, edit = fs.Store.from_tree(net()), {"add": {"head": head, "other": {"inner": head}}}
    layout = fs.replan(old.layout, **edit)
    rows = {leaf.path: (leaf.trainable, leaf.tied) for leaf in layout.leaves if leaf.path.startswith("head")}
    assert rows == {"head/left/w": (True, None), "head/right/0": (True, "head/left/w"), "head/right/1": (False, None)}
    new = fs.transfer(old, layout, **edit)
    assert type(new.tree["head"]) is Pair and new.tree["head"].left["act"] is act
    assert all(same_bits(new[f"{node}/{path}"], head[path]) for node in ("head", "other/inner") for path in head)
    assert not np.shares_memory(new["head/left/w"], head["left/w"])
    pop = fs.transfer(fs.Population.from_tree(net(), 3), layout, **edit)
    assert pop["head/left/w"].tolist() == [w.tolist()] * 3 and pop["head/right/1"] == 3


def test_what_is_added_without_an_array_keeps_what_the_new_store_holds() -> None:
    old = fs.Store.from_tree(net())
    new = filled(fs.replan(old.layout, **EDIT))
    held = new["head/kernel"].copy()
    assert fs.transfer(old, new, drop="Dense_2", rename={"Dense_0": "encoder"}, add="head") is new
    np.testing.assert_array_equal(new["head/kernel"], held)
    assert same_bits(new["encoder/kernel"], net()["Dense_0"]["kernel"])


def test_each_leaf_is_moved_once_and_without_a_temporary() -> None:
    old = fs.Store.from_tree({"a": np.ones((1000, 1000), F4), "b": np.ones((1000, 500), F4)})
    new = fs.Store.zeros(fs.replan(old.layout, rename={"a": "z"}))
    tracemalloc.start()
    fs.transfer(old, new, rename={"a": "z"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
    assert (new.to_vector() == 1).all()


@given(trees(), st.data())
def test_any_leaves_dropped_are_left_behind_and_the_others_moved(tree: Any, data: Any) -> None:
    store = fs.Store.from_tree({str(i): tree for i in range(3)}, tied=False)
    keep = data.draw(st.sets(st.sampled_from("012"), min_size=1))
    drop = [name for name in "012" if name not in keep]
    new = fs.transfer(store, fs.replan(store.layout, drop=drop), drop=drop)
    assert list(new) == [path for path in store if path[0] in keep]
    assert all(same_bits(new[path], store[path]) for path in new)
    assert jax.tree.structure(new.tree) == jax.tree.structure({name: tree for name in keep})


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_population_is_moved_like_a_store(order: Any) -> None:
    tree = {**net(), "n": np.arange(3)}
    pop = fs.Population.from_tree(tree, 5, order=order)
    pop["Dense_0/kernel"][...] = np.arange(60, dtype=F4).reshape(5, 3, 4)
    new = fs.transfer(pop, fs.replan(pop.layout, **EDIT), **EDIT)
    assert new.size == 5 and new.order == order
    np.testing.assert_array_equal(new["encoder/kernel"], pop["Dense_0/kernel"])
    np.testing.assert_array_equal(new["head/bias"], np.full((5, 5), 7))
    np.testing.assert_array_equal(new["n"], np.arange(3))


def test_ties_that_are_cut_take_the_values_of_the_one_home() -> None:
    w = np.arange(6, dtype=F4).reshape(2, 3)
    old = fs.Store.from_tree({"a": w, "b": w})
    new = fs.transfer(old, fs.Layout.from_tree({"a": w, "b": w}, tied=False))
    assert new.layout.size == 12
    np.testing.assert_array_equal(new["b"], w)
    back = fs.transfer(new, old.layout)
    assert back["a"] is back["b"]
    new["b"][0, 0] = 9
    with pytest.raises(fs.StructureError) as error:
        fs.transfer(new, old.layout)
    says(error, "'b'", "other values", "tied=False")
    assert fs.transfer(new, old.layout, drop="a")["a"][0, 0] == 9
