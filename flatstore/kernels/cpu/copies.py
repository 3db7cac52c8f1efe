"""Parts of vectors into arrays of their own, where XLA says that they are.

XLA's foreign function interface gives addresses of *buffers*, structs that are read here as 64-bit words: word 3 is the
address of the data, 4 the number of axes, 5 the address of their sizes (`xla/ffi/api/c_api.h`).
"""

from __future__ import annotations

from typing import Any

import numba

from flatstore.kernels.compiler import compiled

_numba: Any = numba
_types: Any = numba.types


@_numba.extending.intrinsic
def _words(_: Any, address: Any) -> Any:
    """The 64-bit words at an address."""

    def pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return _types.CPointer(_types.int64)(_types.int64), pointer


@_numba.extending.intrinsic
def _bytes(_: Any, address: Any) -> Any:
    """The bytes at an address."""

    def pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return _types.CPointer(_types.uint8)(_types.int64), pointer


@compiled
def copy_parts(operands: int, number: int, results: int, count: int) -> None:
    """Copy a part of a vector into each result.

    Args:
        operands: the address of the addresses of buffers: vectors (N,) or matrices (P, N), and last a table with a row
            per result: (which operand, the first byte of the part, its bytes, the bytes of a row of that operand).
        number: how many operands there are.
        results: the address of the addresses of the results' buffers, which have P times the bytes of the part.
        count: how many results there are; of none, no address is read.
    """
    if count == 0:
        return
    inputs, outputs = _words(operands), _words(results)
    vector, table = _words(inputs[0]), _words(_words(inputs[number - 1])[3])
    sizes = _words(vector[5])
    members = 1
    for axis in range(vector[4] - 1):
        members *= sizes[axis]
    for i in range(count):
        source = _words(inputs[table[4 * i]])[3] + table[4 * i + 1]
        target = _words(outputs[i])[3]
        nbytes, row = table[4 * i + 2], table[4 * i + 3]
        for member in range(members):
            here, there = _bytes(source + member * row), _bytes(target + member * nbytes)
            for j in range(nbytes):
                there[j] = here[j]
