"""Tensors of torch for leaves of a layout, and as arrays of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Layout, Leaf, spec_of
from flatstore.store.placement import Placement


def check_device(device: Any) -> None:
    """Raise `ValueError` for a device of torch that has no kernels here, or is not there."""
    torch = require("torch", "torch")
    fix = "pass 'cpu', 'cuda' or 'cuda:1' for torch, or jax.devices()[0]"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected a device of torch, got {device!r}; fix: {fix}") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"expected host memory or a card that Triton's kernels run on, got {device!r}; fix: {fix}")
    cards = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= cards:
        raise ValueError(
            f"expected a device that is there, got {device!r}, where torch finds {cards} of the kind; "
            "fix: pass another, or install the torch that is built for the card"
        )


def leaves_in(buffer: Any, layout: Layout, placement: Placement, size: int | None) -> dict[str, Any]:
    """The homes of a layout as views of a buffer."""
    leaves: dict[str, Any] = {}
    for leaf in layout.homes:
        shape = (size, *leaf.shape) if size is not None and leaf.trainable else leaf.shape
        start = placement.places[leaf.path].offset
        flat = buffer[start : start + math.prod(shape) * leaf.dtype.itemsize]
        leaves[leaf.path] = flat.view(torch_dtype_of(leaf)).view(shape)
    return leaves


def writable(tensor: Any) -> Any:
    """A tensor that can be written whether or not torch is in inference mode, over the same bytes: a view."""
    if not tensor.is_inference():
        return tensor
    torch = require("torch", "torch")
    with torch.inference_mode(False):
        place = tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*place)


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
