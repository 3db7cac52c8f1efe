"""The ways to hold parameters: a flat vector, a tree, a leaf, a lend to JAX, and a population that JAX evaluates.

A peer is made from a tree {layer: {"w": array}}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs
from flatstore import bench

from .peer import Peer, shapes, tree_of

Look = Callable[[Any], object]
Planned = tuple[Any, ...]
"""A jitted function and the shapes of its arguments, the population first."""


def perceptron(layers: int, width: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of a multi-layer perceptron whose layers all have the same width."""
    shape = jax.ShapeDtypeStruct
    dense = {"kernel": shape((width, width), jnp.float32), "bias": shape((width,), jnp.float32)}
    return {f"dense_{i}": dense for i in range(layers)}


def score(params: Any, inputs: Any) -> Any:
    """A score of one such perceptron on a batch of inputs."""
    for layer in params.values():
        inputs = jnp.tanh(inputs @ layer["kernel"] + layer["bias"])
    return inputs.mean()


class Holding(Peer):
    """The verbs."""

    def __init__(self, tree: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.tree = tree

    def flatten(self) -> Any:
        """All parameters as one flat vector, ready to be read."""
        raise NotImplementedError(f"{type(self).__name__} has no flat vector")

    def unflatten(self) -> Any:
        """The tree of what the flat vector holds, ready to be read."""
        raise NotImplementedError(f"{type(self).__name__} has no tree")

    def access(self) -> Any:
        """One leaf of what the flat vector holds, the last."""
        return self.unflatten()[list(self.tree)[-1]]["w"]

    def lend(self, look: Look = len) -> None:
        """JAX arrays with the values of the parameters: made, looked at, and deleted."""
        raise NotImplementedError(f"{type(self).__name__} does not lend")

    def held(self) -> Any:
        """The arrays that hold what is lent."""
        return self.tree

    def copied(self) -> int:
        """The bytes of a lend that lie elsewhere than what is lent."""
        home, found = set(bench.addresses(self.held()).values()), []
        self.lend(lambda lent: found.extend(x for x in jax.tree.leaves(lent) if x.unsafe_buffer_pointer() not in home))
        return sum(x.nbytes for x in found)

    @staticmethod
    def fill(leaves: int, size: int) -> Any:
        """The flat vector of so many parameters that are made leaf by leaf."""
        raise NotImplementedError("nothing is filled")

    @staticmethod
    def evaluated(layers: int, width: int, members: int, batch: int) -> Planned:
        """The evaluation of a population of perceptrons on a batch."""
        raise NotImplementedError("no population")


class Flatstore(Holding):
    """Views of one buffer."""

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self.store = fs.Store.from_tree(tree)
        self.path = list(self.store)[-1]

    def flatten(self) -> Any:
        return self.store.flat

    def unflatten(self) -> Any:
        return self.store.tree

    def access(self) -> Any:
        return self.store[self.path]

    def lend(self, look: Look = len) -> None:
        with self.store.lend("jax") as lent:
            look(lent)

    def held(self) -> Any:
        return self.store.tree

    @staticmethod
    def fill(leaves: int, size: int) -> Any:
        store = fs.Store.zeros(fs.Layout.from_tree(shapes(leaves, size)))
        store.assign((leaf.path, np.full(leaf.shape, i, leaf.dtype)) for i, leaf in enumerate(store.layout.leaves))
        return store.flat

    @staticmethod
    def evaluated(layers: int, width: int, members: int, batch: int) -> Planned:
        pop = fs.Population.zeros(fs.Layout.from_tree(perceptron(layers, width)), members)
        with pop.lend("jax") as stacked:
            lent = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stacked)
        return _planned(score, pop.axes, lent, batch, width)


class RavelPytree(Holding):
    """`jax.flatten_util.ravel_pytree` and the function that it returns."""

    ravel = staticmethod(ravel_pytree)

    def __init__(self, tree: Any) -> None:
        super().__init__(jax.tree.map(jnp.asarray, tree))
        self.vector, self.unravel = self.ravel(self.tree)

    def flatten(self) -> Any:
        return jax.block_until_ready(self.ravel(self.tree)[0])

    def unflatten(self) -> Any:
        return jax.block_until_ready(self.unravel(self.vector))

    def lend(self, look: Look = len) -> None:
        _delete(self.unflatten(), look)

    def held(self) -> Any:
        return self.vector

    @staticmethod
    def fill(leaves: int, size: int) -> Any:
        return jax.block_until_ready(ravel_pytree(tree_of(leaves, size // leaves))[0])

    @staticmethod
    def evaluated(layers: int, width: int, members: int, batch: int) -> Planned:
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), perceptron(layers, width))
        vector, unravel = ravel_pytree(zeros)
        matrix = jax.ShapeDtypeStruct((members, vector.size), vector.dtype)
        return _planned(lambda row, inputs: score(unravel(row), inputs), 0, matrix, batch, width)


class Destructure(RavelPytree):
    """`fs.destructure`, which has the same two halves."""

    ravel = staticmethod(fs.destructure)


class NumPy(Holding):
    """`np.concatenate` one way, slices the other way, `jax.device_put` into JAX."""

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self.vector = self.flatten()

    def flatten(self) -> Any:
        return np.concatenate([layer["w"].reshape(-1) for layer in self.tree.values()])

    def unflatten(self) -> Any:
        tree: Any = {}
        start = 0
        for name, layer in self.tree.items():
            stop = start + layer["w"].size
            tree[name] = {"w": self.vector[start:stop].reshape(layer["w"].shape)}
            start = stop
        return tree

    def lend(self, look: Look = len) -> None:
        _delete(jax.device_put(self.tree), look)

    @staticmethod
    def fill(leaves: int, size: int) -> Any:
        return NumPy(tree_of(leaves, size // leaves)).vector


class Torch(Holding):
    """`parameters_to_vector` and `vector_to_parameters`; DLPack without a fence into JAX."""

    library = "torch"

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        import torch

        self.utils = torch.nn.utils
        self.parameters = [torch.nn.Parameter(torch.from_numpy(layer["w"].copy())) for layer in tree.values()]
        self.vector = self.flatten()

    def flatten(self) -> Any:
        return self.utils.parameters_to_vector(self.parameters).detach()

    def unflatten(self) -> Any:
        self.utils.vector_to_parameters(self.vector, self.parameters)
        return {name: {"w": parameter} for name, parameter in zip(self.tree, self.parameters, strict=True)}

    def lend(self, look: Look = len) -> None:
        _delete([jax.dlpack.from_dlpack(parameter.detach()) for parameter in self.parameters], look)

    def held(self) -> Any:
        return self.parameters


class Dlpack(Holding):
    """Bare `jax.dlpack.from_dlpack` of aligned NumPy views that are there already: no check, no fence."""

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self.views = list(fs.Store.from_tree(tree).values())

    def lend(self, look: Look = len) -> None:
        arrays = [jax.dlpack.from_dlpack(view, copy=False) for view in self.views]
        look(arrays)
        for array in arrays:
            array.delete()

    def held(self) -> Any:
        return self.views


def _delete(tree: Any, look: Look) -> None:
    look(tree)
    for array in jax.block_until_ready(jax.tree.leaves(tree)):
        array.delete()


def _planned(one: Any, axes: Any, population: Any, batch: int, width: int) -> Planned:
    inputs = jax.ShapeDtypeStruct((batch, width), jnp.float32)
    return jax.jit(jax.vmap(one, in_axes=(axes, None))), population, inputs


PEERS: dict[str, type[Holding]] = {
    "flatstore": Flatstore,
    "destructure": Destructure,
    "ravel_pytree": RavelPytree,
    "numpy": NumPy,
    "torch": Torch,
}
