"""A tree goes back into the store it came from: nodes, leaves and all that is static are compared first."""

from collections import OrderedDict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import flatstore as fs
from tests.example_trees import F4, act, same_bits, says
from tests.surgery.models import OPTIMISERS, params, store_of, trained


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_state_goes_back_where_it_came_from(name: str) -> None:
    tx = OPTIMISERS[name]()
    store = store_of(tx)
    here, after = trained(tx, steps=4)
    fs.put_back(store, after, at="opt")
    assert all(map(same_bits, jax.tree.leaves(store.tree["opt"]), jax.tree.leaves(after)))
    fs.put_back(store, {"params": here, "opt": after})
    assert all(map(same_bits, jax.tree.leaves(store.tree["params"]), jax.tree.leaves(here)))


def refused(store: fs.Store, tree: Any, at: str = "") -> Any:
    before = store.buffer.copy()
    with pytest.raises(fs.StructureError) as error:
        fs.put_back(store, tree, at)
    assert np.array_equal(store.buffer, before)
    says(error)
    return error


def test_the_state_of_another_optimiser_with_the_same_names_is_refused() -> None:
    store = store_of(optax.adam(1e-2))
    other = optax.adabelief(1e-2).init(params())
    assert [x.path for x in fs.Layout.from_tree(other).leaves] == [
        x.path for x in fs.Layout.from_tree(store.tree["opt"]).leaves
    ]
    error = refused(store, other, "opt")
    says(error, "'opt/0'", "a ScaleByAdamState", "a ScaleByBeliefState")
    assert len(error.value.differences) == 1


def test_all_that_differs_is_listed() -> None:
    store = store_of(optax.adam(1e-2))
    adam, empty = trained(optax.adam(1e-2))[1]
    mu = {
        "Dense_0": {"bias": adam.mu["Dense_0"]["bias"], "kernel": np.ones((3, 5), F4)},
        "extra": {"w": np.ones(2, F4)},
    }
    nu = {**adam.nu, "Dense_1": {"bias": np.ones(2, np.float16), "kernel": None}}
    error = refused(store, (adam._replace(count="two", mu=mu, nu=nu), empty, np.ones(1, F4)), "opt")
    found = {x.path: (x.expected, x.got) for x in error.value.differences}
    assert found == {
        "opt/0/count": ("int32[]", "a str"),
        "opt/0/mu/Dense_0/kernel": ("float32[3,4]", "float32[3,5]"),
        "opt/0/mu/Dense_1/bias": ("float32[2]", "nothing"),
        "opt/0/mu/Dense_1/kernel": ("float32[4,2]", "nothing"),
        "opt/0/mu/extra/w": ("nothing", "float32[2]"),
        "opt/0/nu/Dense_1/bias": ("float32[2]", "float16[2]"),
        "opt/0/nu/Dense_1/kernel": ("float32[4,2]", "None"),
        "opt/2": ("nothing", "float32[1]"),
    }


def test_nodes_with_nothing_in_them_count_too() -> None:
    store = store_of(optax.masked(optax.adam(1e-2), {"Dense_0": True, "Dense_1": False}))
    state = trained(optax.masked(optax.adam(1e-2), {"Dense_0": True, "Dense_1": False}))[1]
    adam, empty = state.inner_state
    says(refused(store, state._replace(inner_state=(adam,)), "opt"), "'opt/inner_state/1'", "EmptyState", "nothing")
    wrong = state._replace(inner_state=(adam._replace(mu={**adam.mu, "Dense_1": {}}), empty))
    says(refused(store, wrong, "opt"), "MaskedNode", "a dict", "'opt/inner_state/0/mu/Dense_1'")


def test_an_array_for_a_node_and_a_node_for_an_array_are_refused() -> None:
    store = store_of(optax.adam(1e-2))
    says(refused(store, np.ones(3, F4), "opt"), "'opt/0/mu/Dense_0/bias'", "a tuple")
    tree = {**params()["Dense_0"], "bias": {"a": np.ones(4, F4)}}
    says(refused(store, tree, "params/Dense_0"), "'params/Dense_0/bias'", "'params/Dense_0/bias/a'")


def test_tied_names_must_agree_when_they_are_put_back() -> None:
    w = np.ones(3, F4)
    store = fs.Store.from_tree({"opt": [w, w]})
    says(refused(store, [w, w + 1], "opt"), "'opt/1'", "'opt/0'", "other values")
    fs.put_back(store, [w * 2, w * 2], "opt")
    assert store["opt/0"].tolist() == [2, 2, 2]


def test_there_must_be_such_a_node_and_nobody_reading_it() -> None:
    store = store_of(optax.adam(1e-2))
    for path in ("optimiser", "opt/0/count", "opt/1"):
        with pytest.raises(KeyError) as error:
            fs.put_back(store, store.tree["opt"], path)
        says(error, path)
    _, state = trained(optax.adam(1e-2))
    with store.lend("jax") as lent, pytest.raises(fs.LentError):
        fs.put_back(store, state, "opt")
    del lent


def test_what_is_static_in_a_node_and_what_rides_along_must_be_as_it_was() -> None:
    conv = lambda stride: eqx.nn.Conv2d(1, 2, 3, stride=stride, key=jax.random.key(0))  # noqa: E731
    store = fs.Store.from_tree({"net": conv(1), "f": jax.nn.relu, "s": "relu", "key": jax.random.key(0), "none": None})
    same = {"net": conv(1), "f": jax.nn.relu, "s": "relu", "key": jax.random.key(0), "none": None}
    fs.put_back(store, jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, same))
    assert same_bits(store["net/bias"], same["net"].bias + 1)
    other = {**same, "net": conv(2), "f": jax.nn.tanh, "s": "tanh", "key": jax.random.key(1)}
    error = refused(store, other)
    assert [x.path for x in error.value.differences] == ["f", "key", "net", "s"]
    says(error, "a Conv2d with stride=(1, 1)", "a Conv2d with stride=(2, 2)", "a str 'relu'", "a str 'tanh'")
    assert store.tree["net"].stride == (1, 1)


def test_the_order_of_keys_is_nothing_static_and_a_train_state_goes_back() -> None:
    store = fs.Store.from_tree(OrderedDict(a=np.ones(2, F4), b=np.ones(3, F4)))
    fs.put_back(store, OrderedDict(b=np.zeros(3, F4), a=np.zeros(2, F4)))
    assert not store.flat.any()
    state = TrainState.create(apply_fn=act, params=params(), tx=optax.adam(1e-2))
    store = fs.Store.from_tree({"state": state})
    fs.put_back(store, state.apply_gradients(grads=params()), "state")
    assert store["state/step"] == 1
    says(refused(store, {"state": state.replace(apply_fn=says)}), "'state'", "apply_fn=<function act")


def test_errors_name_the_whole_path() -> None:
    store = fs.Store.from_tree({"params": {"a": np.ones(2, F4), "b": F4(1), "c": np.int32(1)}})
    before = store.buffer.copy()
    deleted = jnp.ones(2)
    deleted.delete()
    for name, x in (
        ("a", deleted),
        ("a", np.array(["x"])),
        ("c", 1 << 70),
        ("a", jax.ShapeDtypeStruct((2,), F4)),
        ("b", 1e300),
    ):
        with pytest.raises((ValueError, TypeError)) as error:
            fs.put_back(store, {**store.tree["params"], name: x}, at="params")
        says(error, f"'params/{name}'")
    assert np.array_equal(store.buffer, before)


@pytest.mark.parametrize("what", [{}, params(), fs.Population.from_tree(params(), 2)])
def test_only_a_store_takes_a_tree_back(what: Any) -> None:
    with pytest.raises(TypeError) as error:
        fs.put_back(what, params())
    says(error, "expected a store", type(what).__name__)
