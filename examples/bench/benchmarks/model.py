"""A model of Flax, and two ways to scale its parameters: by a flat vector, and in a store's memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs


class Network(nn.Module):
    """Two dense layers."""

    width: int

    @nn.compact
    def __call__(self, x):
        """The class scores of a batch of images."""
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x)))


def params_of(width):
    """The parameters of a network of this width."""
    return Network(width).init(jax.random.key(0), jnp.zeros((1, 784)))["params"]


def by_a_flat_vector(params):
    """The parameters times 0.9, by way of a flat vector: a copy there, and a copy back."""
    flat, unravel = ravel_pytree(params)
    return jax.block_until_ready(unravel(0.9 * flat))


def in_place(store):
    """The same, in a store's memory."""
    store.flat[:] *= np.float32(0.9)
    return store


def store_of(width):
    """The parameters in a store."""
    return fs.Store.from_tree(params_of(width))
