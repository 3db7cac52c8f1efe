"""DLPack: the bytes of whatever exports them, by the standard's rules.

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
FLAGS = 24  # where they stand in a versioned one, in bytes
CODE = {PLAIN: 20, VERSIONED: 52}  # where the type's code stands
COPIED = 2  # the bit of the flags
UNSIGNED, NUMPY_CODES = 1, {0, 1, 2, 5, 6}  # of types: unsigned; all that NumPy knows

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_is_capsule = ctypes.pythonapi.PyCapsule_IsValid
_is_capsule.restype = ctypes.c_int
_is_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


def code_of(capsule: Any, name: bytes) -> ctypes.c_uint8:
    """The code of the type in a capsule of this name: the place itself, which may be written."""
    return ctypes.c_uint8.from_address(_pointer(capsule, name) + CODE[name])


class _Export:
    """A producer whose capsule is looked at before NumPy takes it."""

    def __init__(self, producer: Any) -> None:
        self.producer, self.kind = producer, type(producer).__name__

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.producer.__dlpack_device__()

    def __dlpack__(self, **wishes: Any) -> Any:
        try:
            capsule = self.producer.__dlpack__(**wishes)
        except TypeError as error:  # the standard's way to say that it does not know these wishes
            raise self._old() from error
        except (AttributeError, BufferError, RuntimeError, ValueError) as error:
            raise _unviewable(self.producer, str(error)) from error
        if not _is_capsule(capsule, VERSIONED):
            if _is_capsule(capsule, PLAIN):
                raise self._old()
            raise _unviewable(self.producer, f"its __dlpack__ gave {type(capsule).__name__}, not a capsule of DLPack")
        start = _pointer(capsule, VERSIONED)
        if ctypes.c_uint64.from_address(start + FLAGS).value & COPIED:
            raise ValueError(
                f"expected a view, got a copy that {self.kind} made; fix: wrap the array that owns the bytes"
            )
        code = code_of(capsule, VERSIONED)
        if code.value not in NUMPY_CODES:
            code.value = UNSIGNED
        return capsule

    def _old(self) -> ValueError:
        return ValueError(
            f"expected an export of DLPack 1.0, which says whether it may be written, got an older one of {self.kind}, "
            "which counts as read-only; fix: wrap a writable copy of it"
        )


def _unviewable(producer: Any, why: str) -> ValueError:
    return ValueError(
        f"expected memory that NumPy can view, got {type(producer).__name__}: {why}; "
        "fix: wrap a plain, dense array in host memory"
    )


def import_view(producer: Any) -> Array:
    """What a producer exports, as a NumPy array over the very bytes: a view, read-only if the producer says so.

    Raises `ValueError` for memory that is not the host's, for what the producer would have to copy or that NumPy
    cannot view, and for a producer that does not keep to the standard.
    """
    if isinstance(producer, jax.Array):
        raise ValueError(
            f"expected writable memory, got a {type(producer).__name__} of JAX, which is read-only; "
            "fix: wrap a writable copy of it"
        )
    try:
        device, _ = map(int, producer.__dlpack_device__())
    except (TypeError, ValueError) as error:
        raise _unviewable(producer, "its __dlpack_device__ gave no (device type, device)") from error
    if device not in HOST:
        raise ValueError(
            f"expected memory of the host, got {type(producer).__name__} on device type {device} of DLPack; "
            "fix: copy it to the host"
        )
    try:
        return np.from_dlpack(_Export(producer), copy=False)
    except (BufferError, RuntimeError) as error:
        raise _unviewable(producer, str(error)) from error
