"""What is handed out while it must not be written: torch ignores the read-only flag of DLPack, and does not get it."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs

HANDED_OUT = {
    "a leaf": lambda store: store["w"],
    "a leaf by its keys": lambda store: store[("w",)],
    "a slice of a leaf": lambda store: store["w"][1:],
    "a reshaped leaf": lambda store: store["w"].reshape(2, 2),
    "a selected leaf": lambda store: store.select("w")["w"],
    "a leaf of the tree": lambda store: store.tree["w"],
    "the flat vector": lambda store: store.flat,
    "a flat vector of a dtype": lambda store: store.flats["float32"],
    "the buffer": lambda store: store.buffer,
    "a leaf of a node": lambda store: next(node for _, node in store.modules())["w"],
}


def new_store():
    return fs.Store.from_tree({"w": np.arange(4, dtype=np.float32)})


@pytest.mark.parametrize("first_before", [False, True], ids=["first in the lend", "first before the lend"])
@pytest.mark.parametrize("name", HANDED_OUT)
def test_torch_cannot_import_and_write_what_a_lent_store_hands_out(name, first_before):
    store = new_store()
    if first_before:
        HANDED_OUT[name](store)
    with store.lend() as tree:
        view = HANDED_OUT[name](store)
        with pytest.raises(
            fs.LentError, match=r"expected a view that may be written, got one that is read-only; fix: export"
        ):
            torch.from_dlpack(view).add_(1)
        assert np.array_equal(tree["w"], np.arange(4))
        assert np.array_equal(view.view(np.float32).reshape(-1)[-3:], [1, 2, 3])
        torch.from_dlpack(np.array(view))[...] = 0
    torch.from_dlpack(HANDED_OUT[name](store)).zero_()
    assert not store["w"][1:].any()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_torch_cannot_import_what_a_lent_population_hands_out(order):
    pop = fs.Population.from_tree({"w": np.arange(16, dtype=np.float32)}, 16, order=order)
    with pop.lend() if order == "leaf" else fs.Store.wrap(pop.buffer, pop.layout).lend():
        views = [pop["w"], pop[2]["w"], pop[2:4].tree["w"], pop.buffer, *([] if order == "leaf" else [pop.matrix])]
        for view in views:
            with pytest.raises(fs.LentError, match="expected a view that may be written"):
                torch.from_dlpack(view)


def test_torch_cannot_import_a_leaf_that_all_members_share():
    tree = {"w": np.zeros(4, np.float32), "shared": np.arange(4, dtype=np.float32)}
    pop = fs.Population.from_tree(tree, 3, trainable="w")
    with pytest.raises(fs.LentError, match="expected a view that may be written, got one that is read-only"):
        torch.from_dlpack(pop[1]["shared"]).add_(1)
    torch.from_dlpack(pop["shared"]).add_(1)
    assert np.array_equal(pop[1]["shared"], [1, 2, 3, 4])


def test_a_view_that_was_handed_out_during_a_lend_is_an_ordinary_view_of_the_bytes_afterwards():
    store = new_store()
    with store.lend():
        view, tree, flat = store["w"], store.tree, store.flat
        assert view is store["w"]
        assert tree is store.tree
        assert flat is store.flat
    view[0], tree["w"][1], flat[2] = 7, 8, 9
    assert np.array_equal(store["w"], [7, 8, 9, 3])
    torch.from_dlpack(view).zero_()
    assert not store.flat.any()


def test_a_view_is_the_same_object_before_and_after_a_lend():
    store = new_store()
    before = store["w"], store.tree, store.flat, store.buffer
    with store.lend():
        pass
    assert all(a is b for a, b in zip(before, (store["w"], store.tree, store.flat, store.buffer), strict=True))


def test_what_is_rebound_in_the_tree_of_a_lend_is_told_by_verify():
    store = new_store()
    with store.lend():
        store.tree["w"] = np.zeros(4, np.float32)
    with pytest.raises(fs.StructureError, match="'w': expected a view of the buffer"):
        store.verify()


def test_numpy_jax_and_copies_read_a_view_of_a_lent_store():
    store = new_store()
    with store.lend():
        view = store["w"]
        assert jax.jit(jnp.sum)(view) == 6
        assert np.array_equal(pickle.loads(pickle.dumps(view)), view)
        copies = np.array(view), view + 0, np.sort(view), copy.deepcopy(view)
        for other in copies:
            assert np.array_equal(other, view)
            other[0] = 5
        assert type(view + 0) is np.ndarray
        assert type(view.sum()) is np.float32
        flat, rebuild = fs.destructure(store)
        assert np.array_equal(rebuild(flat)["w"], view)
        assert np.array_equal(store.copy()["w"], view)
        assert view[0] == 0
