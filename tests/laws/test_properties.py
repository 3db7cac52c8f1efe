"""Random trees, dtypes, alignments and choices of trainable leaves, against a plain dict of separate arrays."""

import pickle
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import flatstore as fs
from tests.example_trees import DTYPES, bits, gap_bytes, laid_out, numeric, same_bits, small, trees

aligns = st.sampled_from([1, 2, 16, 64, 256])
seeds = st.integers(0, 2**16)
orders: Any = st.sampled_from(["leaf", "member"])
# What a packed vector of one dtype can hold without a loss.
PROMOTABLE = ("float16", "float32", "float64", "int8", "int32", "uint8", "bool")
Views = dict[str, np.ndarray]


def trains(seed: int) -> Any:
    """The default for even seeds, an arbitrary choice of leaves for odd ones."""
    return (lambda path, leaf, parent: zlib.crc32(path.encode()) + seed & 2) if seed % 2 else None


def separate(tree: Any, layout: fs.Layout) -> Views:
    """The oracle: the leaves by path, in memory of their own."""
    return {leaf.path: np.array(array) for leaf, array in zip(layout.leaves, numeric(tree), strict=True)}


def joined(at: str, path: str) -> str:
    return f"{at}/{path}" if at else path


def store_routes(store: fs.Store) -> Iterator[Views]:
    """Every way to reach the leaves of a store; each gives {path: view}."""
    rows = store.layout.by_path
    yield dict(store.items())
    yield dict(zip(rows, numeric(store.tree), strict=True))
    for at, node in store.modules():
        yield {joined(at, path): view for path, view in node.items()}
        yield dict(zip([joined(at, path) for path in node], numeric(node.tree), strict=True))
    yield {
        path: store.buffer[leaf.offset : leaf.offset + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
        for path, leaf in rows.items()
    }
    for dtype, flat in store.flats.items():
        here = {path: leaf for path, leaf in rows.items() if leaf.trainable and leaf.dtype.name == dtype}
        start = min(leaf.offset for leaf in here.values())
        firsts = {path: (leaf.offset - start) // leaf.dtype.itemsize for path, leaf in here.items()}
        yield {path: flat[firsts[path] : firsts[path] + leaf.size].reshape(leaf.shape) for path, leaf in here.items()}


def member_routes(pop: fs.Population, i: int) -> Iterator[Views]:
    """Every way to reach the trainable leaves of member i."""
    rows = {path: leaf for path, leaf in pop.layout.by_path.items() if leaf.trainable}
    part = pop[i // 2 : i + 1]
    yield {path: pop[path][i, ...] for path in rows}
    yield {path: pop[i][path] for path in rows}
    yield {path: part[path][-1, ...] for path in rows}
    stacked = dict(zip(pop.layout.by_path, numeric(pop.tree), strict=True))
    yield {path: stacked[path][i, ...] for path in rows}
    for at, node in pop[i].modules():
        yield {joined(at, path): view for path, view in node.items() if joined(at, path) in rows}
    if pop.order == "member":
        in_memory = sorted(rows.values(), key=lambda leaf: (leaf.offset, leaf.nbytes))
        stops = np.cumsum([leaf.size for leaf in in_memory])
        parts = [pop.matrix[i, stop - leaf.size : stop] for leaf, stop in zip(in_memory, stops, strict=True)]
        yield {leaf.path: part.reshape(leaf.shape) for leaf, part in zip(in_memory, parts, strict=True)}


def agree(routes: Iterator[Views], oracle: Views) -> None:
    for views in routes:
        for path, view in views.items():
            assert same_bits(view, oracle[path]), path


# -- layout


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


@given(trees(), aligns, seeds)
def test_locate_and_index_of_are_inverse_and_nothing_moves_an_index(tree: Any, align: int, seed: int) -> None:
    layout = fs.Layout.from_tree(tree, align=align, trainable=trains(seed))
    places = [(leaf.path, tuple(at)) for leaf in layout.homes for at in np.ndindex(*leaf.shape)]
    assert [layout.locate(i) for i in range(layout.size)] == places
    assert [layout.index_of(*place) for place in places] == list(range(layout.size))


@given(trees(), aligns, seeds)
def test_shapes_plan_what_arrays_plan_and_a_pickle_is_equal(tree: Any, align: int, seed: int) -> None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, np.ndarray) else x, tree)
    layout = fs.Layout.from_tree(tree, align=align, trainable=trains(seed))
    assert fs.Layout.from_tree(shapes, align=align, trainable=trains(seed)) == layout
    layout.check(tree)
    layout.check(shapes)


@given(trees(riders=False), aligns)
def test_a_layout_pickles(tree: Any, align: int) -> None:
    layout = fs.Layout.from_tree(tree, align=align)
    again = pickle.loads(pickle.dumps(layout))
    assert again == layout and hash(again) == hash(layout) and again.treedef == layout.treedef


# -- store


@given(trees(), aligns, seeds)
def test_a_tree_comes_back_to_the_bit_with_its_nodes_and_riders(tree: Any, align: int, seed: int) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    assert jax.tree.structure(store.tree) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(store.tree), strict=True):
        assert same_bits(before, after) if isinstance(before, np.ndarray) else before is after
    store.verify()


@given(trees(), aligns, seeds, st.data())
def test_a_write_through_any_view_is_seen_through_all_others_and_gaps_stay_zero(
    tree: Any, align: int, seed: int, data: Any
) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    oracle = separate(tree, store.layout)
    agree(store_routes(store), oracle)
    for _ in range(3):
        views = data.draw(st.sampled_from([views for views in store_routes(store) if views]))
        path = data.draw(st.sampled_from(sorted(views)))
        oracle[path] = bits(oracle[path].shape, oracle[path].dtype, data.draw(seeds))
        views[path][...] = oracle[path]
        agree(store_routes(store), oracle)
        assert not gap_bytes(store.layout, store.buffer).any()


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


@given(trees(PROMOTABLE, small), aligns, seeds)
def test_assign_is_the_inverse_of_to_vector(tree: Any, align: int, seed: int) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    vector = store.to_vector()
    assert vector.tolist() == [x for array in numeric(tree) for x in array.reshape(-1)]
    other = fs.Store.zeros(store.layout)
    other.assign(vector)
    assert other.buffer.tobytes() == store.buffer.tobytes()


@given(st.data(), st.sampled_from(DTYPES), aligns)
def test_a_vector_of_one_dtype_is_exact_to_the_bit(data: Any, dtype: str, align: int) -> None:
    tree = data.draw(trees([dtype]))
    store = fs.Store.from_tree(tree, align=align)
    assert store.to_vector().tobytes() == b"".join(array.tobytes() for array in numeric(tree))
    other = fs.Store.zeros(store.layout)
    other.assign(store.to_vector())
    assert other.buffer.tobytes() == store.buffer.tobytes()


@settings(max_examples=40)
@given(trees(["float32"], riders=False))
def test_packed_flat_is_the_vector_of_ravel_pytree(tree: Any) -> None:
    store = fs.Store.from_tree(tree, align=1)
    assert store.flat.tobytes() == np.asarray(ravel_pytree(tree)[0]).tobytes() == store.to_vector().tobytes()


@given(trees(), aligns)
def test_a_copy_and_a_wrapped_copy_of_the_bytes_are_the_same_model_elsewhere(tree: Any, align: int) -> None:
    store = fs.Store.from_tree(tree, align=align)
    oracle = separate(tree, store.layout)
    bytes_of = fs.Store.zeros(store.layout).buffer
    bytes_of[:] = store.buffer
    for other in (store.copy(), fs.Store.wrap(bytes_of, store.layout)):
        agree(store_routes(other), oracle)
        for view in other.values():
            view[...] = bits(view.shape, view.dtype, 1)
    agree(store_routes(store), oracle)


# -- population


@given(trees(["float32", "int32"]), orders, st.integers(1, 4), seeds, st.data())
def test_members_slices_and_stacks_are_the_same_bytes(tree: Any, order: Any, size: int, seed: int, data: Any) -> None:
    def some_train(path: str, leaf: Any, parent: Any) -> bool:
        return leaf.dtype == np.float32 and (zlib.crc32(path.encode()) + seed) % 4 > 0

    layout = fs.Layout.from_tree(tree, trainable=some_train)
    if not any(leaf.trainable for leaf in layout.leaves):
        return
    pop = fs.Population.from_tree(tree, size, order=order, trainable=some_train)
    oracles = [separate(tree, layout) for _ in range(size)]
    for _ in range(3):
        i = data.draw(st.integers(0, size - 1))
        views = data.draw(st.sampled_from([views for views in member_routes(pop, i) if views]))
        path = data.draw(st.sampled_from(sorted(views)))
        oracles[i][path] = bits(oracles[i][path].shape, np.float32, data.draw(seeds))
        views[path][...] = oracles[i][path]
    for i, oracle in enumerate(oracles):
        agree(member_routes(pop, i), oracle)
        agree(iter([dict(pop[i].items())]), oracle)
        assert pop.to_vector()[i].tobytes() == pop[i].to_vector().tobytes() == pop[i].copy().to_vector().tobytes()
    taken = np.zeros(pop.buffer.size, bool)
    for view in (view for member in pop for view in member.values()):
        first = view.__array_interface__["data"][0] - pop.buffer.__array_interface__["data"][0]
        taken[first : first + view.nbytes] = True
    assert not pop.buffer[~taken].any()
    other = pop.copy(order="leaf" if order == "member" else "member")
    assert all(same_bits(other[path], pop[path]) for path in layout.by_path)
