"""Law 5, one index: the packed position in JAX's order, which nothing moves."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import flatstore as fs
from flatstore import es
from flatstore.memory import Spans
from flatstore.store import Parts
from tests.example_trees import DTYPES, numeric, small, trees
from tests.routes import PROMOTABLE, aligns, seeds, trains


@given(trees(), aligns, seeds)
def test_locate_and_index_of_are_inverse_and_nothing_moves_an_index(tree: Any, align: int, seed: int) -> None:
    layout = fs.Layout.from_tree(tree, align=align, trainable=trains(seed))
    places = [(leaf.path, tuple(at)) for leaf in layout.homes for at in np.ndindex(*leaf.shape)]
    assert [layout.locate(i) for i in range(layout.size)] == places
    assert [layout.index_of(*place) for place in places] == list(range(layout.size))


@given(trees(riders=False), aligns)
def test_a_layout_pickles(tree: Any, align: int) -> None:
    layout = fs.Layout.from_tree(tree, align=align)
    again = pickle.loads(pickle.dumps(layout))
    assert again == layout and hash(again) == hash(layout) and again.treedef == layout.treedef


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


TREE = {"b": np.zeros(5, "f4"), "k": np.zeros((4, 3), "f8"), "n": np.zeros(7, "i4"), "w": np.zeros((2, 9), "f4")}
PLAIN = fs.Layout.from_tree(TREE)
LAYOUTS = {
    "align=1": fs.Layout.from_tree(TREE, align=1),
    "align=4096": fs.Layout.from_tree(TREE, align=4096),
    "frozen": fs.Layout.from_tree(TREE, trainable=["w", "k"]),
    "another order in memory": fs.replan(PLAIN, order=["w", "k"]),
    "pickled": pickle.loads(pickle.dumps(PLAIN)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_no_index_is_moved_and_a_seed_gives_every_parameter_the_same_noise(kind: str) -> None:
    layout = LAYOUTS[kind]
    places = {leaf.path: leaf.index for leaf in PLAIN.leaves}
    assert {leaf.path: leaf.index for leaf in layout.leaves} == places == {"b": 0, "k": 5, "n": 17, "w": 24}
    store, plain = fs.Store.zeros(layout), fs.Store.zeros(PLAIN)
    es.perturb(store, fs.Normal(0.1), 3)
    es.perturb(plain, fs.Normal(0.1), 3)
    for leaf in layout.leaves:
        expected = plain[leaf.path] if leaf.trainable else np.zeros_like(plain[leaf.path])
        assert store[leaf.path].tobytes() == expected.tobytes()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_a_member_has_the_indices_and_the_noise_of_one_model_in_either_order(order: Any) -> None:
    layout = fs.Layout.from_tree(TREE, trainable=["b", "w"])
    pop, plain = fs.Population.zeros(layout, 3, order=order), fs.Store.zeros(layout)
    es.sample(pop, plain, fs.Normal(0.1), [5, 3, 6])
    es.perturb(plain, fs.Normal(0.1), 3)
    assert pop[1].layout.locate(20) == PLAIN.locate(20) == ("n", (3,))
    assert pop[1].to_vector().tobytes() == plain.to_vector().tobytes()


def test_another_process_has_the_same_index_and_digest() -> None:
    program = f"""
import flatstore as fs, numpy as np
tree = {{name: np.zeros(shape, dtype) for name, shape, dtype in {[(k, x.shape, x.dtype.str) for k, x in TREE.items()]}}}
layout = fs.Layout.from_tree(tree)
print({{leaf.path: leaf.index for leaf in layout.leaves}}, layout.digest)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{ {leaf.path: leaf.index for leaf in PLAIN.leaves} } {PLAIN.digest}"


SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)


@given(st.lists(SHAPES, min_size=1, max_size=4), st.sampled_from([np.float32, np.float64]), st.data())
def test_blocks_of_leaves_that_several_hold_move_as_the_whole_does(shapes: Any, dtype: Any, data: Any) -> None:
    """Each leaf is cut along its axes, and each process has one of the blocks, or none: in memory of its own."""
    rng, noise = np.random.default_rng(0), fs.Normal(0.02)
    whole = fs.Store.from_tree({f"leaf{i}": rng.uniform(-1, 1, shape).astype(dtype) for i, shape in enumerate(shapes)})
    es.snap(whole, noise)
    blocks = {}
    for path, leaf in whole.layout.by_path.items():
        cuts = [data.draw(st.integers(0, n)) for n in leaf.shape]
        side = data.draw(st.tuples(*[st.booleans()] * len(cuts)))
        places = [(cut, n) if last else (0, cut) for cut, n, last in zip(cuts, leaf.shape, side, strict=True)]
        if data.draw(st.integers(0, 3)):
            blocks[path] = tuple(slice(*place) for place in places)
    if not blocks:
        return
    arrays = {path: np.array(whole[path][block]) for path, block in blocks.items()}
    memory = Spans([x.reshape(-1).view(np.uint8) for x in arrays.values()], list)
    starts = {path: x.ctypes.data - memory.start if x.size else 0 for path, x in arrays.items()}
    parts = Parts(whole.layout, {path: tuple(axis.start for axis in block) for path, block in blocks.items()})
    store = fs.Store.in_place(memory, fs.Layout.from_tree(arrays), starts, parts)
    for x in (whole, store):
        es.update(x, noise, fs.seeds(1, 3), [0.5, -0.25, 1e-9])
        es.perturb(x, noise, 7)
        es.perturb(x, noise, 8, sign=-1)
    for path, block in blocks.items():
        assert arrays[path].tobytes() == whole[path][block].tobytes(), path
