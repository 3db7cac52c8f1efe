"""What holds for parameters holds for the optimiser's state that is named after them."""

from collections import OrderedDict
from typing import Any

import equinox as eqx
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import flatstore as fs
from tests.example_trees import act, same_bits, says

F4 = np.float32


def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"Dense_0": (3, 4), "Dense_1": (4, 2)}
    return {
        name: {"bias": rng.random(s[1]).astype(F4), "kernel": rng.random(s).astype(F4)} for name, s in shapes.items()
    }


LABELS = {"Dense_0": {"bias": "slow", "kernel": "fast"}, "Dense_1": {"bias": "slow", "kernel": "fast"}}
OPTIMISERS = {
    "chain": lambda: optax.chain(optax.clip(1.0), optax.chain(optax.adam(1e-2), optax.add_decayed_weights(1e-3))),
    "masked": lambda: optax.masked(optax.adam(1e-2), {"Dense_0": True, "Dense_1": False}),
    "multi_transform": lambda: optax.multi_transform({"fast": optax.adam(0.1), "slow": optax.sgd(0.1, 0.9)}, LABELS),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


def trained(tx: Any, steps: int = 2) -> tuple[Any, Any]:
    """Parameters and state after some steps: moments that are not zero."""
    here, state = jax.tree.map(jnp.asarray, params()), tx.init(params())
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(lambda x: x + 1, here), state, here)
        here = optax.apply_updates(here, updates)
    return here, state


def store_of(tx: Any) -> fs.Store:
    here, state = trained(tx)
    return fs.Store.from_tree({"params": here, "opt": state})


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


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_state_goes_back_where_it_came_from(name: str) -> None:
    tx = OPTIMISERS[name]()
    store = store_of(tx)
    here, after = trained(tx, steps=4)
    fs.put_back(store, after, at="opt")
    assert all(map(same_bits, jax.tree.leaves(store.tree["opt"]), jax.tree.leaves(after)))
    fs.put_back(store, {"params": here, "opt": after})
    assert all(map(same_bits, jax.tree.leaves(store.tree["params"]), jax.tree.leaves(here)))


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


# -- put_back: a structural check


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
