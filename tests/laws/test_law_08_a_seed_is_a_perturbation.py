"""Law 8, a seed is a perturbation: the same bits, however and wherever they are made."""

from typing import Any

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.threads import set_threads, threads

NOISES = [fs.Normal({"*/b": 0.5, "*": 0.1}), fs.Rademacher({"*/b": 0.5, "*": 0.1})]
TREE = {
    "one": {"b": np.linspace(-1, 1, 300, dtype="f4"), "w": np.linspace(-2, 2, 70 * 301, dtype="f4").reshape(70, 301)},
    "two": {"b": np.ones(3, "f4"), "n": np.arange(5), "w": np.linspace(0, 1, 999, dtype="f4")},
}


def model(align: int, order: Any = ()) -> fs.Store:
    store = fs.Store.zeros(fs.replan(fs.Layout.from_tree(TREE, align=align), order=order))
    store.assign(TREE)
    es.snap(store, NOISES[0])
    return store


def by_definition(noise: Any, seed: int) -> dict[str, np.ndarray]:
    """What the seed adds, leaf by leaf, from NumPy's tables and words."""
    rows, key = fs.Layout.from_tree(TREE).leaves, np.array([seed], np.uint64)
    return {leaf.path: noise.delta(leaf, key, 0, leaf.size)[0].reshape(leaf.shape) for leaf in rows if leaf.trainable}


@pytest.fixture(params=[1, 2, 3])
def some_threads(request: Any) -> Any:
    before = threads()
    set_threads(request.param)
    yield request.param
    set_threads(before)


@pytest.mark.long(but="[2-")
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("align", "order"), [(1, ()), (64, ()), (256, ["two/*", "*/b"])])
def test_a_perturbation_a_sample_and_a_virtual_tree_are_what_numpy_adds(
    noise: Any, align: int, order: Any, some_threads: int, cut: Any
) -> None:
    delta, start = by_definition(noise, 77), model(1)
    expected = {path: start[path] + delta.get(path, 0) for path in start}
    for width in (128, 4096):
        cut(WIDTH=width, TASK=2 * width)
        store = model(align, order)
        members = fs.Population.zeros(store.layout, 3)
        es.sample(members, store, noise, [5, 77, 6])
        es.perturb(store, noise, 77)
        for path, values in expected.items():
            assert store[path].tobytes() == values.tobytes(), path
            assert path == "two/n" or members[1][path].tobytes() == values.tobytes(), path
    made = jax.jit(lambda tree: es.virtual(tree, noise, 77))(jax.tree.map(np.array, start.tree))
    assert {path: np.asarray(x).tobytes() for path, x in fs.flatten_dict(made, "/").items() if path != "two/n"} == {
        path: values.tobytes() for path, values in expected.items() if path != "two/n"
    }


@pytest.mark.long(but="[2-")
@pytest.mark.parametrize("noise", NOISES)
def test_an_update_is_the_same_on_any_threads_in_any_memory_and_inside_jit(noise: Any, some_threads: int) -> None:
    keys, weights = fs.seeds(3, 9), np.linspace(-0.7, 0.9, 9)
    results = []
    for align, order in ((1, ()), (64, ["two/*"])):
        store = model(align, order)
        es.update(store, noise, keys, weights)
        results.append({path: view.tobytes() for path, view in store.items()})
    trained = {path: TREE[path.split("/")[0]][path.split("/")[1]] for path in results[0]}
    start = model(1)
    tree = fs.unflatten_dict({path: np.array(start[path]) for path in trained}, "/")
    moved = jax.jit(lambda tree, weighted: es.updated(tree, noise, weighted))(
        tree, es.weighted_seeds(noise, keys, weights)
    )
    inside = {path: np.asarray(x) for path, x in fs.flatten_dict(moved, "/").items()}
    assert results[0] == results[1]
    assert all(inside[path].tobytes() == results[0][path] for path in inside if path != "two/n")


def test_children_are_the_same_on_any_threads_and_in_any_memory(some_threads: int) -> None:
    results = set()
    for order in ("leaf", "member"):
        for align in (1, 64):
            pop = fs.Population.from_tree(TREE, 9, order=order, align=align)
            for generation in range(2):
                mutate = ga.Sparse(fs.Normal(0.1), 0.1) if generation else fs.Normal(0.1)
                ga.step(pop, np.arange(9.0), seed=(1, generation), mutate=mutate, bounds=ga.Bounds({"*/w": (-2, 2)}))
            results.add(pop.to_vector().tobytes())
    before = threads()
    set_threads(1)
    try:
        alone = fs.Population.from_tree(TREE, 9)
        for generation in range(2):
            mutate = ga.Sparse(fs.Normal(0.1), 0.1) if generation else fs.Normal(0.1)
            ga.step(alone, np.arange(9.0), seed=(1, generation), mutate=mutate, bounds=ga.Bounds({"*/w": (-2, 2)}))
    finally:
        set_threads(before)
    assert results == {alone.to_vector().tobytes()}
