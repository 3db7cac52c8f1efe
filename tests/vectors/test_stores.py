"""A store goes the same ways: its numbers into a JAX loss, the flat gradient back into it in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import same_bits, says, tree


def loss(params):
    return (params["a"]["w"] ** 2).sum() + (params["a"]["b"] * params["z"]).sum()


@pytest.mark.parametrize("align", [1, 64])
def test_the_flat_gradient_goes_back_into_the_store_in_place(align):
    store = fs.Store.from_tree(tree(3), align=align)
    address, leaf = store.buffer.ctypes.data, store["a/w"]
    flat, rebuild = fs.destructure(store)
    gradient = jax.grad(lambda v: loss(rebuild(v)))(flat)
    store.assign(rebuild.items(flat - 0.5 * gradient))
    assert store.buffer.ctypes.data == address and leaf is store["a/w"] and (leaf == 0).all()
    assert (store["a/b"] == 1.5).all() and store["z"] == -1.5 and store["n"] == 3


def test_a_packed_store_has_the_very_vector():
    store = fs.Store.from_tree(tree(3), align=1)
    flat, rebuild = fs.destructure(store)
    assert same_bits(flat, store.flat)
    gradient = jax.grad(lambda v: loss(rebuild(v)))(store.flat)
    store.flat[:] -= 0.5 * np.asarray(gradient)
    assert (store["a/w"] == 0).all() and store["n"] == 3


def test_where_all_leaves_enter_the_vector_is_assigned_as_it_is():
    store = fs.Store.from_tree({"b": np.zeros(2, "f4"), "w": np.ones((2, 2), "f4")})
    flat, rebuild = fs.destructure(store)
    assert same_bits(flat, store.to_vector())
    store.assign(2 * flat + 1)
    assert same_bits(store.to_vector(), np.array([1, 1, 3, 3, 3, 3], "f4"))
    store.assign(rebuild(flat))
    assert same_bits(store.to_vector(), np.asarray(flat))


def test_what_the_store_says_of_trainable_and_tied_holds():
    w = np.ones((2, 2), "f4")
    store = fs.Store.from_tree({"b": np.zeros(3, "f4"), "v": w, "w": w}, trainable=["v", "w"])
    flat, rebuild = fs.destructure(store)
    back = rebuild(flat)
    assert flat.shape == (4,) and back["v"] is back["w"] and isinstance(back["b"], np.ndarray)
    assert fs.destructure(store, trainable="b")[0].shape == (3,)
    assert fs.destructure(store, tied=False)[0].shape == (8,)
    store.assign(rebuild.items(flat * 5))
    assert (store["w"] == 5).all() and np.shares_memory(store["v"], store["w"])


def test_the_vector_is_a_copy_of_the_store():
    store = fs.Store.from_tree(tree(3))
    flat, rebuild = fs.destructure(store)
    store.flat[:] = 0
    store["n"] = 7
    assert (flat == 3).all() and rebuild(flat)["n"] == 3


def test_a_member_of_a_population_and_a_matrix_of_members():
    pop = fs.Population.from_tree({"b": np.zeros(2, "f4"), "w": np.ones((2, 2), "f4")}, 4)
    pop[2]["w"][:] = 9
    flat, rebuild = fs.destructure(pop[2])
    assert flat.tolist() == [0, 0, 9, 9, 9, 9]
    stacked = rebuild(pop.to_vector())
    assert all(same_bits(stacked[path], pop[path]) for path in ("b", "w"))


def test_a_store_of_doubles_takes_back_what_jax_computed_in_singles():
    store = fs.Store.from_tree({"w": np.ones(3)})
    flat, rebuild = fs.destructure(store)
    assert flat.dtype == jnp.float32
    store.assign(rebuild.items(flat / 3))
    assert store["w"].dtype == np.float64 and np.allclose(store["w"], 1 / 3)


def test_flatten_gives_the_vector_of_a_store_and_to_vector_is_longer_where_something_is_frozen():
    store = fs.Store.from_tree(tree(3))
    flat, rebuild = fs.destructure(store)
    store.flat[:] = 4
    assert same_bits(rebuild.flatten(store), np.full(flat.shape, 4, "f4"))
    with pytest.raises(fs.StructureError) as error:
        rebuild(store.to_vector())
    says(error, "shape (10,)", "float64[11]", "fix: pass what destructure gives", "rebuild.flatten(tree)", "a store")
    assert "to_vector" not in str(error.value)
