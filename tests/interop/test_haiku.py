"""Haiku: its two-level dicts go in and out, with names that hold a '/' themselves."""

from typing import Any

import haiku as hk
import jax
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import same_bits, says

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def net() -> Any:
    def forward(x: Any) -> Any:
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training=True)
        return hk.nets.MLP([4, 2])(x)

    return hk.without_apply_rng(hk.transform_with_state(forward))


def test_parameters_and_state_come_back_as_they_went_in() -> None:
    params, state = net().init(jax.random.key(0), X)
    store = fs.Store.from_tree({"params": params, "state": state}, trainable="params/*")
    assert jax.tree.structure(store.tree) == jax.tree.structure({"params": params, "state": state})
    assert all(map(same_bits, jax.tree.leaves(store.tree["params"]), jax.tree.leaves(params)))
    assert store["params/mlp~1~0~1linear_1/w"] is store["params", "mlp/~/linear_1", "w"]
    assert list(store.select("params/*/w")) == ["params/linear/w", *(f"params/mlp~1~0~1linear_{i}/w" for i in (0, 1))]
    trains = {leaf.path.split("/")[0] for leaf in store.layout.leaves if leaf.trainable}
    assert trains == {"params"} and store.layout.size == sum(x.size for x in jax.tree.leaves((params, state)))


def test_apply_takes_the_lent_tree() -> None:
    params, state = net().init(jax.random.key(0), X)
    store = fs.Store.from_tree({"params": params, "state": state})
    apply = jax.jit(net().apply)
    expected, after = apply(params, state, X)
    with store.lend("jax") as lent:
        weight = lent["params"]["mlp/~/linear_1"]["w"]
        assert weight.unsafe_buffer_pointer() == store["params", "mlp/~/linear_1", "w"].ctypes.data
        out, changed = apply(lent["params"], lent["state"], X)
        assert same_bits(np.array(out), expected)
    nodes = dict(store.modules())
    nodes["state"].assign(changed)
    assert same_bits(store["state", "batch_norm/~/mean_ema", "average"], after["batch_norm/~/mean_ema"]["average"])
    assert same_bits(apply(store.tree["params"], store.tree["state"], X)[0], apply(params, after, X)[0])


def test_a_population_is_evaluated_where_it_lies() -> None:
    mlp = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    pop = fs.Population.from_tree(mlp.init(jax.random.key(0), X), 3)
    pop["mlp/~/linear_1", "b"][:] = np.arange(3)[:, None]
    with pop.lend("jax") as stacked:
        out = np.array(jax.vmap(mlp.apply, in_axes=(pop.axes, None))(stacked, X))
    np.testing.assert_allclose(out[2] - out[0], 2, rtol=1e-5)


def test_parameters_of_another_net_are_refused_by_their_escaped_names() -> None:
    store = fs.Store.from_tree(net().init(jax.random.key(0), X)[0])
    other = hk.transform(lambda x: hk.nets.MLP([4, 2])(x)).init(jax.random.key(0), np.ones((8, 5), np.float32))
    with pytest.raises(fs.StructureError) as error:
        store.assign(other)
    says(error, "'linear/w'", "'batch_norm/scale'", "'mlp~1~0~1linear_0/w': expected float32[4,4], got float32[5,4]")
