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
    """Images as rows of 64 numbers, and their labels, in two parts that share no image."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    @classmethod
    def load(cls) -> Digits:
        """The data set, four fifths for training, classes in proportion. Raises `ImportError` without scikit-learn."""
        images, labels = require("sklearn.datasets", "demo").load_digits(return_X_y=True)
        split = require("sklearn.model_selection", "demo").train_test_split
        train_x, test_x, train_y, test_y = split(images, labels, test_size=0.2, random_state=0, stratify=labels)
        mean = train_x.mean(axis=0)
        scaled = [((x - mean) / 6).astype(np.float32) for x in (train_x, test_x)]
        return cls(scaled[0], train_y.astype(np.int32), scaled[1], test_y.astype(np.int32))

    def batch(self, size: int, seed: int, generation: int) -> tuple[Array, Array]:
        """`size` training images, each moved and blurred a little: the same for the same seed and generation."""
        rng: Any = np.random.default_rng((seed, generation))
        chosen: Array = rng.choice(len(self.train_x), size, replace=False)
        x = _moved(self.train_x[chosen], rng)
        blur = rng.standard_normal(x.shape, dtype=np.float32)
        return x + NOISE * blur, self.train_y[chosen]


def _moved(x: Array, rng: Any) -> Array:
    """Each image moved by a fraction of a pixel along both axes, between its neighbours; edges repeat."""
    images = x.reshape(-1, 8, 8)
    for axis in (1, 2):
        by = rng.uniform(-SHIFT, SHIFT, (len(images), 1, 1)).astype(np.float32)
        padded = np.pad(images, [(0, 0) if k != axis else (1, 1) for k in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(8) + k, axis=axis) for k in (0, 2))
        images = (1 - abs(by)) * images + np.maximum(by, 0) * before + np.maximum(-by, 0) * after
    return images.reshape(len(x), 64)


def layout_of_network(hidden: int) -> Layout:
    """Where the parameters of the network live: 64 inputs, `hidden` units, 10 classes."""
    f4 = np.float32
    return Layout.from_tree(
        {
            "Dense_0": {"kernel": jax.ShapeDtypeStruct((64, hidden), f4), "bias": jax.ShapeDtypeStruct((hidden,), f4)},
            "Dense_1": {"kernel": jax.ShapeDtypeStruct((hidden, 10), f4), "bias": jax.ShapeDtypeStruct((10,), f4)},
        }
    )


def initial_noise(hidden: int) -> Normal:
    """What a new network is drawn from: kernels of variance 1 / inputs, biases zero."""
    return Normal({"Dense_0/kernel": 64**-0.5, "Dense_1/kernel": hidden**-0.5, "*": 0})


def logits(params: Any, x: Any) -> Any:
    """The network: (images, 64) to (images, 10)."""
    hidden = jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def log_likelihood(params: Any, x: Any, y: Any) -> Any:
    """The fitness of one network: the mean log-probability that it gives the labels."""
    log_p = jax.nn.log_softmax(logits(params, x))
    return jnp.take_along_axis(log_p, y[:, None], axis=1).mean()


def fitness(stacked: Any, x: Any, y: Any) -> Any:
    """The fitness of every member, a few at a time so that their activations stay small: shape (members,)."""
    return _jax.lax.map(partial(log_likelihood, x=x, y=y), stacked, batch_size=16)


def jit(function: Any) -> Any:
    """`jax.jit`, whose own annotations are incomplete."""
    return _jax.jit(function)


def accuracy(params: Any, x: Any, y: Any) -> Any:
    """The share of images that one network labels right."""
    return (logits(params, x).argmax(axis=1) == y).mean()
