"""Masks and words of bits, which loops over compact data need, and which compilers do not make of plain arithmetic."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_numba: Any = numba
_types: Any = numba.types
_tools: Any = _numba.core.cgutils


@_numba.extending.intrinsic
def _not_zero(_: Any, numbers: Any, place: Any) -> Any:
    """Return a mask of the 64 numbers from `place` on (uint16): bit i says that number i of them is not 0."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ir = _tools.ir
        kind = ir.VectorType(ir.IntType(16), 64)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        loaded = builder.load(builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer()), align=2)
        return builder.bitcast(builder.icmp_unsigned("!=", loaded, ir.Constant(kind, None)), ir.IntType(64))

    return _types.uint64(numbers, _types.uint64), compute


def _not_zero_in_python(numbers: Any, place: Any) -> Any:
    """Stand in for `_not_zero` where Numba does not compile."""
    return np.packbits(numbers[int(place) : int(place) + 64] != 0, bitorder="little").view(np.uint64)[0]


@_numba.extending.intrinsic
def _trailing_zeros(_: Any, word: Any) -> Any:
    """Return how many bits of a word (uint64), from the lowest on, are 0."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], _tools.false_bit)

    return _types.uint64(_types.uint64), compute


def _trailing_zeros_in_python(word: Any) -> Any:
    """Stand in for `_trailing_zeros` where Numba does not compile."""
    return np.uint64((int(word) & -int(word)).bit_length() - 1 if word else 64)


@_numba.extending.intrinsic
def _bit_length(_: Any, word: Any) -> Any:
    """Return how many bits a word (uint64) has without its leading zeros."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(args[0].type(64), builder.ctlz(args[0], _tools.false_bit))

    return _types.uint64(_types.uint64), compute


def _bit_length_in_python(word: Any) -> Any:
    """Stand in for `_bit_length` where Numba does not compile."""
    return np.uint64(int(word).bit_length())


def _at(context: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), _tools.ir.IntType(64).as_pointer())


@_numba.extending.intrinsic
def _word_at(_: Any, data: Any, place: Any) -> Any:
    """Return the eight bytes of `data` (uint8) from `place` on as a word, the lowest first."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_at(context, builder, signature.args[0], *args), align=1)

    return _types.uint64(data, _types.uint64), compute


def _word_at_in_python(data: Any, place: Any) -> Any:
    """Stand in for `_word_at` where Numba does not compile."""
    return data[int(place) : int(place) + 8].view(np.uint64)[0]


@_numba.extending.intrinsic
def _put_word(_: Any, data: Any, place: Any, word: Any) -> Any:
    """Write a word to the eight bytes of `data` (uint8) from `place` on, the lowest first."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _at(context, builder, signature.args[0], *args[:2]), align=1)
        return context.get_dummy_value()

    return _types.void(data, _types.uint64, _types.uint64), compute


def _put_word_in_python(data: Any, place: Any, word: Any) -> None:
    """Stand in for `_put_word` where Numba does not compile."""
    data[int(place) : int(place) + 8].view(np.uint64)[0] = word


not_zero: Any
trailing_zeros: Any
bit_length: Any
word_at: Any
put_word: Any
if _numba.config.DISABLE_JIT:
    not_zero, trailing_zeros, bit_length = _not_zero_in_python, _trailing_zeros_in_python, _bit_length_in_python
    word_at, put_word = _word_at_in_python, _put_word_in_python
else:
    not_zero, trailing_zeros, bit_length = _not_zero, _trailing_zeros, _bit_length
    word_at, put_word = _word_at, _put_word
