"""The model that edits are tried on, and stores whose numbers all differ."""

from typing import Any

import jax
import numpy as np

import flatstore as fs
from tests.example_trees import F4

S = jax.ShapeDtypeStruct


def net() -> dict[str, Any]:
    """A perceptron of three layers, of random numbers."""
    rng = np.random.default_rng(0)
    shapes = {"Dense_0": (3, 4), "Dense_1": (4, 4), "Dense_2": (4, 2)}
    return {
        name: {"bias": rng.random(shape[1]).astype(F4), "kernel": rng.random(shape).astype(F4)}
        for name, shape in shapes.items()
    }


def filled(layout: fs.Layout) -> fs.Store:
    """A store whose parameters are all different numbers."""
    store = fs.Store.zeros(layout)
    for leaf in layout.homes:
        store[leaf.path][...] = np.arange(leaf.index, leaf.index + leaf.size).reshape(leaf.shape)
    return store
