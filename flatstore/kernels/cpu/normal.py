"""Whole numbers from random bits, in vector instructions: the bits of `flatstore/noise/normal.py`.

Compilers turn plain loops into vector instructions, but not this one into those for the upper halves of 16-bit
products, of which it takes eight. So it is written in the compiler's own language, 32 numbers at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from flatstore.noise import BEND, MIDDLE, RATE, normals

_numba: Any = numba
_types: Any = numba.types
_tools: Any = _numba.core.cgutils

AT_ONCE = 32
"""The numbers that are made at a time: those of 16 words."""


_INSTRUCTIONS = {
    "+avx512bw": (32, "llvm.x86.avx512.pmulh.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    "+avx2": (16, "llvm.x86.avx2.pmulh.w", "llvm.x86.avx2.pmadd.wd"),
}
"""For features of a processor: numbers in a vector, the upper halves of products, sums of the products of pairs."""


class _Vectors:
    """Arithmetic on vectors of 16-bit numbers, or of the words that each hold two of them."""

    def __init__(self, context: Any, builder: Any) -> None:
        ir, features = _tools.ir, context.codegen().magic_tuple()[2].split(",")
        known = next((_INSTRUCTIONS[x] for x in _INSTRUCTIONS if x in features), (AT_ONCE, None, None))
        self.count, self._high, self._pairs = known
        self._ir, self._b = ir, builder
        self.short, self.word = (
            ir.VectorType(ir.IntType(16), self.count),
            ir.VectorType(ir.IntType(32), self.count // 2),
        )
        self._real, self._wide = (
            ir.VectorType(ir.FloatType(), self.count // 2),
            ir.VectorType(ir.IntType(32), self.count),
        )

    def of(self, value: int, kind: Any = None) -> Any:
        """A vector of one number, in two's complement."""
        kind = kind or self.short
        return self._ir.Constant(
            kind, [self._ir.Constant(kind.element, value % (1 << kind.element.width))] * kind.count
        )

    def high(self, a: Any, b: Any) -> Any:
        """The upper halves of products, rounded down."""
        if self._high:
            return self._call(self._high, self.short, a, b)
        return self._b.trunc(self._b.ashr(self._product(a, b), self.of(16, self._wide)), self.short)

    def pairs(self, a: Any, b: Any) -> Any:
        """For each word the products of both numbers in it, added."""
        if self._pairs:
            return self._call(self._pairs, self.word, a, b)
        product, undefined = self._product(a, b), self._ir.Constant(self._wide, self._ir.Undefined)
        places = (self._ir.Constant(self.word, list(range(at, self.count, 2))) for at in (0, 1))
        return self._b.add(*(self._b.shuffle_vector(product, undefined, at) for at in places))

    def _product(self, a: Any, b: Any) -> Any:
        return self._b.mul(self._b.sext(a, self._wide), self._b.sext(b, self._wide))

    def _call(self, name: str, kind: Any, a: Any, b: Any) -> Any:
        function = self._ir.FunctionType(kind, [self.short, self.short])
        return self._b.call(_tools.get_or_insert_function(self._b.module, function, name), [a, b])

    def leading_bits(self, words: Any) -> Any:
        """The bits of words as float32, which are exact without their last six bits."""
        exact = self._b.and_(words, self.of(-64, self.word))
        return self._b.bitcast(self._b.sitofp(exact, self._real), self.word)


def _normals_of(words: Any, v: _Vectors, b: Any) -> Any:
    """The normal numbers, 16 bits each, of a vector of words."""
    c, word, high = v.of, v.word, v.high
    u = b.bitcast(b.xor(words, c(0x80008000, word)), v.short)
    below = b.bitcast(b.sub(c(-1), u), word)
    halves = [b.bitcast(b.and_(below, c(mask, word)), v.short) for mask in (0xFFFF, 0xFFFF0000)]
    first, second = (v.leading_bits(b.add(c(1 << 30, word), v.pairs(u, half))) for half in halves)
    first = b.and_(b.lshr(first, c(11, word)), c(0xFFFF, word))
    second = b.and_(b.shl(second, c(5, word)), c(0xFFFF0000, word))
    t = b.sub(c(MIDDLE), b.bitcast(b.or_(first, second), v.short))
    middle = b.shl(t, c(4))
    bend = b.add(c(BEND[0]), high(middle, c(BEND[1])))
    t = b.sub(t, high(b.sub(c(16384), high(middle, middle)), bend))
    rate = c(RATE[-1])
    for constant in RATE[-2::-1]:
        rate = b.add(c(constant), high(rate, t))
    return high(b.or_(u, c(1)), rate)


@_numba.extending.intrinsic
def _normal_block(_: Any, words: Any, row: Any, first: Any, out: Any, place: Any) -> Any:
    """Write the normal numbers of the 16 words from `words[row, first]` on to `out`, from `place` on."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = _Vectors(context, builder)
        given, made = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3))
        row = builder.mul(args[1], builder.extract_value(given.strides, 0))
        bytes_of_row = builder.gep(builder.bitcast(given.data, _tools.voidptr_t), [row])
        first = builder.gep(builder.bitcast(bytes_of_row, given.data.type), [args[2]])
        for at in range(0, AT_ONCE, v.count):
            words = builder.bitcast(builder.gep(first, [args[2].type(at // 2)]), v.word.as_pointer())
            numbers = _normals_of(builder.load(words, align=4), v, builder)
            place = builder.gep(made.data, [builder.add(args[4], args[4].type(at))])
            builder.store(numbers, builder.bitcast(place, v.short.as_pointer()), align=2)
        return context.get_dummy_value()

    return _types.void(words, _types.intp, _types.uint64, out, _types.uint64), write


def _normal_block_in_python(words: Any, row: int, first: Any, out: Any, place: Any) -> None:
    """Stand in for `_normal_block` where Numba does not compile."""
    first, place = int(first), int(place)
    numbers = words[row, first : first + AT_ONCE // 2].view(np.uint16)
    out[place : place + AT_ONCE] = normals(numbers)


normal_block: Any = _normal_block_in_python if _numba.config.DISABLE_JIT else _normal_block


@_numba.extending.intrinsic
def _sign_block(_: Any, word: Any, out: Any, place: Any) -> Any:
    """Write the bits of a word to `out` from `place` on: 0 or -1, int8."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        ir = _tools.ir
        made = context.make_array(signature.args[1])(context, builder, args[1])
        signs = builder.sext(
            builder.bitcast(args[0], ir.VectorType(ir.IntType(1), 32)), ir.VectorType(ir.IntType(8), 32)
        )
        place = builder.gep(made.data, [args[2]])
        builder.store(signs, builder.bitcast(place, signs.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return _types.void(_types.uint32, out, _types.uint64), write


def _sign_block_in_python(word: Any, out: Any, place: Any) -> None:
    """Stand in for `_sign_block` where Numba does not compile."""
    bits = np.unpackbits(np.array([word], "<u4").view(np.uint8), bitorder="little")
    out[int(place) : int(place) + 32] = -bits.view(np.int8)


sign_block: Any = _sign_block_in_python if _numba.config.DISABLE_JIT else _sign_block


@_numba.extending.intrinsic
def _steps_of(_: Any, whole: Any, multiplier: Any, offset: Any, shift: Any) -> Any:
    """Return `(whole * multiplier + offset) >> shift` in 32 bits, where Numba would compute in 64."""

    def compute(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = _tools.int32_t
        product = builder.mul(builder.sext(args[0], word), args[1])
        return builder.ashr(builder.add(product, args[2]), args[3])

    return _types.int32(_types.int16, _types.int32, _types.int32, _types.int32), compute


def _steps_in_python(whole: Any, multiplier: Any, offset: Any, shift: Any) -> Any:
    """Stand in for `_steps_of` where Numba does not compile."""
    return np.int32((int(whole) * int(multiplier) + int(offset)) >> int(shift))


steps_of: Any = _steps_in_python if _numba.config.DISABLE_JIT else _steps_of
