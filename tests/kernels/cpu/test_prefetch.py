"""Memory is asked for, and nothing else happens."""

import numba
import numpy as np

from flatstore.kernels.cpu.prefetch import fetch


@numba.njit
def ask(array, first, last):
    for place in range(first, last):
        fetch(array, place)


def test_a_fetch_is_one_instruction_that_neither_writes_nor_fails_past_the_end():
    array = np.arange(100, dtype=np.float32)
    ask(array, -(10**9), -(10**9) + 100)
    ask(array, 0, 10**5)
    assert array.tolist() == list(range(100))
    assert "prefetch" in ask.inspect_asm(ask.signatures[0])
