"""What holds for parameters holds for the optimiser's state that is named after them."""

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatstore as fs
from tests.example_trees import same_bits
from tests.surgery.models import OPTIMISERS, params, store_of, trained


@pytest.mark.long
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_state_of_any_depth_is_edited_with_its_parameters(name: str) -> None:
    tx = OPTIMISERS[name]()
    store = store_of(tx)
    edit: Any = {"drop": "*/Dense_1", "rename": {"*/Dense_0": "*/encoder"}}
    new = fs.transfer(store, fs.replan(store.layout, **edit), **edit)

    def edited(tree: Any) -> Any:
        """By hand: each dict with a Dense_0 in it."""
        is_params = lambda x: isinstance(x, dict) and "Dense_0" in x  # noqa: E731
        cut = lambda x: {"encoder": x["Dense_0"]} if is_params(x) else x  # noqa: E731
        return jax.tree.map(cut, tree, is_leaf=is_params)

    by_hand = edited(store.tree)
    assert jax.tree.structure(new.tree) == jax.tree.structure(by_hand)
    assert all(map(same_bits, jax.tree.leaves(new.tree), jax.tree.leaves(by_hand)))


def test_adams_count_does_not_train_and_both_moments_are_one_glob() -> None:
    store = store_of(optax.adam(1e-2))
    assert [leaf.path for leaf in store.layout.leaves if not leaf.trainable] == ["opt/0/count"]
    assert store["opt/0/count"].dtype == np.int32 and store["opt/0/count"] == 2
    moments = store.select("opt/*/Dense_1/kernel")
    assert list(moments) == ["opt/0/mu/Dense_1/kernel", "opt/0/nu/Dense_1/kernel"]
    for moment in moments.values():
        moment[...] = 0
    assert not store.tree["opt"][0].mu["Dense_1"]["kernel"].any()


def test_training_goes_on_after_the_surgery() -> None:
    tx = optax.adam(1e-2)
    store = store_of(tx)
    edit: Any = {"drop": "*/Dense_1"}
    new = fs.transfer(store, fs.replan(store.layout, **edit), **edit)
    here = {"Dense_0": trained(tx)[0]["Dense_0"]}
    state = trained(tx)[1]
    state = (
        state[0]._replace(mu={"Dense_0": state[0].mu["Dense_0"]}, nu={"Dense_0": state[0].nu["Dense_0"]}),
        state[1],
    )
    grads = jax.tree.map(jnp.ones_like, here)
    ours, theirs = (tx.update(grads, opt, p)[0] for opt, p in ((new.tree["opt"], new.tree["params"]), (state, here)))
    assert all(map(same_bits, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def test_a_new_optimiser_for_the_same_parameters_is_a_drop_and_an_add() -> None:
    store = store_of(optax.adam(1e-2))
    edit: Any = {"drop": "opt", "add": {"opt": optax.sgd(0.1, 0.9).init(params())}}
    new = fs.transfer(store, fs.replan(store.layout, **edit), **edit)
    assert jax.tree.structure(new.tree["opt"]) == jax.tree.structure(optax.sgd(0.1, 0.9).init(params()))
    assert same_bits(new["params/Dense_0/kernel"], store["params/Dense_0/kernel"])


# -- the older state dict of the Flax guides


def test_the_older_state_dict_works_by_the_same_means() -> None:
    ema = lambda x: {"grad_ema": x * 0.1, "grad_sq_ema": x * 0.2}  # noqa: E731
    old = {
        "state": {"step": np.int32(7), "param_states": jax.tree.map(ema, params())},
        "target": params(),
    }
    store = fs.Store.from_tree(old)
    assert store.layout.leaf("state/step").trainable is False
    norm = np.linalg.norm(store["target/Dense_1/kernel"])
    for path, view in store.select("*/Dense_1/kernel*").items():
        view /= norm**2 if path.endswith("grad_sq_ema") else norm
    flat = fs.flatten_dict(old, "/")
    flat["target/Dense_1/kernel"] = flat["target/Dense_1/kernel"] / norm
    flat["state/param_states/Dense_1/kernel/grad_ema"] = flat["state/param_states/Dense_1/kernel/grad_ema"] / norm
    sq = "state/param_states/Dense_1/kernel/grad_sq_ema"
    flat[sq] = flat[sq] / norm**2
    by_hand = fs.unflatten_dict(flat, "/")
    jax.tree.map(np.testing.assert_array_equal, store.tree, by_hand)
    edit: Any = {"drop": "*/Dense_0", "rename": {"*/Dense_1": "*/head"}}
    new = fs.transfer(store, fs.replan(store.layout, **edit), **edit)
    assert list(new) == [
        *(f"state/param_states/head/{leaf}/grad{sq}_ema" for leaf in ("bias", "kernel") for sq in ("", "_sq")),
        "state/step",
        "target/head/bias",
        "target/head/kernel",
    ]


def test_a_state_dict_of_today_works_by_the_same_means() -> None:
    tx = optax.adam(1e-2)
    here, state = trained(tx)
    store = fs.Store.from_tree(flax.serialization.to_state_dict({"params": here, "opt": state}))
    store["opt/0/mu/Dense_0/kernel"][...] = 0
    back = flax.serialization.from_state_dict(state, store.tree["opt"])
    assert type(back[0]) is type(state[0]) and not back[0].mu["Dense_0"]["kernel"].any()
