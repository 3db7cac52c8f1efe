"""Asking for memory before it is needed: while a loop computes, the processor brings what the next one will write.

Hardware guesses what comes next from what came before, but not across the pause in which a block of random numbers is
drawn: memory rests then, and is waited for afterwards.
"""

from __future__ import annotations

from typing import Any

import numba

_numba: Any = numba
_types: Any = numba.types


@_numba.extending.intrinsic
def _prefetch(_: Any, array: Any, place: Any) -> Any:
    """Ask for the cache line (64 bytes) of an element, to be written soon. Any place will do, also past the end."""

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


def _nothing(array: Any, place: Any) -> None:
    """What stands in for it where Numba compiles nothing."""


fetch = _nothing if _numba.config.DISABLE_JIT else _prefetch
