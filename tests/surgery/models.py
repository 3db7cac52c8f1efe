"""Models and optimisers that edits are tried on, and stores whose numbers all differ."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import flatstore as fs
from tests.example_trees import F4

S = jax.ShapeDtypeStruct


def net(*sizes: int) -> dict[str, Any]:
    """A perceptron of random numbers, of three layers unless the sizes are given."""
    rng, sizes = np.random.default_rng(0), sizes or (3, 4, 4, 2)
    return {
        f"Dense_{i}": {"bias": rng.random(shape[1]).astype(F4), "kernel": rng.random(shape).astype(F4)}
        for i, shape in enumerate(pairwise(sizes))
    }


def filled(layout: fs.Layout) -> fs.Store:
    """A store whose parameters are all different numbers."""
    store = fs.Store.zeros(layout)
    for leaf in layout.homes:
        store[leaf.path][...] = np.arange(leaf.index, leaf.index + leaf.size).reshape(leaf.shape)
    return store


def params() -> dict[str, Any]:
    """The parameters of a perceptron of two layers."""
    return net(3, 4, 2)


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
