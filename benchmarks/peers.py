"""The ways to hold parameters that are compared: one table, each with the same verbs.

A peer is made from a tree {layer: {"w": array}}. A verb that it does not have, and a library that is not installed,
raise `NotImplementedError`, which asv understands as "skip".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs

Tree = dict[str, dict[str, Any]]


def make_tree(leaves: int, each: int) -> Tree:
    """A tree of `leaves` float32 arrays of `each` numbers."""
    return {f"layer_{i:05d}": {"w": np.full(each, i, np.float32)} for i in range(leaves)}


def mlp_shapes(layers: int, width: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of a multi-layer perceptron whose layers all have the same width."""
    shape = jax.ShapeDtypeStruct
    dense = {"kernel": shape((width, width), jnp.float32), "bias": shape((width,), jnp.float32)}
    return {f"dense_{i}": dense for i in range(layers)}


def mlp(params: Any, inputs: Any) -> Any:
    """A score of one such perceptron on a batch of inputs."""
    for layer in params.values():
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
    return inputs.mean()


class Peer:
    """The verbs."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.last = list(tree)[-1]

    def flatten(self) -> Any:
        """All parameters as one flat vector, ready to be read."""
        raise NotImplementedError(f"{type(self).__name__} has no flat vector")

    def unflatten(self) -> Any:
        """The tree of what the flat vector holds, ready to be read."""
        raise NotImplementedError(f"{type(self).__name__} has no tree")

    def access(self) -> Any:
        """One leaf of what the flat vector holds, the last."""
        return self.unflatten()[self.last]["w"]

    def lend(self) -> None:
        """JAX arrays with the values of the parameters: made, and deleted."""
        raise NotImplementedError(f"{type(self).__name__} does not lend")

    @staticmethod
    def temporaries(layers: int, width: int, members: int, batch: int) -> float:
        """What XLA adds to evaluate a population of perceptrons, as a multiple of it. Compiles, computes nothing."""
        raise NotImplementedError("no population")


class Flatstore(Peer):
    """Views of one buffer."""

    def __init__(self, tree: Tree) -> None:
        self.store = fs.Store.from_tree(tree)
        self.path = list(self.store)[-1]

    def flatten(self) -> Any:
        return self.store.flat

    def unflatten(self) -> Any:
        return self.store.tree

    def access(self) -> Any:
        return self.store[self.path]

    def lend(self) -> None:
        with self.store.lend("jax"):
            pass

    @staticmethod
    def temporaries(layers: int, width: int, members: int, batch: int) -> float:
        pop = fs.Population.zeros(fs.Layout.from_tree(mlp_shapes(layers, width)), members)
        with pop.lend("jax") as stacked:
            return _temporaries(mlp, pop.axes, stacked, batch, width)


class RavelPytree(Peer):
    """`jax.flatten_util.ravel_pytree` and the function that it returns."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(jax.tree.map(jnp.asarray, tree))
        self.vector, self.unravel = ravel_pytree(self.tree)

    def flatten(self) -> Any:
        return jax.block_until_ready(ravel_pytree(self.tree)[0])

    def unflatten(self) -> Any:
        return jax.block_until_ready(self.unravel(self.vector))

    def lend(self) -> None:
        _delete(self.unflatten())

    @staticmethod
    def temporaries(layers: int, width: int, members: int, batch: int) -> float:
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), mlp_shapes(layers, width))
        vector, unravel = ravel_pytree(zeros)
        matrix = jax.ShapeDtypeStruct((members, vector.size), vector.dtype)
        return _temporaries(lambda row, inputs: mlp(unravel(row), inputs), 0, matrix, batch, width)


class NumPy(Peer):
    """`np.concatenate` one way, slices the other way, `jax.device_put` into JAX."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self.vector = self.flatten()

    def flatten(self) -> Any:
        return np.concatenate([layer["w"].reshape(-1) for layer in self.tree.values()])

    def unflatten(self) -> Any:
        tree: Tree = {}
        start = 0
        for name, layer in self.tree.items():
            stop = start + layer["w"].size
            tree[name] = {"w": self.vector[start:stop].reshape(layer["w"].shape)}
            start = stop
        return tree

    def lend(self) -> None:
        _delete(jax.device_put(self.tree))


class Torch(Peer):
    """`parameters_to_vector` and `vector_to_parameters`; DLPack without a fence into JAX."""

    def __init__(self, tree: Tree) -> None:
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise NotImplementedError("torch is not installed") from error
        self.utils = torch.nn.utils
        self.parameters = [torch.nn.Parameter(torch.from_numpy(layer["w"].copy())) for layer in tree.values()]
        self.vector = self.flatten()

    def flatten(self) -> Any:
        return self.utils.parameters_to_vector(self.parameters).detach()

    def unflatten(self) -> Any:
        self.utils.vector_to_parameters(self.vector, self.parameters)
        return self.parameters

    def access(self) -> Any:
        return self.unflatten()[-1]

    def lend(self) -> None:
        _delete([jax.dlpack.from_dlpack(parameter.detach()) for parameter in self.parameters])


class Dlpack(Peer):
    """Bare `jax.dlpack.from_dlpack` of aligned NumPy views that are there already: no check, no fence."""

    def __init__(self, tree: Tree) -> None:
        self.views = list(fs.Store.from_tree(tree).values())

    def lend(self) -> None:
        for array in [jax.dlpack.from_dlpack(view, copy=False) for view in self.views]:
            array.delete()


def _delete(tree: Any) -> None:
    for array in jax.block_until_ready(jax.tree.leaves(tree)):
        array.delete()


def _temporaries(score: Callable[[Any, Any], Any], axes: Any, population: Any, batch: int, width: int) -> float:
    inputs = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    compiled = jax.jit(jax.vmap(score, in_axes=(axes, None))).lower(population, inputs).compile()
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(population))
    return compiled.memory_analysis().temp_size_in_bytes / nbytes


PEERS: dict[str, type[Peer]] = {
    "flatstore": Flatstore,
    "ravel_pytree": RavelPytree,
    "numpy": NumPy,
    "torch": Torch,
    "dlpack": Dlpack,
}
