"""Leaves into one vector, and a vector into leaves: the computations of `destructure` and `rebuild` in JAX.

```
traced                  concatenate        split              one operation each, and each the other's derivative
eager, on one CPU       concatenate        a custom call      nothing to compile for each leaf
eager, elsewhere        concatenate        split              compiled once per layout
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from flatstore.layout import Layout, as_numpy
from flatstore.memory import refuse_jax_at_the_end
from flatstore.trees import Difference, StructureError
from flatstore.vectors import custom_call

_core: Any = jax.core
_dtypes: Any = jax.dtypes
_jax: Any = jax
_jnp: Any = jnp


def pack(layout: Layout | None, leaves: Mapping[str, Any]) -> jax.Array:
    """The vector of leaves by path, on their device: a copy. Raises `ValueError` if they are on several devices."""
    refuse_jax_at_the_end()
    if layout is None:
        return _jnp.zeros(0, _jnp.float32)
    values = [_as_array(leaves[home.path], home.path) for home in layout.homes]
    places = {
        home.path: value.devices()
        for home, value in zip(layout.homes, values, strict=True)
        if isinstance(value, jax.Array) and not isinstance(value, _core.Tracer)
    }
    first = next(iter(places), "")
    expected = f"an array on {_named(places.get(first, set()))}, as {first!r}"
    apart = [
        Difference(path, expected, f"one on {_named(place)}", "move the tree to one device with jax.device_put")
        for path, place in places.items()
        if place != places[first]
    ]
    if apart:
        raise StructureError(apart, "on another device")
    vector = _concatenate(values, vector_dtype(layout))
    if len(places) < len(values) and not isinstance(vector, _core.Tracer):
        _jax.block_until_ready(vector)  # a NumPy array may be written as soon as this returns
    return vector


def _as_array(value: Any, path: str) -> Any:
    """A leaf as an array that jit accepts: in native byte order, and not a Python number, whose type would be weak."""
    if isinstance(value, jax.Array):
        return value
    array = as_numpy(value, path)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _named(devices: set[Any]) -> str:
    return ", ".join(sorted(f"{device.platform}:{device.id}" for device in devices))


@lru_cache(maxsize=256)
def dtypes_of(layout: Layout | None) -> tuple[np.dtype[Any], ...]:
    """The dtypes of the leaves, each once."""
    return tuple(dict.fromkeys(home.dtype for home in layout.homes)) if layout else ()


def vector_dtype(layout: Layout | None) -> np.dtype[Any]:
    """The dtype that holds all leaves, as JAX promotes them, with bfloat16 for one-byte floats, which it does not."""
    kinds = dtypes_of(layout) or (np.dtype(np.float32),)
    if len(kinds) > 1:
        kinds = tuple(np.dtype(_jnp.bfloat16) if kind.itemsize == 1 else kind for kind in kinds)
    return np.dtype(_dtypes.result_type(*kinds))


def unpack(layout: Layout, vector: jax.Array) -> Sequence[jax.Array]:
    """The leaves of the homes: copies. Outside of tracing and on one CPU, nothing is compiled for each of them."""
    traced = isinstance(vector, _core.Tracer)
    if traced or not _is_on_cpu(vector) or not _is_whole_bytes(layout) or not custom_call.available():
        return _split(layout, vector)
    leaves = _unpack(layout, vector)
    if isinstance(leaves[0], _core.Tracer):  # a constant inside jit, which may be compiled for another device
        return _split(layout, vector)
    leaves[0].block_until_ready()  # all of one call are ready at once
    return leaves


def _is_on_cpu(vector: jax.Array) -> bool:
    return [device.platform for device in vector.devices()] == ["cpu"]


@lru_cache(maxsize=256)
def _is_whole_bytes(layout: Layout) -> bool:
    """Whether each number takes whole bytes on the device too; float4 and its kin are packed there."""
    return all(kind.kind == "c" or _jnp.finfo(kind).bits == 8 * kind.itemsize for kind in dtypes_of(layout))


@partial(_jax.jit, static_argnums=1, inline=True)
def _concatenate(values: Sequence[Any], dtype: np.dtype[Any]) -> jax.Array:
    return _jnp.concatenate([_jnp.ravel(value).astype(dtype) for value in values])


@partial(_jax.jit, static_argnums=0, inline=True)
def _split(layout: Layout, vector: jax.Array) -> list[jax.Array]:
    """The homes' leaves by one split, whose derivative is one concatenation."""
    parts = _jax.lax.split(vector, [home.size for home in layout.homes], axis=vector.ndim - 1)
    shapes = [vector.shape[:-1] + home.shape for home in layout.homes]
    return [_as(part.reshape(shape), home.dtype) for part, shape, home in zip(parts, shapes, layout.homes, strict=True)]


@partial(_jax.jit, static_argnums=0)
def _unpack(layout: Layout, vector: jax.Array) -> list[jax.Array]:
    kinds = dtypes_of(layout)
    parts = [(kinds.index(home.dtype), home.index, home.spec) for home in layout.homes]
    return custom_call.copies([_as(vector, kind) for kind in kinds], parts)


def _as(array: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """`array.astype(dtype)`, of complex numbers their real part where the dtype is real."""
    return (array.real if array.dtype.kind == "c" and dtype.kind != "c" else array).astype(dtype)
