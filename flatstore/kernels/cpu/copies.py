"""Parts of vectors copied into arrays of their own, at the addresses that XLA gives.

XLA's foreign function interface gives addresses of *buffers*, structs that are read here as 64-bit words: word 3 is the
address of the data, 4 the number of axes, 5 the address of their sizes (`xla/ffi/api/c_api.h`).
"""

from __future__ import annotations

from typing import Any

import numba

from flatstore.kernels.compiler import compiled

_numba: Any = numba
_types: Any = numba.types


def _pointer_to(item: Any) -> Any:
    """A function for compiled loops that takes an address (int64) as a pointer to items of a Numba type."""

    @_numba.extending.intrinsic
    def at_address(_: Any, address: Any) -> Any:
        def pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return _types.CPointer(item)(_types.int64), pointer

    return at_address


_words, _bytes = _pointer_to(_types.int64), _pointer_to(_types.uint8)


@compiled
def copy_parts(operands: int, n_operands: int, results: int, n_results: int) -> None:
    """Copy a part of a vector into each result.

    Args:
        operands: the address of the addresses of buffers: vectors (N,) or matrices (P, N), and last a table with a row
            per result: (which operand, the first byte of the part, its bytes, the bytes of a row of that operand).
        n_operands: how many operands there are.
        results: the address of the addresses of the results' buffers, which have P times the bytes of the part.
        n_results: how many results there are. If it is 0, no address is read.
    """
    if n_results == 0:
        return
    inputs, outputs = _words(operands), _words(results)
    vector, table = _words(inputs[0]), _words(_words(inputs[n_operands - 1])[3])
    sizes = _words(vector[5])
    members = 1
    for axis in range(vector[4] - 1):
        members *= sizes[axis]
    for i in range(n_results):
        source = _words(inputs[table[4 * i]])[3] + table[4 * i + 1]
        target = _words(outputs[i])[3]
        nbytes, row = table[4 * i + 2], table[4 * i + 3]
        for member in range(members):
            here, there = _bytes(source + member * row), _bytes(target + member * nbytes)
            for j in range(nbytes):
                there[j] = here[j]
