"""NumPy views of memory that another library exports through DLPack, checked by the rules of the standard.

A producer is asked for a view (`copy=False`) in host memory, in a version that says whether it may be written. NumPy
imports it; types that NumPy cannot name (bfloat16, float8) come as unsigned integers of their width.

```
DLManagedTensorVersioned   version 8 | manager 8 | deleter 8 | flags 8 | data 8 | device 4 + 4 | ndim 4 | code 1 | ...
```

The source is the DLPack standard: https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import numpy as np

from flatstore.layout import Array

HOST = {1, 3, 11, 13}
"""The device types whose memory the host can use: CPU, CUDA pinned, ROCm pinned, CUDA managed."""

PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"
FLAGS_OFFSET = 24  # bytes from the start of a versioned tensor to its flags
CODE_OFFSETS = {PLAIN: 20, VERSIONED: 52}  # bytes to the code of the dtype, by the name of the capsule
COPIED = 2  # the flag that says that the producer made a copy
UNSIGNED, NUMPY_CODES = 1, {0, 1, 2, 5, 6}  # codes of dtypes: unsigned integers; all that NumPy can import

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_is_capsule = ctypes.pythonapi.PyCapsule_IsValid
_is_capsule.restype = ctypes.c_int
_is_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


def code_of(capsule: Any, name: bytes) -> ctypes.c_uint8:
    """The code of the dtype in a capsule of this name: setting its `value` changes the capsule."""
    return ctypes.c_uint8.from_address(_pointer(capsule, name) + CODE_OFFSETS[name])


class _Export:
    """A producer whose capsule is checked before NumPy imports it."""

    def __init__(self, producer: Any) -> None:
        self.producer, self.type_name = producer, type(producer).__name__

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.producer.__dlpack_device__()

    def __dlpack__(self, **keywords: Any) -> Any:
        try:
            capsule = self.producer.__dlpack__(**keywords)
        except TypeError as error:  # how the standard has a producer refuse keywords that it does not know
            raise self._outdated() from error
        except (AttributeError, BufferError, RuntimeError, ValueError) as error:
            raise _unviewable(self.producer, str(error)) from error
        if not _is_capsule(capsule, VERSIONED):
            if _is_capsule(capsule, PLAIN):
                raise self._outdated()
            raise _unviewable(self.producer, f"its __dlpack__ returned {type(capsule).__name__}, not a DLPack capsule")
        start = _pointer(capsule, VERSIONED)
        if ctypes.c_uint64.from_address(start + FLAGS_OFFSET).value & COPIED:
            raise ValueError(
                f"expected a view, got a copy that {self.type_name} made; fix: wrap the array that owns the bytes"
            )
        code = code_of(capsule, VERSIONED)
        if code.value not in NUMPY_CODES:
            code.value = UNSIGNED
        return capsule

    def _outdated(self) -> ValueError:
        return ValueError(
            "expected a DLPack 1.0 export, which says whether it may be written, "
            f"got an older one of {self.type_name}, which counts as read-only; fix: wrap a writable copy of it"
        )


def _unviewable(producer: Any, why: str) -> ValueError:
    return ValueError(
        f"expected memory that NumPy can view, got {type(producer).__name__}: {why}; "
        "fix: wrap a plain, dense array in host memory"
    )


def import_view(producer: Any) -> Array:
    """The memory that a producer exports, as a NumPy array: a view, read-only if the producer says so.

    Raises `ValueError` for memory that is not the host's, that the producer would have to copy or that NumPy cannot
    view, and for a producer that does not keep to the standard.
    """
    if isinstance(producer, jax.Array):
        raise ValueError(
            f"expected writable memory, got a {type(producer).__name__} of JAX, which is read-only; "
            "fix: wrap a writable copy of it, np.array(x)"
        )
    try:
        device, _ = map(int, producer.__dlpack_device__())
    except (TypeError, ValueError) as error:
        raise _unviewable(producer, "its __dlpack_device__ did not return (device type, device)") from error
    if device not in HOST:
        raise ValueError(
            f"expected memory of the host, got {type(producer).__name__} on DLPack device type {device}; "
            "fix: copy it to the host"
        )
    try:
        return np.from_dlpack(_Export(producer), copy=False)
    except (BufferError, RuntimeError) as error:
        raise _unviewable(producer, str(error)) from error
