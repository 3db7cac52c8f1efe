"""The task: scikit-learn's handwritten digits, 1,797 images of 8 × 8, and a network with one hidden layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatstore.arrays import Array
from flatstore.extras import require
from flatstore.layout import Layout
from flatstore.noise import Normal

_jax: Any = jax

SHIFT, NOISE = 0.3, 0.4
"""How a training image is varied: moved by at most so many pixels, and blurred by so many standard deviations."""


@dataclass(frozen=True)
class Digits:
    """Images as columns of 64 numbers, and their labels, in two parts that share no image."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    @classmethod
    def load(cls) -> Digits:
        """The data set, four fifths for training, classes in proportion. Raises `ImportError` without scikit-learn."""
        images, labels = require("sklearn.datasets", "demo").load_digits(return_X_y=True)
        split = require("sklearn.model_selection", "demo").train_test_split
        train_x, test_x, train_y, test_y = split(images, labels, test_size=0.2, random_state=42, stratify=labels)
        mean = train_x.mean(axis=0)
        scaled = [np.ascontiguousarray(((x - mean) / 6).T, np.float32) for x in (train_x, test_x)]
        return cls(scaled[0], train_y.astype(np.int32), scaled[1], test_y.astype(np.int32))

    def batch(self, size: int, seed: int, generation: int) -> tuple[Array, Array]:
        """`size` training images, each moved and blurred a little: the same for the same seed and generation."""
        rng: Any = np.random.default_rng((seed, generation))
        chosen: Array = rng.choice(len(self.train_y), size, replace=False)
        x = _moved(self.train_x[:, chosen], rng)
        blur = rng.standard_normal(x.shape, dtype=np.float32)
        return x + NOISE * blur, self.train_y[chosen]


def _moved(x: Array, rng: Any) -> Array:
    """Each image moved by a fraction of a pixel along both axes, between its neighbours; edges repeat."""
    images = x.reshape(8, 8, -1)
    for axis in (0, 1):
        by = rng.uniform(-SHIFT, SHIFT, images.shape[2]).astype(np.float32)
        padded = np.pad(images, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(8) + k, axis=axis) for k in (0, 2))
        images = (1 - abs(by)) * images + np.maximum(by, 0) * before + np.maximum(-by, 0) * after
    return images.reshape(x.shape)


def layout_of_network(hidden: int) -> Layout:
    """Where the parameters of the network live: 64 inputs, `hidden` units, 10 classes.

    Weights have shape (outputs, inputs). The first layer of a whole population is then one matrix product, in place:
    its rows, (members, outputs), times the images, (inputs, images).
    """
    shapes = {
        "hidden": {"weight": (hidden, 64), "bias": (hidden,)},
        "output": {"weight": (10, hidden), "bias": (10,)},
    }
    return Layout.from_tree(
        {
            layer: {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}
            for layer, leaves in shapes.items()
        }
    )


def initial_noise(hidden: int) -> Normal:
    """What a new network is drawn from: weights of variance 1 / inputs, biases zero."""
    return Normal({"hidden/weight": 64**-0.5, "output/weight": hidden**-0.5, "*": 0})


def logits(params: Any, x: Any) -> Any:
    """The network: (64, images) to (10, images)."""
    hidden = jax.nn.relu(params["hidden"]["weight"] @ x + params["hidden"]["bias"][:, None])
    return params["output"]["weight"] @ hidden + params["output"]["bias"][:, None]


def log_likelihood(params: Any, x: Any, y: Any) -> Any:
    """The fitness of one network: the mean log-probability that it gives the labels."""
    log_p = jax.nn.log_softmax(logits(params, x), axis=0)
    return jnp.take_along_axis(log_p, y[None], axis=0).mean()


def fitness(stacked: Any, x: Any, y: Any) -> Any:
    """The fitness of every member: shape (members,)."""
    return jax.vmap(log_likelihood, in_axes=(0, None, None))(stacked, x, y)


def fitness_on_all(stacked: Any, x: Any, y: Any) -> Any:
    """The fitness of every member on many images: a few members at a time, so that their activations stay small."""
    return _jax.lax.map(partial(log_likelihood, x=x, y=y), stacked, batch_size=8)


def weighted_sum(stacked: Any, weights: Any) -> Any:
    """The members, each times its weight, summed leaf by leaf: a tree of one member's shapes."""
    return _jax.tree.map(partial(jnp.tensordot, weights, axes=1), stacked)


def accuracy(params: Any, x: Any, y: Any) -> Any:
    """The share of images that one network labels right."""
    return (logits(params, x).argmax(axis=0) == y).mean()


def jit(function: Any) -> Any:
    """`jax.jit`, whose own annotations are incomplete."""
    return _jax.jit(function)
