"""What counts as a number: the leaves that live in a buffer, and how each is read as a NumPy array.

Numeric leaves are NumPy arrays and scalars, `jax.Array`s, torch tensors, Python numbers, shapes
(`jax.ShapeDtypeStruct`), and whatever else has a shape and a numeric dtype. Everything else (functions, strings, None,
typed PRNG keys) *rides along*: it stays with the tree, takes no memory in the buffer and comes back unchanged.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

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


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype` are numbers: booleans, integers, floats (bfloat16 and float8 too), complex.

    >>> is_numeric(np.dtype("bfloat16")), is_numeric(np.dtype("O")), is_numeric(np.dtype("M8[s]"))
    (True, False, False)
    """
    if dtype.kind == "V":
        return bool(dtype.names is None and _jax_dtypes.issubdtype(dtype, np.number))
    return dtype.kind in "biufc"


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is an integer, int4 and its kin included; booleans are not."""
    return bool(_jax_dtypes.issubdtype(dtype, np.integer))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a real floating type, bfloat16 and float8 included."""
    return bool(_jax_dtypes.issubdtype(dtype, np.floating))


def is_trainable_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is floating or complex: what trains unless somebody says otherwise."""
    return bool(_jax_dtypes.issubdtype(dtype, np.inexact))


def is_deleted(array: jax.Array) -> bool:
    """Whether the array was deleted or donated away; a value being traced never is."""
    return not isinstance(array, _core.Tracer) and array.is_deleted()


def _belongs_to(value: Any, library: str) -> bool:
    return any(cls.__module__.partition(".")[0] == library for cls in type(value).__mro__)


def is_torch_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    return _belongs_to(value, "torch") and hasattr(value, "data_ptr") and hasattr(value, "dtype")


def torch_dtype(tensor: Any) -> np.dtype[Any] | None:
    """NumPy's dtype for that of a torch tensor, bfloat16 and float8 included; None where it has none (qint8)."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(name) if hasattr(np, name) or name == "bfloat16" or name.startswith("float8_") else None


def spec_of(value: Any, path: str) -> Spec | None:
    """The shape and dtype of a leaf, or None if it rides along. Nothing is copied or computed.

    Python numbers take the dtype that JAX gives them (float32 with 64-bit types off). `path` is for the error:
    raises `TypeError` for arrays that hold no numbers, torch tensors that NumPy has no dtype or shape for and torch
    modules, `ValueError` for a deleted `jax.Array` or a Python integer that does not fit.
    """
    if isinstance(value, np.ndarray):
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
    if _belongs_to(value, "torch"):
        if is_torch_tensor(value):
            return _torch_spec(value, path)
        if hasattr(value, "named_parameters"):
            raise TypeError(
                f"{path!r}: expected a tree of arrays, got the torch module {type(value).__name__}; "
                "fix: fs.adopt(module), or pass dict(module.named_parameters())"
            )
    dtype = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if dtype is None or shape is None:
        return None
    if _jax_dtypes.issubdtype(dtype, _jax_dtypes.prng_key):
        return None
    return _numeric_spec(tuple(int(n) for n in shape), np.dtype(dtype), path)


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

    Raises `TypeError` for a shape without data, `ValueError` for a torch tensor that is not in host memory or that
    NumPy cannot view (sparse, quantised, conjugate, negated).
    """
    if isinstance(value, np.ndarray):
        return value  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path!r}: expected an array, got only its shape; "
            "fix: pass arrays, or build from shapes with Store.zeros(Layout.from_tree(shapes))"
        )
    if is_torch_tensor(value):
        return _torch_as_numpy(value, path)
    return np.asarray(value)


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
