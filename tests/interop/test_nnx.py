"""Flax nnx: split a model, keep its state in a store, and merge lent state into a model that runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flatstore as fs
from tests.example_trees import same_bits, says

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Net(nnx.Module):
    """Two layers with a batch norm and a dropout between them, and a layer that stands under two names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.reused = self.layers[0]

    def __call__(self, x: Any) -> Any:
        return self.reused(nnx.tanh(self.layers[0](self.drop(self.norm(self.first(x))))))


def net() -> Net:
    model = Net(nnx.Rngs(0))
    model.eval()
    return model


def test_a_state_comes_back_as_it_went_in() -> None:
    graph, state = nnx.split(net())
    store = fs.Store.from_tree(state)
    assert type(store.tree) is type(state) and jax.tree.structure(store.tree) == jax.tree.structure(state)
    assert isinstance(store.tree["first"]["kernel"], nnx.Param)
    [kernel] = store.select("first/kernel*").values()
    assert same_bits(kernel, np.asarray(state["first"]["kernel"][...]))
    assert not any(path.startswith("reused") for path in store)  # nnx names what is shared once
    assert same_bits(nnx.merge(graph, store.tree)(X), net()(X))


def test_parameters_alone_are_lent_to_a_merged_model() -> None:
    graph, params, rest = nnx.split(net(), nnx.Param, ...)
    store = fs.Store.from_tree(params)
    expected = np.array(net()(X))

    @jax.jit
    def forward(params: Any, rest: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest)(x)

    compiled = np.array(forward(params, rest, X))
    np.testing.assert_allclose(compiled, expected, rtol=1e-5, atol=1e-6)
    with store.lend("jax") as lent:
        view, leaf = store.flat, jax.tree.leaves(lent)[0]
        assert leaf.unsafe_buffer_pointer() == view.ctypes.data
        assert same_bits(np.array(forward(lent, rest, X)), compiled)
        model = nnx.merge(graph, lent, rest)
        assert same_bits(np.array(model(X)), expected)
    with pytest.raises(RuntimeError, match="deleted"):
        model(X)  # the model outlived the lend: JAX says so


def test_a_gradient_step_is_written_in_place_and_the_model_updated_from_the_store() -> None:
    model = net()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    store = fs.Store.from_tree(params)

    def loss(params: Any) -> Any:
        return jnp.square(nnx.merge(graph, params, rest)(X)).sum()

    with store.lend() as lent:
        stepped = jax.tree.map(lambda p, g: p - 0.01 * g, lent, jax.grad(loss)(lent))
    store.assign(stepped)
    before = float(loss(params))
    nnx.update(model, store.tree)
    assert float(jnp.square(model(X)).sum()) < before
    [kernel] = store.select("first/kernel*").values()
    assert same_bits(np.asarray(model.first.kernel[...]), kernel)


def test_random_streams_ride_along_and_their_counts_do_not_train() -> None:
    _, state = nnx.split(net())
    store = fs.Store.from_tree(state)
    frozen = [leaf.path for leaf in store.layout.leaves if not leaf.trainable]
    assert len(frozen) == 1 and frozen[0].startswith("drop/rngs/count")
    assert jnp.issubdtype(jax.tree.leaves(store.tree["drop"]["rngs"]["key"])[0].dtype, jax.dtypes.prng_key)


def test_the_state_of_another_model_is_refused_with_all_that_differs() -> None:
    store = fs.Store.from_tree(nnx.state(net(), nnx.Param))
    before = store.to_vector()
    other = net()
    other.first = nnx.Linear(5, 4, rngs=nnx.Rngs(1))
    other.layers = nnx.List([nnx.Linear(4, 6, rngs=nnx.Rngs(1))])
    other.reused = other.layers[0]
    with pytest.raises(fs.StructureError, match="3 leaves unlike the layout") as error:
        store.assign(nnx.state(other, nnx.Param))
    says(error, "'first/kernel", "expected float32[3,4], got float32[5,4]", "expected float32[4,4], got float32[4,6]")
    assert same_bits(store.to_vector(), before)
