"""Stores of every kind, over one tree of torch's names. A kind is added to `KINDS`, in one line."""

from collections import OrderedDict

import jax
import numpy as np
import torch

import flatstore as fs
from flatstore.interop.torch import from_numpy
from flatstore.store import array_of

F4 = np.float32
SHAPES = {"b": (), "a.bias": (16,), "a.weight": (32, 24), "c.empty": (0, 3), "c.weight": (5_008,), "d.e.weight": (64,)}


def a_tree(dtypes=(F4,)):
    """Leaves by torch's names: of several sizes, one of no parameter, one 0-d, one that does not train."""
    rng = np.random.default_rng(0)
    shapes = enumerate(SHAPES.items())
    tree = {path: rng.uniform(-1, 1, shape).astype(dtypes[i % len(dtypes)]) for i, (path, shape) in shapes}
    return OrderedDict(tree, steps=np.arange(16, dtype="i4"))


def a_module(tree):
    """A module whose parameters, and buffers where they are integers, have these names and values."""
    root = torch.nn.Module()
    for path, value in tree.items():
        *owners, name = path.split(".")
        module = root
        for owner in owners:
            if owner not in dict(module.named_children()):
                module.add_module(owner, torch.nn.Module())
            module = module.get_submodule(owner)
        tensor = from_numpy(np.array(value)).clone()  # in memory of torch's
        if tensor.is_floating_point():
            module.register_parameter(name, torch.nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)
    return root


def heap(tree, folder):
    return fs.Store.from_tree(tree)


def wrapped(tree, folder):
    layout = fs.Layout.from_tree(tree)
    buffer = np.zeros(layout.nbytes + 64, np.uint8)
    store = fs.Store.wrap(buffer[-buffer.ctypes.data % 64 :], layout)
    store.assign(tree)
    return store


def file(tree, folder):
    fs.save(folder / "kind.safetensors", fs.Store.from_tree(tree))
    return fs.open(folder / "kind.safetensors", mode="r+")


def member(tree, folder):
    return fs.Population.from_tree(tree, 64)[32]  # where JAX can take it


def adopted(tree, folder):
    return fs.adopt(a_module(tree))


def spans(tree, folder):
    return fs.adopt(a_module(tree), move=False)


def on_jax(tree, folder):
    return fs.Store.from_tree(tree, device=jax.devices()[0])


def on_torch(tree, folder):
    return fs.Store.from_tree(tree, device="cpu")


ON_HOST = {kind.__name__: kind for kind in (wrapped, file, member, adopted, spans)}
"""Those whose leaves are NumPy views."""

KINDS = ON_HOST | {kind.__name__: kind for kind in (on_jax, on_torch)}


def kept(x):
    """A copy of every leaf of a store, or of a population."""
    return {path: np.array(as_array(x[path])) for path in x.layout.by_path}


def as_array(leaf):
    """A leaf of any kind as an array that NumPy and JAX take."""
    return array_of(leaf) if isinstance(leaf, torch.Tensor) else leaf


def address(leaf):
    """Where a leaf is; an empty one is nowhere."""
    leaf = as_array(leaf)
    if not leaf.size:
        return None
    return leaf.ctypes.data if isinstance(leaf, np.ndarray) else leaf.unsafe_buffer_pointer()


def addresses(store):
    """Where every leaf is."""
    return {path: address(x) for path, x in store.items()}


def same(one, other):
    """Whether two results have the same bits."""
    (leaves, tree), (others, their) = jax.tree.flatten(one), jax.tree.flatten(other)
    pairs = zip(leaves, others, strict=True)
    return tree == their and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
