"""A leaf has moved if it begins elsewhere: of every library, and of stores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import bench

TREE = {"a": np.ones(30, "f4"), "b": {"c": np.ones((2, 3), "f4"), "empty": np.zeros((0, 2), "f4")}}


@pytest.mark.parametrize("convert", [np.array, jnp.asarray, torch.tensor], ids=["numpy", "jax", "torch"])
def test_what_stays_has_not_moved_and_what_is_copied_has(convert):
    tree = jax.tree.map(convert, TREE)
    where = bench.addresses(tree)
    assert list(where) == ["a", "b/c"]
    assert bench.moved(tree, tree) == bench.moved(where, tree) == []
    other = tree | {"a": convert(TREE["a"])}
    assert bench.moved(tree, other) == bench.moved(where, bench.addresses(other)) == ["a"]
    assert bench.moved(tree, {"new": tree["a"]}) == ["new"]


@pytest.mark.parametrize("device", [None, jax.devices()[0], "cpu"], ids=["host", "jax", "torch"])
def test_a_store_stays_and_a_copy_of_it_does_not(device):
    store = fs.Store.from_tree(TREE, device=device)
    where = bench.addresses(store)
    assert where == bench.addresses(store.tree)
    fs.es.snap(store, fs.Normal(0.1))
    assert bench.moved(where, store) == []
    assert bench.moved(where, store.copy()) == ["a", "b/c"]


def test_a_lent_tree_has_not_moved():
    pop = fs.Population.from_tree(TREE, 3)
    with pop.lend("jax") as stacked:
        assert bench.moved(pop, stacked) == []


def test_what_is_no_array_is_refused_by_path():
    with pytest.raises(
        TypeError, match="'b/c': expected an array of NumPy, JAX or torch, got float; fix: leave it out"
    ):
        bench.addresses({"b": {"c": 1.0}})
    gone = jnp.zeros(3)
    gone.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        bench.addresses({"a": gone})
