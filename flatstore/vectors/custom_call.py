"""Many copies out of a vector, as one call of XLA on CPU, so that nothing is compiled for each copy.

XLA compiles a loop for every slice of a vector, some 8 ms each, although all that happens is a copy of bytes. A custom
call with many results has nothing to compile: XLA hands over the addresses of its operands and results, and one loop
copies. XLA's foreign function interface is a stable binary one, described in `xla/ffi/api/c_api.h` (a file in
`jax.ffi.include_dir()`); its structs are read here as 64-bit words:

```
call frame   0 size | 1 extension | 2 api | 3 context | 4 stage | 5 args (5 words) | 10 results (5 words) | ...
args         0 size | 1 extension | 2 count | 3 types | 4 addresses of buffers
buffer       0 size | 1 extension | 2 dtype | 3 address of the data | 4 rank | 5 dims
```
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np

from flatstore.kernels.cpu import copy_parts
from flatstore.layout import Spec

_ffi: Any = jax.ffi
_jax: Any = jax

TARGET = "flatstore_copies"

_METADATA = 1  # the extension by which XLA asks a handler for its version
_VERSION = 1 << 32  # 0.1, as two words of 32 bits: XLA refuses a handler of a version whose structs it no longer has
_INTERNAL = 13  # XLA's code for an internal error

_Word = ctypes.c_int64
_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


def _words(address: int, count: int) -> Any:
    return (_Word * count).from_address(address)


@_Handler
def _handler(address: int) -> Any:
    frame = _words(address, 15)
    if frame[1]:
        extension = _words(frame[1], 4)
        if extension[1] & 0xFFFFFFFF == _METADATA:
            _words(extension[3], 4)[3] = _VERSION
        return None
    try:
        copy_parts(frame[9], frame[7], frame[14], frame[12])
    except BaseException as error:  # an exception cannot cross XLA: it becomes XLA's own
        message = ctypes.create_string_buffer(f"flatstore: {type(error).__name__} {error}".encode())
        return _CreateError(_words(frame[2], 7)[6])((_Word * 4)(32, 0, ctypes.addressof(message), _INTERNAL))
    return None


@cache
def available() -> bool:
    """Whether XLA takes the call on CPU: it still has the structs that this file was written for.

    False, too, where Numba compiles nothing (NUMBA_DISABLE_JIT): plain Python cannot read an address.
    """
    if not hasattr(copy_parts, "py_func"):
        return False
    copy_parts(0, 0, 0, 0)  # compiled, or loaded, now and not while XLA waits
    _jax.devices("cpu")  # XLA refuses what it cannot take now, and not when it starts
    try:
        _ffi.register_ffi_target(TARGET, _ffi.pycapsule(_handler), platform="cpu")
    except RuntimeError:
        return False
    return True


def copies(vectors: Sequence[jax.Array], parts: Sequence[tuple[int, int, Spec]]) -> list[jax.Array]:
    """Copies of parts of vectors, each part a (vector's number, first element, spec). For use inside jit, on CPU.

    The vectors have shape (N,) or (P, N), all the same; a part of them `shape` or (P, *shape). Not differentiable.
    """
    leading = vectors[0].shape[:-1]
    table = [
        (source, first * spec.dtype.itemsize, spec.nbytes, vectors[source].shape[-1] * spec.dtype.itemsize)
        for source, first, spec in parts
    ]
    results = [jax.ShapeDtypeStruct((*leading, *spec.shape), spec.dtype) for _, _, spec in parts]
    # As 32-bit halves: with the 64-bit types off there are no others.
    halves = np.array(table, np.int64).reshape(-1).view(np.int32)
    return list(_ffi.ffi_call(TARGET, results)(*vectors, halves))
