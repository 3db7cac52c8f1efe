"""Law 3, constant time: what was built once comes back without work that grows with parameters or leaves."""

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatstore as fs

FEW, MANY = 10, 2_000


def store(leaves: int, size: int = 1) -> fs.Store:
    return fs.Store.from_tree([np.zeros(size, "f4") for _ in range(leaves)])


def population(leaves: int, size: int = 1) -> fs.Population:
    return fs.Population.from_tree([np.zeros(size, "f4") for _ in range(leaves)], 3)


def spans(leaves: int, size: int = 1) -> fs.Store:
    return fs.adopt(nn.ParameterList([torch.zeros(size) for _ in range(leaves)]), move=False)


READS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "flat": (store, lambda s: s.flat),
    "tree": (store, lambda s: s.tree),
    "a leaf": (store, lambda s: s["3"]),
    "a tree that others hold": (spans, lambda s: s.tree),
    "a leaf that others hold": (spans, lambda s: s["3"]),
    "buffer": (store, lambda s: s.buffer),
    "layout": (store, lambda s: s.layout),
    "a stacked leaf": (population, lambda p: p["3"]),
    "a stacked tree": (population, lambda p: p.tree),
    "a member": (population, lambda p: p[1]),
    "a leaf of a member": (population, lambda p: p[1]["3"]),
}


def calls_and_bytes(read: Callable[[Any], Any], of: Any) -> tuple[int, int]:
    """How many functions are called, and how many bytes are allocated at most, to read something again."""
    kept = [read(of), read(of)]
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        kept.append(read(of))
    finally:
        sys.setprofile(None)
    tracemalloc.start()
    try:
        kept.append(read(of))
        return calls, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", READS)
def test_reading_it_again_costs_as_much_for_thousands_of_leaves_and_a_million_parameters_as_for_ten(name: str) -> None:
    make, read = READS[name]
    few, many, large = (calls_and_bytes(read, make(*size)) for size in ((FEW,), (MANY,), (FEW, 100_000)))
    assert few[0] == many[0] == large[0]
    assert max(many[1], large[1]) <= few[1] + 1000


@pytest.mark.parametrize("name", [name for name in READS if name not in ("a member", "a leaf of a member")])
def test_the_same_object_comes_back(name: str) -> None:
    make, read = READS[name]
    of = make(FEW)
    assert read(of) is read(of)
