"""The names of dtypes in safetensors, and which leaves such a file can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from flatstore.files.header import Tensor
from flatstore.layout import Leaf, Spec
from flatstore.trees import Difference, StructureError

# Those whose values take whole bytes: F4 and F6 of safetensors share bytes, NumPy's do not.
_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
_BY_DTYPE = {np.dtype(name): short for short, name in _NAMES.items()}
_DTYPES: dict[str, np.dtype[Any]] = {short: dtype for dtype, short in _BY_DTYPE.items()}

_CONVERT = "convert the file with the library that wrote it"


def short_name(dtype: np.dtype[Any]) -> str:
    """The name of a dtype in safetensors.

    >>> short_name(np.dtype("float32"))
    'F32'
    """
    return _BY_DTYPE[dtype]


def check_savable(homes: Iterable[Leaf]) -> None:
    """Raise `StructureError` with each leaf whose dtype or name safetensors does not have."""
    homes = list(homes)
    unknown = [
        Difference(leaf.path, "a dtype of safetensors", leaf.dtype.name, "convert the leaf")
        for leaf in homes
        if leaf.dtype not in _BY_DTYPE
    ]
    if unknown:
        raise StructureError(unknown, "of a dtype that cannot be saved")
    unnamed = [
        Difference(leaf.path, "a name that safetensors can write", leaf.path, "rename the key")
        for leaf in homes
        if leaf.path == "__metadata__" or not is_text(leaf.path)
    ]
    if unnamed:
        raise StructureError(unnamed, "of a name that cannot be saved")


def is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can encode, without half of a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def specs_of(tensors: Iterable[Tensor]) -> dict[str, Spec]:
    """Shapes and dtypes by name. Raises `StructureError` with each that NumPy and JAX do not have."""
    specs: dict[str, Spec] = {}
    unknown: list[Difference] = []
    for name, short, shape, _, _ in tensors:
        dtype = _DTYPES.get(short)
        if dtype is None:
            unknown.append(Difference(name, "a dtype of NumPy or JAX", short, _CONVERT))
            continue
        specs[name] = Spec(shape, dtype)
        # NumPy counts the bytes of the other axes where one has no elements.
        if len(shape) > 64 or math.prod(filter(None, shape)) * dtype.itemsize >= 2**63:
            got = f"{len(shape)} axes" if len(shape) > 64 else str(shape)
            unknown.append(Difference(name, "a shape that NumPy can have, of at most 64 axes", got, _CONVERT))
    if unknown:
        raise StructureError(unknown, "of a kind that cannot be read")
    return specs
