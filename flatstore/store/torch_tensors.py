"""Tensors of torch for leaves of a layout, and as arrays of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Layout, Leaf, spec_of
from flatstore.store.placement import Placement


def leaves_in(buffer: Any, layout: Layout, placement: Placement, size: int | None) -> dict[str, Any]:
    """The homes of a layout as views of a buffer."""
    leaves: dict[str, Any] = {}
    for leaf in layout.homes:
        shape = (size, *leaf.shape) if size is not None and leaf.trainable else leaf.shape
        start = placement.places[leaf.path].offset
        flat = buffer[start : start + math.prod(shape) * leaf.dtype.itemsize]
        leaves[leaf.path] = flat.view(torch_dtype_of(leaf)).view(shape)
    return leaves


def torch_dtype_of(leaf: Leaf) -> Any:
    """The dtype of torch for a leaf. Raises `ValueError` where torch has none."""
    dtype = getattr(require("torch", "torch"), leaf.dtype.name, None)
    if dtype is None:
        raise ValueError(
            f"{leaf.path!r}: expected a dtype that torch has, got {leaf.dtype.name}; fix: convert the leaf"
        )
    return dtype


def numpy_dtype_of(tensor: Any) -> np.dtype[Any]:
    """The dtype of NumPy for a tensor."""
    spec = spec_of(tensor, "")
    assert spec is not None
    return spec.dtype


def array_of(tensor: Any) -> Array:
    """A tensor in host memory as a NumPy array, bfloat16 and float8 included: a view."""
    torch, dtype = require("torch", "torch"), numpy_dtype_of(tensor)
    if hasattr(np, dtype.name):
        return tensor.detach().numpy()
    return tensor.detach().view({1: torch.uint8, 2: torch.int16}[tensor.itemsize]).numpy().view(dtype)


def tensor_of(array: Any, dtype: np.dtype[Any]) -> Any:
    """An array, converted to a dtype, as a tensor in host memory: a copy."""
    torch, copied = require("torch", "torch"), np.array(array, dtype, order="C")
    plain = copied if hasattr(np, dtype.name) else copied.view(f"u{dtype.itemsize}")
    return torch.from_numpy(plain).view(getattr(torch, dtype.name))
