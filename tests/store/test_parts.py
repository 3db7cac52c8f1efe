"""Parts of a whole model: stretches of neighbours in the index of the whole."""

import numpy as np
import pytest

import flatstore as fs
from flatstore.store import Parts

WHOLE = fs.Layout.from_tree(
    {"bias": np.zeros(10, "f4"), "kernel": np.zeros((4, 6), "f4"), "t": np.zeros((2, 3, 4), "f4")}
)


@pytest.mark.parametrize(
    ("path", "shape", "at", "firsts", "length"),
    [
        ("kernel", (2, 3), (1, 3), [19, 25], 3),  # the picture of flatstore/store/parts.py
        ("kernel", (2, 6), (2, 0), [22], 12),
        ("kernel", (4, 6), (0, 0), [10], 24),
        ("kernel", (4, 1), (0, 5), [15, 21, 27, 33], 1),
        ("bias", (3,), (7,), [7], 3),
        ("t", (2, 1, 4), (0, 2, 0), [42, 54], 4),
        ("t", (1, 2, 4), (1, 0, 0), [46], 8),
        ("t", (2, 3, 2), (0, 0, 1), [35, 39, 43, 47, 51, 55], 2),
    ],
)
def test_a_block_of_a_leaf_has_a_stretch_for_each_row_that_it_has_not_whole(path, shape, at, firsts, length):
    part = fs.Layout.from_tree({path: np.zeros(shape, "f4")})
    found, long = Parts(WHOLE, {path: at}).firsts(part.by_path[path])
    assert (found.tolist(), long) == (firsts, length)


def test_a_store_of_a_whole_model_has_no_parts_and_its_leaves_are_one_stretch():
    store = fs.Store.zeros(WHOLE)
    assert store.parts is None and store.whole is WHOLE
    (stretch,) = store.stretches(WHOLE.by_path["kernel"], 12, 1000)
    assert (stretch.begin, stretch.end, stretch.leaf.path, stretch.at) == (2, 24, "kernel", 2)
    assert not list(store.stretches(WHOLE.by_path["kernel"], 0, 10))
