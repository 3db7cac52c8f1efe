"""Whole numbers in vector instructions are those of NumPy: all of them, on processors with few instructions, too."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from flatstore.kernels import compiled
from flatstore.kernels.cpu.draws import whole_normals, whole_signs
from flatstore.kernels.cpu.normal import steps_of
from flatstore.noise.normal import normals

ALL = np.arange(1 << 16, dtype=np.uint16)

CODE = """
import numpy as np
from flatstore.kernels.cpu.draws import whole_normals, whole_signs
from flatstore.noise.normal import normals
numbers = np.arange(1 << 16, dtype=np.uint16)
words, out, signs = numbers.view(np.uint32)[None], np.zeros(1 << 16, np.int16), np.zeros(1 << 20, np.int8)
assert whole_normals(words, 0, 0, numbers.size, out, None) == 0
assert out.tobytes() == normals(numbers).tobytes()
assert whole_signs(words, 0, 0, signs.size, signs, None) == 0
bits = np.unpackbits(numbers.view(np.uint8), bitorder="little")
assert (signs == -bits.view(np.int8)).all()
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86-64")
@pytest.mark.parametrize("features", ["", "+sse4.2", "+sse4.2,+avx,+avx2"])
def test_processors_with_fewer_instructions_make_the_same_numbers(features):
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features, "FLATSTORE_CACHE_DIR": ""}
    subprocess.run([sys.executable, "-c", CODE], env={**os.environ, **environment}, check=True, timeout=300)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (1, 1), (7, 64), (33, 31), (64, 1000), (129, 3)])
def test_numbers_are_written_from_any_place_on(first, count):
    words = np.random.default_rng(0).integers(0, 1 << 32, (2, 600), dtype=np.uint32)
    out, signs = np.zeros(2048, np.int16), np.zeros(2048, np.int8)
    column = whole_normals(words, 1, first, count, out, None)
    expected = normals(words[1].view(np.uint16))[first : first + count]
    assert (out[column : column + count] == expected).all()
    column = whole_signs(words, 1, first, count, signs, None)
    bits = np.unpackbits(words[1].view(np.uint8), bitorder="little")[first : first + count]
    assert (signs[column : column + count] == -bits.view(np.int8)).all()


@compiled
def all_steps(whole, multiplier, offset, shift, out):
    for i in range(whole.size):
        out[i] = steps_of(whole[i], multiplier, offset, shift)


@pytest.mark.parametrize("factor", [(2 * 65535, 65535 + (1 << 6), 7), (2 * 32769, 32769 + (1 << 23), 24), (14, 7, 0)])
def test_steps_are_computed_in_32_bits(factor):
    whole, out = normals(ALL), np.zeros(1 << 16, np.int32)
    all_steps(whole, *(np.int32(x) for x in factor), out)
    multiplier, offset, shift = factor
    assert out.tolist() == [w * multiplier + offset >> shift for w in whole.tolist()]
