"""Which dtypes are numbers, and of what kind; torch's by NumPy's names."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

_jax_dtypes: Any = jax.dtypes


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether values of `dtype` are numbers: booleans, integers, floats (bfloat16 and float8 too), complex.

    >>> is_numeric(np.dtype("bfloat16")), is_numeric(np.dtype("O")), is_numeric(np.dtype("M8[s]"))
    (True, False, False)
    """
    if dtype.kind == "V":
        return bool(dtype.names is None and _jax_dtypes.issubdtype(dtype, np.number))
    return dtype.kind in "biufc"


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is an integer, int4 and its kin included; booleans are not, nor are times.

    >>> is_integer(np.dtype("int4")), is_integer(np.dtype("bool")), is_integer(np.dtype("m8[s]"))
    (True, False, False)
    """
    return dtype.kind != "m" and bool(_jax_dtypes.issubdtype(dtype, np.integer))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a real floating type, bfloat16 and float8 included."""
    return bool(_jax_dtypes.issubdtype(dtype, np.floating))


def is_trainable_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is floating or complex: what trains unless somebody says otherwise."""
    return bool(_jax_dtypes.issubdtype(dtype, np.inexact))


def belongs_to(value: Any, library: str) -> bool:
    """Whether the type of `value`, or one that it inherits from, is a library's."""
    return any(cls.__module__.partition(".")[0] == library for cls in type(value).__mro__)


def is_torch_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is not imported to find out."""
    return belongs_to(value, "torch") and hasattr(value, "data_ptr") and hasattr(value, "dtype")


def torch_dtype(tensor: Any) -> np.dtype[Any] | None:
    """NumPy's dtype for that of a torch tensor, bfloat16 and float8 included; None where it has none (qint8)."""
    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(name) if hasattr(np, name) or name == "bfloat16" or name.startswith("float8_") else None
