"""What counts as a number: the leaves that live in a buffer, and how each is read as a NumPy array.

Numeric leaves are NumPy arrays and scalars, `jax.Array`s, torch tensors, Python numbers, shapes
(`jax.ShapeDtypeStruct`), and whatever else has a shape and a numeric dtype. What holds no numbers (functions, strings,
None, typed PRNG keys) *rides along*: it stays with the tree, takes no memory in the buffer and comes back unchanged.
What holds numbers in any other way is refused, so that they are not lost.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from flatstore.layout.dtypes import belongs_to, is_numeric, is_torch_tensor, torch_dtype
from flatstore.layout.hidden import refuse_hidden

_core: Any = jax.core
_jax_dtypes: Any = jax.dtypes

Array = np.ndarray[Any, np.dtype[Any]]


class Spec(NamedTuple):
    """The shape and dtype of a numeric leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The number of bytes that an array of this kind takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


def is_deleted(array: jax.Array) -> bool:
    """Whether the array was deleted or donated away; a value being traced never is."""
    return not isinstance(array, _core.Tracer) and array.is_deleted()


def spec_of(value: Any, path: str) -> Spec | None:
    """The shape and dtype of a leaf, or None if it rides along. Nothing is copied or computed.

    Python numbers take the dtype that JAX gives them (float32 with 64-bit types off). `path` is for the error:
    raises `TypeError` for arrays that hold no numbers or are masked, arrays that NumPy has no dtype or shape for, torch
    modules and other objects that hold numbers, `ValueError` for a deleted `jax.Array` or a Python integer that does
    not fit.
    """
    if isinstance(value, np.ndarray):
        _refuse_mask(value, path)
        if value.dtype == _jax_dtypes.float0:  # pyright: ignore[reportUnknownMemberType]
            return None  # what JAX gives as the gradient of an integer
        return _numeric_spec(value.shape, value.dtype, path)  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]
    if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
        return _python_spec(value, path)
    if isinstance(value, (str, bytes, type)):
        return None
    if isinstance(value, jax.Array):
        if is_deleted(value):
            raise ValueError(
                f"{path!r}: expected a jax.Array with its data, got one that was deleted or donated away; "
                "fix: pass the array that the donating call returned"
            )
    if belongs_to(value, "torch"):
        if is_torch_tensor(value):
            _refuse_mask(value, path)
            return _torch_spec(value, path)
        if hasattr(value, "named_parameters"):
            raise TypeError(
                f"{path!r}: expected a tree of arrays, got the torch module {type(value).__name__}; "
                "fix: fs.adopt(module), or pass dict(module.named_parameters())"
            )
    dtype = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if dtype is None or shape is None or isinstance(value, Mapping):
        refuse_hidden(value, path)
        return None
    try:
        if _jax_dtypes.issubdtype(dtype, _jax_dtypes.prng_key):
            return None
        kind, sizes = np.dtype(dtype), tuple(int(n) for n in shape)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{path!r}: expected an array of a dtype and a shape that NumPy has, got a {type(value).__name__} of dtype "
            f"{dtype} and shape {shape}; fix: pass its numbers as an array, such as np.asarray(x)"
        ) from error
    return _numeric_spec(sizes, kind, path)


def _refuse_mask(array: Any, path: str) -> None:
    cls: Any = type(array)  # pyright: ignore[reportUnknownVariableType]
    if issubclass(cls, np.ma.MaskedArray) or hasattr(cls, "get_mask"):  # the latter is torch's
        raise TypeError(
            f"{path!r}: expected an array without a mask, got a {cls.__name__}; "
            "fix: pass x.filled(value), or x.to_tensor(value) of torch"
        )


def _numeric_spec(shape: tuple[int, ...], dtype: np.dtype[Any], path: str) -> Spec:
    if not is_numeric(dtype):
        raise TypeError(
            f"{path!r}: expected an array of numbers, got dtype {dtype}; "
            "fix: convert it with .astype(...), or keep it out of the tree"
        )
    if any(n < 0 for n in shape):
        raise ValueError(f"{path!r}: expected axes of size >= 0, got shape {shape}; fix: name the size of each axis")
    return Spec(shape, dtype if dtype.isnative else dtype.newbyteorder("="))


def _torch_spec(tensor: Any, path: str) -> Spec:
    dtype = torch_dtype(tensor)
    if dtype is None or tensor.is_nested:
        raise TypeError(
            f"{path!r}: expected a torch tensor of a shape and dtype that NumPy has, "
            f"got {'a nested one' if tensor.is_nested else tensor.dtype}; "
            "fix: pass what tensor.dequantize(), .to(...) or .to_padded_tensor(0) gives"
        )
    return Spec(tuple(tensor.shape), dtype)


def _python_spec(value: complex, path: str) -> Spec:
    kind = next(base for base in type(value).__mro__ if base in (bool, int, float, complex))
    dtype = np.dtype(_jax_dtypes.result_type(kind))
    if kind is int and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"{path!r}: expected a Python integer that fits {dtype.name}, got {value}; "
            "fix: pass a NumPy integer of the width that you need"
        )
    return Spec((), dtype)


def as_numpy(value: Any, path: str) -> Array:
    """A numeric leaf as a NumPy array: a view wherever NumPy can have one (NumPy, JAX on CPU, torch on CPU).

    Raises `TypeError` for a shape without data, a masked array or an object that NumPy cannot read (SciPy's sparse
    matrices), `ValueError` for a torch tensor that is not in host memory or that NumPy cannot view (sparse, quantised,
    conjugate, negated).
    """
    if isinstance(value, np.ndarray):
        _refuse_mask(value, path)
        return value  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path!r}: expected an array, got only its shape; "
            "fix: pass arrays, or build from shapes with Store.zeros(Layout.from_tree(shapes))"
        )
    if is_torch_tensor(value):
        return _torch_as_numpy(value, path)
    if isinstance(value, (jax.Array, numbers.Number, np.generic)):
        return np.asarray(value)
    try:
        array, reason = np.asarray(value), None
    except (TypeError, ValueError, RuntimeError) as error:
        array, reason = np.array(None), error
    if not is_numeric(array.dtype) or array.shape != tuple(getattr(value, "shape", array.shape)):
        raise TypeError(
            f"{path!r}: expected an array that NumPy can read, got a {type(value).__name__}, of which it makes "
            f"{reason or f'{array.dtype}{list(array.shape)}'}; fix: pass what its toarray() or to_numpy() gives, or "
            "jax.ShapeDtypeStruct(shape, dtype) for a shape alone"
        ) from reason
    return array


def _torch_as_numpy(tensor: Any, path: str) -> Array:
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{path!r}: expected a torch tensor in host memory, got one on {tensor.device}; fix: pass tensor.cpu()"
        )
    import torch

    dtype = torch_dtype(tensor)
    try:
        if dtype is None:
            raise TypeError(f"NumPy has no {tensor.dtype}")
        if hasattr(np, dtype.name):
            return tensor.detach().numpy()
        # NumPy has no word for torch's bfloat16 and float8: read the same bytes as integers, then name them.
        return tensor.detach().view({1: torch.uint8, 2: torch.int16}[tensor.itemsize]).numpy().view(dtype)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{path!r}: expected a torch tensor that NumPy can view, got one that it cannot: {error}; "
            "fix: pass what tensor.to_dense(), .dequantize(), .resolve_conj() or .resolve_neg() gives"
        ) from error
