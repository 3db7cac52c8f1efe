"""optax: states of any depth live in a store, and an update on lent parameters is written back in place."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatstore as fs
from tests.example_trees import same_bits, says

F4 = np.float32


def params() -> dict[str, Any]:
    return {"dense": {"bias": jnp.zeros(2), "kernel": jnp.arange(6.0).reshape(3, 2) / 10}, "scale": jnp.ones(())}


def loss(p: Any) -> Any:
    return jnp.square(jnp.tanh(p["dense"]["kernel"]).sum(0) + p["dense"]["bias"] - 1).sum() * p["scale"]


LABELS = {"dense": {"bias": "slow", "kernel": "fast"}, "scale": "slow"}
OPTIMISERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.05),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05)),
    "masked": lambda: optax.masked(optax.adam(0.05), {"dense": True, "scale": False}),
    "multi_transform": lambda: optax.multi_transform({"fast": optax.adam(0.1), "slow": optax.sgd(0.01)}, LABELS),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.05), every_k_schedule=2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_updates_of_a_store_are_those_of_the_tree(name: str) -> None:
    tx = OPTIMISERS[name]()

    @jax.jit
    def train(params: Any, opt: Any) -> tuple[Any, Any]:
        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    expected = params(), tx.init(params())
    store = fs.Store.from_tree({"params": params(), "opt": tx.init(params())}, trainable="params/*", tied=False)
    assert jax.tree.structure(store.tree["opt"]) == jax.tree.structure(expected[1])
    buffer = store.buffer.ctypes.data
    for _ in range(3):
        expected = train(*expected)
        with store.lend("jax") as lent:
            pointer = lent["params"]["dense"]["kernel"].unsafe_buffer_pointer()
            assert pointer == store["params/dense/kernel"].ctypes.data
            after, opt = train(lent["params"], lent["opt"])
        store.assign({"params": after, "opt": opt})
    assert store.buffer.ctypes.data == buffer
    got = jax.tree.leaves((store.tree["params"], store.tree["opt"]))
    assert all(map(same_bits, got, jax.tree.leaves(expected)))


def test_moments_train_and_counts_do_not_unless_somebody_says_otherwise() -> None:
    store = fs.Store.from_tree({"params": params(), "opt": optax.adam(0.1).init(params())})
    assert [leaf.path for leaf in store.layout.leaves if not leaf.trainable] == ["opt/0/count"]
    assert store.layout.by_path["opt/0/count"].dtype == np.int32
    assert list(store.select("*/dense/kernel")) == [f"opt/0/{m}/dense/kernel" for m in ("mu", "nu")] + [
        "params/dense/kernel"
    ]


def test_an_update_on_the_flat_vector_writes_the_model() -> None:
    store = fs.Store.from_tree(params(), align=1)
    tx = optax.sgd(0.1)
    gradient = fs.Store.from_tree(jax.grad(loss)(params()), align=1)
    updates, _ = tx.update(gradient.flat, tx.init(store.flat), store.flat)
    store.flat[:] += np.asarray(updates)
    expected = optax.apply_updates(params(), jax.tree.map(lambda g: -0.1 * g, jax.grad(loss)(params())))
    assert all(map(same_bits, jax.tree.leaves(store.tree), jax.tree.leaves(expected)))


def test_a_state_of_another_optimiser_is_refused_with_all_that_differs() -> None:
    store = fs.Store.from_tree({"params": params(), "opt": optax.adam(0.1).init(params())})
    before = store.buffer.tobytes()
    with pytest.raises(fs.StructureError) as error:
        store.assign({"params": params(), "opt": optax.sgd(0.1, momentum=0.9).init(params())})
    says(error, "'opt/0/count'", "'opt/0/mu/dense/kernel'", "'opt/0/trace/scale'", "remove this leaf")
    assert len(error.value.differences) == 10 and store.buffer.tobytes() == before


def test_a_donated_tree_is_refused_and_what_the_call_returned_is_taken() -> None:
    store = fs.Store.from_tree(params())
    given = params()
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    returned = step(given)
    with pytest.raises(ValueError) as error:
        store.assign(given)
    says(error, "'dense/bias'", "deleted or donated", "the array that the donating call returned")
    assert same_bits(store["dense/bias"], np.zeros(2, F4))
    store.assign(returned)
    assert same_bits(store["dense/bias"], np.ones(2, F4))


def test_donating_a_lent_tree_leaves_the_store_as_it_was() -> None:
    store = fs.Store.from_tree(params())
    before = store.buffer.tobytes()
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    with store.lend() as lent:
        returned = step(lent)
    assert store.buffer.tobytes() == before and returned["scale"] == 2
    store.assign(returned)
