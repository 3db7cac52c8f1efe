"""Law 4, padding is not data: the bytes between leaves are zero, and enter nothing."""

from itertools import pairwise
from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore import es, ga
from tests.example_trees import bits, gap_bytes, laid_out, trees
from tests.routes import agree, aligns, seeds, store_routes, trains


@given(trees(), aligns, seeds)
def test_homes_are_aligned_apart_and_grouped_trainable_first(tree: Any, align: int, seed: int) -> None:
    layout = fs.Layout.from_tree(tree, align=align, trainable=trains(seed))
    rows = sorted(layout.homes, key=lambda leaf: (leaf.offset, leaf.nbytes))
    assert all(leaf.offset % align == leaf.offset % leaf.dtype.itemsize == 0 for leaf in rows)
    filled = [leaf for leaf in rows if leaf.size]
    assert all(a.offset + a.nbytes <= b.offset and a.trainable >= b.trainable for a, b in pairwise(filled))
    kinds = [(leaf.trainable, leaf.dtype.name) for leaf in filled]
    assert sum(a != b for a, b in pairwise(kinds)) == max(len(set(kinds)) - 1, 0)
    assert layout.padding == layout.nbytes - sum(leaf.nbytes for leaf in rows) >= 0


@given(trees(), aligns, seeds, st.sampled_from(["tree", "mapping", "pairs", "store"]))
def test_assign_writes_every_leaf_to_the_bit_and_no_gap(tree: Any, align: int, seed: int, form: str) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    oracle = {path: bits(view.shape, view.dtype, seed + i) for i, (path, view) in enumerate(store.items())}
    hows = ["c", "fortran", "strided", "reversed"]
    values = {path: laid_out(array, hows[(seed + i) % 4]) for i, (path, array) in enumerate(oracle.items())}
    changed = store.layout.unflatten(values.values())
    forms = {"tree": changed, "mapping": values, "pairs": iter(values.items())}
    store.assign(forms[form] if form in forms else fs.Store.from_tree(changed, align=1))
    agree(store_routes(store), oracle)
    assert not gap_bytes(store.layout, store.buffer).any()


NOISE = fs.Normal(0.1)


def ragged(align: int) -> fs.Store:
    """Leaves between which there are gaps, on the grid."""
    tree = {"a": np.linspace(-1, 1, 5, dtype="f4"), "b": np.ones(1, "f4"), "c": np.linspace(0, 1, 19, dtype="f4")}
    store = fs.Store.from_tree(tree, align=align)
    es.snap(store, NOISE)
    return store


VERBS: dict[str, Any] = {
    "snap": lambda s: es.snap(s, NOISE),
    "perturb": lambda s: es.perturb(s, NOISE, 7),
    "sample": lambda s: es.sample(s, s, NOISE, [7]),
    "update": lambda s: es.update(s, NOISE, fs.seeds(1, 3), [0.5, 0.25, -0.5]),
    "update off the grid": lambda s: es.update(s, NOISE, fs.seeds(1, 3), [0.5, 0.25, -0.5], exact=False),
    "Adam": lambda s: es.Adam(s).step(fs.Store.from_tree(s.tree, align=s.layout.align), 0.1),
    "put_back": lambda s: fs.put_back(s, {path: view + 1 for path, view in s.items()}),
    "replay": lambda s: es.replay(s, NOISE, [([7], [0.5])]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_leaves_the_gaps_zero_and_gives_the_leaves_what_it_gives_them_without_gaps(verb: str) -> None:
    padded, packed = ragged(64), ragged(4)
    assert padded.layout.padding and not packed.layout.padding
    VERBS[verb](padded)
    VERBS[verb](packed)
    assert not gap_bytes(padded.layout, padded.buffer).any()
    assert padded.to_vector().tobytes() == packed.flat.tobytes()


def test_gaps_enter_no_count_and_no_norm() -> None:
    padded, packed = ragged(64), ragged(4)
    assert padded.layout.size == packed.layout.size == packed.flat.size == 25 < padded.flat.size
    assert fsum(np.square(padded.flat, dtype="f8")) == fsum(np.square(packed.flat, dtype="f8")) > 0


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_generation_leaves_the_gaps_of_a_population_zero(order: Any) -> None:
    pop = fs.Population.from_tree(ragged(64).tree, 6, order=order)
    for generation in range(3):
        ga.step(pop, np.arange(6.0), seed=generation, mutate=fs.Normal(1.0))
    leaves = np.zeros(pop.buffer.size, bool)
    for view in (view for member in pop for view in member.values()):
        first = view.__array_interface__["data"][0] - pop.buffer.__array_interface__["data"][0]
        leaves[first : first + view.nbytes] = True
    assert pop.buffer[leaves].any() and not pop.buffer[~leaves].any()
    assert leaves.all() == (order == "member")  # whose rows are packed


def test_a_file_has_no_gaps(tmp_path: Any) -> None:
    sizes = []
    for align in (64, 4096):
        fs.save(tmp_path / "x.safetensors", ragged(align))
        sizes.append((tmp_path / "x.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] < 64 and sizes[1] < 4096
