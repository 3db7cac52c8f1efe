"""The table of leaves keeps its numbered invariants, and says which one is broken."""

from typing import Any

import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import says

F4 = np.float32


def row(path: str, offset: int, index: int, **fields: Any) -> fs.Leaf:
    kind = {"shape": (2,), "dtype": np.dtype(F4), "trainable": True} | fields
    return fs.Leaf(path, (), offset=offset, index=index, **kind)


A, B = row("a", 0, 0), row("b", 64, 2)
FROZEN = {"trainable": False}
BROKEN = {
    "1. align is a power of two": ([A, B], 48, "power of two"),
    "2. there is a leaf": ([], 64, "a path each"),
    "2. no two rows share a path": ([A, row("a", 64, 2)], 64, "a path each"),
    "3. a tied row names a leaf": ([A, row("t", 0, 0, tied="x")], 64, "'x'"),
    "3. a tied row names a home": ([A, row("t", 0, 0, tied="a"), row("u", 0, 0, tied="t")], 64, "'t'"),
    "3. tied rows agree in shape": ([A, row("t", 0, 0, tied="a", shape=(1, 2))], 64, "agree"),
    "3. tied rows agree in dtype": ([A, row("t", 0, 0, tied="a", dtype=np.dtype("i4"))], 64, "agree"),
    "3. tied rows agree in trainable": ([A, row("t", 0, 0, tied="a", **FROZEN)], 64, "agree"),
    "3. tied rows agree in offset": ([A, row("t", 64, 0, tied="a")], 64, "agree"),
    "3. tied rows agree in index": ([A, row("t", 0, 2, tied="a")], 64, "agree"),
    "4. homes start at the alignment": ([A, row("b", 32, 2)], 64, "aligned start"),
    "4. homes start at their item size": ([A, row("b", 10, 2)], 1, "aligned start"),
    "5. homes do not overlap": ([A, row("b", 4, 2)], 1, "homes apart"),
    "5. trainable homes come first": ([row("a", 0, 0, **FROZEN), B], 64, "trainable leaves first"),
    "5. a dtype lies together": (
        [A, row("h", 64, 2, dtype=np.dtype("f2")), row("c", 128, 4)],
        64,
        "each dtype together",
    ),
    "6. indices begin at 0": ([row("a", 0, 1)], 64, "index 0"),
    "6. indices are packed": ([A, row("b", 64, 3)], 64, "index 2"),
    "7. dims name each axis": ([A, row("b", 64, 2, dims=("x", "y"))], 64, "dims"),
}


@pytest.mark.parametrize("invariant", BROKEN)
def test_a_table_that_breaks_an_invariant_is_refused(invariant: str) -> None:
    leaves, align, words = BROKEN[invariant]
    assert fs.Layout((A, B), 64, None).nbytes == 72
    with pytest.raises(ValueError) as error:
        fs.Layout(tuple(leaves), align, None)
    says(error, words)
