"""Asking for memory before it is needed: while a loop computes, the processor fetches what the next one will write.

Hardware guesses what comes next from what came before, but not across the pause in which a block of random numbers is
drawn: the memory is idle then, and the processor waits for it afterwards.
"""

from __future__ import annotations

from typing import Any

import numba

_numba: Any = numba
_types: Any = numba.types


@_numba.extending.intrinsic
def _prefetch(_: Any, array: Any, place: Any) -> Any:
    """Ask for the cache line (64 bytes) of an element that is written soon. A place outside the array is no error."""

    def ask(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tools = _numba.core.cgutils
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        element = builder.bitcast(builder.gep(data, [args[1]]), tools.voidptr_t)
        number = tools.int32_t
        kind = tools.ir.FunctionType(tools.ir.VoidType(), [tools.voidptr_t, number, number, number])
        call = tools.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(call, [element, number(1), number(3), number(1)])  # to write, into the nearest cache, data
        return context.get_dummy_value()

    return _types.void(array, place), ask


def _do_nothing(array: Any, place: Any) -> None:
    """Stand in for `_prefetch` where Numba does not compile."""


fetch: Any = _do_nothing if _numba.config.DISABLE_JIT else _prefetch
