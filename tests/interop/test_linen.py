"""Flax linen: variables go in and out as they are, and a lent tree is what `apply` takes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState

import flatstore as fs
from tests.example_trees import same_bits, says

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


class Net(nn.Module):
    """Two layers, a batch norm and an embedding that is used twice."""

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        embed = nn.Embed(5, 4)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))
        return nn.Dense(2)(embed.attend(x) @ embed.embedding)


def variables() -> Any:
    return Net().init(jax.random.key(0), X)


@pytest.mark.parametrize("wrap", [dict, freeze])
def test_variables_come_back_as_they_went_in(wrap: Any) -> None:
    given = wrap(variables())
    store = fs.Store.from_tree(given, trainable="params/*")
    assert type(store.tree) is type(given) in (dict, FrozenDict)
    assert jax.tree.structure(store.tree) == jax.tree.structure(given)
    assert all(map(same_bits, jax.tree.leaves(store.tree), jax.tree.leaves(given)))
    assert [leaf.path for leaf in store.layout.leaves if not leaf.trainable] == [
        "batch_stats/BatchNorm_0/mean",
        "batch_stats/BatchNorm_0/var",
    ]


def test_apply_takes_the_lent_tree_and_the_tree_of_views() -> None:
    given = variables()
    store = fs.Store.from_tree(given)
    apply = jax.jit(Net().apply)
    expected = np.array(apply(given, X))
    with store.lend("jax") as lent:
        pointer = lent["params"]["Dense_1"]["kernel"].unsafe_buffer_pointer()
        assert pointer == store["params/Dense_1/kernel"].ctypes.data
        got = np.array(apply(lent, X))
    assert same_bits(got, expected) and same_bits(np.array(apply(store.tree, X)), expected)


def test_collections_that_apply_changes_are_assigned_back_in_place() -> None:
    given = variables()
    store = fs.Store.from_tree(given)
    stats = {path: view for path, view in store.modules()}["batch_stats"]
    with store.lend() as lent:
        _, changed = Net().apply(lent, X, train=True, mutable=["batch_stats"])
    stats.assign(changed["batch_stats"])
    expected = Net().apply(given, X, train=True, mutable=["batch_stats"])[1]["batch_stats"]["BatchNorm_0"]["mean"]
    assert same_bits(store["batch_stats/BatchNorm_0/mean"], expected)
    with pytest.raises(fs.StructureError) as error:
        stats.assign(changed)  # one level too many
    says(error, "'BatchNorm_0/mean'", "got nothing", "'batch_stats/BatchNorm_0/mean'")


def test_a_train_state_is_a_tree_like_any_other() -> None:
    state = TrainState.create(apply_fn=Net().apply, params=variables()["params"], tx=optax.adam(1e-2))
    store = fs.Store.from_tree(state, trainable="params/*")
    assert isinstance(store.tree, TrainState) and store.tree.apply_fn is state.apply_fn
    assert store["opt_state/0/mu/Dense_0/kernel"].shape == (3, 4) and store["step"] == 0

    @jax.jit
    def train(state: TrainState) -> TrainState:
        loss = lambda p: jnp.square(state.params["Dense_1"]["bias"] - 1 + p["Dense_1"]["bias"]).sum()  # noqa: E731
        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    with store.lend() as lent:
        after = train(lent)
    store.assign(after)
    assert store["step"] == 1 and (store["params/Dense_1/bias"] > 0).all()
    assert same_bits(store["opt_state/0/nu/Dense_1/bias"], train(state).opt_state[0].nu["Dense_1"]["bias"])


def test_a_population_of_variables_is_evaluated_where_it_lies() -> None:
    pop = fs.Population.zeros(fs.Layout.from_tree(variables(), trainable="params/*"), 4)
    for member in (pop[i] for i in range(4)):
        member["params/Dense_0/kernel"][:] = 1
    pop["params/Dense_1/bias"][:] = np.arange(4)[:, None]
    with pop.lend("jax") as stacked:
        out = np.array(jax.vmap(Net().apply, in_axes=(pop.axes, None))(stacked, X))
    assert (out == np.arange(4)[:, None, None]).all() and out.shape == (4, 8, 2)
