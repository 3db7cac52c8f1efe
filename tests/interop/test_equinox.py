"""Equinox: partition first, so that what is no array stays out of the lent tree, and combine inside."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import same_bits, says

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Net(eqx.Module):
    """Static fields, a function, a number that trains and one that does not."""

    layers: list[eqx.nn.Linear]
    scale: jax.Array
    steps: int
    act: Callable[[Any], Any]
    name: str = eqx.field(static=True, default="net")

    def __init__(self) -> None:
        a, b = jax.random.split(jax.random.key(0))
        self.layers = [eqx.nn.Linear(3, 4, key=a), eqx.nn.Linear(4, 2, use_bias=False, key=b)]
        self.scale = jnp.ones(())
        self.steps, self.act = 2, jnp.tanh

    def __call__(self, x: Any) -> Any:
        for _ in range(self.steps):
            x = self.layers[0](x)[:3]
        return self.scale * self.layers[1](self.act(self.layers[0](x)))


class Language(eqx.Module):
    """An embedding and a head over the same weights, as Equinox shares them."""

    shared: eqx.nn.Shared

    def __init__(self) -> None:
        embed = eqx.nn.Embedding(5, 3, key=jax.random.key(1))
        head = eqx.nn.Linear(3, 5, use_bias=False, key=jax.random.key(2))
        self.shared = eqx.nn.Shared((embed, head), where=lambda x: x[1].weight, get=lambda x: x[0].weight)

    def __call__(self, token: Any) -> Any:
        embed, head = self.shared()
        return head(embed(token))


def test_a_partitioned_module_is_lent_and_combined() -> None:
    model = Net()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    store = fs.Store.from_tree(params)
    assert list(store) == ["layers/0/weight", "layers/0/bias", "layers/1/weight", "scale"]
    assert isinstance(store.tree, Net) and store.tree.name == "net" and store.tree.steps is None

    @jax.jit
    def forward(params: Any, x: Any) -> Any:
        return jax.vmap(eqx.combine(params, static))(x)

    expected = np.array(forward(params, X))
    with store.lend("jax") as lent:
        assert lent.layers[0].weight.unsafe_buffer_pointer() == store["layers/0/weight"].ctypes.data
        assert same_bits(np.array(forward(lent, X)), expected)
    assert same_bits(np.array(jax.vmap(eqx.combine(store.tree, static))(X)), jax.vmap(model)(X))


def test_a_filtered_gradient_goes_back_in_place() -> None:
    params, static = eqx.partition(Net(), eqx.is_inexact_array)
    store = fs.Store.from_tree(params)

    @eqx.filter_value_and_grad
    def loss(params: Any) -> Any:
        return jnp.square(jax.vmap(eqx.combine(params, static))(X)).sum()

    with store.lend() as lent:
        before, grads = loss(lent)
        after = eqx.apply_updates(lent, jax.tree.map(lambda g: -0.01 * g, grads))
    store.assign(after)
    assert loss(store.tree)[0] < before
    gradients = fs.Store.from_tree(grads)
    assert gradients.layout == store.layout and gradients.flat.any()


def test_a_whole_module_is_a_tree_too_and_what_is_no_number_rides_along() -> None:
    store = fs.Store.from_tree(Net())
    assert store.tree.act is jnp.tanh and store.tree.name == "net" and store["steps"] == 2
    assert not store.layout.by_path["steps"].trainable
    store["layers/0/weight"][:] = 0
    assert not store.tree.layers[0].weight.any()


def test_shared_layers_are_one_leaf() -> None:
    model = Language()
    params, static = eqx.partition(model, eqx.is_array)
    store = fs.Store.from_tree(params)
    assert len(store) == 1 and store.layout.size == 15
    store.flat[:] = 1
    with store.lend() as lent:
        assert jax.jit(lambda p, token: eqx.combine(p, static)(token))(lent, 2).tolist() == [3.0] * 5


def test_state_lives_beside_the_parameters() -> None:
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")
    params, static = eqx.partition(norm, eqx.is_inexact_array)
    store = fs.Store.from_tree({"params": params, "state": state}, trainable="params/*")

    def forward(tree: Any, x: Any) -> Any:
        apply = jax.vmap(eqx.combine(tree["params"], static), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return apply(x, tree["state"])

    x = np.random.default_rng(0).normal(3, 1, size=(8, 4)).astype(np.float32)
    numbers = [leaf.path for leaf in store.layout.leaves if leaf.dtype == np.float32]
    with store.lend(only=numbers) as lent:
        assert lent["params"].weight.unsafe_buffer_pointer() == store["params/weight"].ctypes.data
    _, state = forward(store.tree, x)
    before = store.to_vector()
    store.assign({"params": params, "state": state})
    assert not same_bits(store.to_vector(), before)
    expected = jax.tree.leaves(forward({"params": params, "state": state}, x)[1])
    assert all(map(same_bits, jax.tree.leaves(forward(store.tree, x)[1]), expected))


def test_a_module_of_another_width_is_refused() -> None:
    store = fs.Store.from_tree(eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_array))
    wider = eqx.filter(eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0)), eqx.is_array)
    with pytest.raises(fs.StructureError, match="3 leaves") as error:
        store.assign(wider)
    says(error, "'layers/0/weight': expected float32[4,3], got float32[5,3]", "'layers/1/weight'", "'layers/0/bias'")


def test_a_rebuild_and_a_layout_pickle_with_the_static_fields_of_the_modules():
    module = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    flat, rebuild = fs.destructure(module)
    x = jnp.ones(2)
    for again in (pickle.loads(pickle.dumps(rebuild)), copy.deepcopy(rebuild)):
        assert again == rebuild and hash(again) == hash(rebuild)
        assert same_bits(again(flat)(x), module(x))
    layout = pickle.loads(pickle.dumps(fs.Layout.from_tree(module)))
    assert fs.Store.zeros(layout).tree(x).tolist() == [0, 0]
