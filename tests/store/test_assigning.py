"""`assign` is the one way in: all differences are found and listed before anything is written (law 6)."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax.core import FrozenDict

import flatstore as fs
from tests.example_trees import F4, KEY, act, says, tree, vector

FORMS: dict[str, Callable[[], Any]] = {
    "tree": lambda: tree(5),
    "FrozenDict": lambda: FrozenDict(tree(5)),
    "tree of jax arrays": lambda: jax.tree.map(jnp.asarray, tree(5)),
    "tree of torch tensors": lambda: jax.tree.map(lambda x: torch.from_numpy(np.array(x)), tree(5)),
    "tree of float64": lambda: {**tree(5), "a": {"b": np.full(3, 5.0), "w": np.full((2, 3), 5.0)}},
    "tree of Python numbers": lambda: {**tree(5), "n": 5, "z": 5.0},
    "vector": lambda: vector(5),
    "vector of jax": lambda: jnp.asarray(vector(5)),
    "vector of torch": lambda: torch.from_numpy(vector(5)),
    "vector of integers": lambda: vector(5).astype(np.int64),
    "strided vector": lambda: np.full(22, 5.0)[::-2],
    "mapping": lambda: {"a/b": tree(5)["a"]["b"], "a/w": tree(5)["a"]["w"], "n": 5, "z": 5.0},
    "pairs in a list": lambda: [("z", 5.0), ("a/w", tree(5)["a"]["w"]), ("n", 5), ("a/b", np.full(3, 5))],
    "pairs with tuples of keys": lambda: iter([(("a", "w"), tree(5)["a"]["w"]), (("a", "b"), [5, 5, 5] * np.ones(3))]),
    "pairs of a mapping": lambda: {"a/b": np.full(3, 5.0), "a/w": np.full((2, 3), 5.0)}.items(),
    "a zip": lambda: zip(["a/b", "a/w"], [np.full(3, 5.0), np.full((2, 3), 5.0)], strict=True),
    "a store": lambda: fs.Store.from_tree(tree(5), align=1),
}


SHORT = ("pairs with tuples of keys", "pairs of a mapping", "a zip")  # these leave "n" and "z" out


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_values_writes_the_same(store: fs.Store, form: str) -> None:
    store.assign(FORMS[form]())
    named = {path for path in store if path not in ("n", "z") or form not in SHORT}
    assert all((store[path] == (5 if path in named else 3)).all() for path in store)
    assert store["a/b"].dtype == F4


def test_assign_copies(store: fs.Store) -> None:
    values = tree(5)
    store.assign(values)
    values["a"]["b"][:] = 9
    assert (store["a/b"] == 5).all()


def test_pairs_in_a_list_may_name_tuples_of_keys(store: fs.Store) -> None:
    store.assign([(("a", "b"), np.full(3, 5.0))])
    assert (store["a/b"] == 5).all()


def test_a_tree_that_is_a_list_of_names_and_arrays_is_a_tree() -> None:
    layers = [("relu", np.ones(2, F4)), ("tanh", np.zeros(3, F4))]
    store = fs.Store.from_tree(layers)
    assert list(store) == ["0/1", "1/1"] and store.tree[1][0] == "tanh"
    store.assign([("relu", np.full(2, 5, F4)), ("tanh", np.full(3, 5, F4))])
    assert (store["0/1"] == 5).all()


def test_a_key_that_is_empty_is_a_key() -> None:
    store = fs.Store.from_tree({"": np.ones(3, F4), "e": np.zeros(0, F4)})
    store.assign(np.full(3, 2, F4))
    assert (store[""] == 2).all()


def test_one_leaf_is_set_by_path_or_keys_and_checked_like_all(store: fs.Store) -> None:
    store["a/b"] = [1, 2, 3] * np.ones(3)
    store[("a", "w")] = torch.ones(2, 3)
    assert store["a/b"].tolist() == [1, 2, 3] and (store["a/w"] == 1).all()
    before = store.buffer.tobytes()
    for path, value, kind in [
        ("a/b", 0.0, ValueError),
        ("z", "1", ValueError),
        ("n", 0.5, ValueError),
        ("q", 1.0, KeyError),
    ]:
        with pytest.raises(kind) as error:
            store[path] = value
        says(error, path)
    assert store.buffer.tobytes() == before


# -- pairs: leaf by leaf, without a second copy of the model


def test_pairs_write_only_the_leaves_that_they_name(store: fs.Store) -> None:
    store.assign((path, np.zeros(3)) for path in ["a/b"])
    assert (store["a/b"] == 0).all() and (store["a/w"] == 3).all()


def test_pairs_that_fail_half_way_say_what_was_written(store: fs.Store) -> None:
    def pairs(last: Any) -> Iterator[Any]:
        yield "a/b", np.zeros(3)
        yield "z", 7.0
        if isinstance(last, Exception):
            raise last
        yield last

    for last, kind in [
        (RuntimeError("disk"), RuntimeError),
        (("a/w", np.ones(2)), fs.StructureError),
        (("nope", 1.0), KeyError),
        (("z",), ValueError),
    ]:
        store.assign(tree(3))
        with pytest.raises(kind) as error:
            store.assign(pairs(last))
        assert error.value.__notes__ == ["written before this error: 'a/b', 'z'"]
        assert (store["a/b"] == 0).all() and store["z"] == 7 and (store["a/w"] == 3).all()
    with pytest.raises(RuntimeError) as error:
        store.assign(x for x in map(lambda _: (_ for _ in ()).throw(RuntimeError("early")), [0]))
    assert error.value.__notes__ == ["written before this error: nothing"]


# -- values that lie in the store itself


def test_two_leaves_of_a_store_can_be_swapped() -> None:
    a, b = np.arange(3, dtype=F4), np.arange(3, 6, dtype=F4)
    for form in (dict, lambda values: fs.Store.from_tree({"a": a, "b": b}).layout.unflatten(values.values())):
        store = fs.Store.from_tree({"a": a, "b": b})
        store.assign(form({"a": store["b"], "b": store["a"]}))
        assert store["a"].tolist() == b.tolist() and store["b"].tolist() == a.tolist()


def test_a_leaf_can_be_set_to_a_view_that_overlaps_it() -> None:
    square = np.arange(9, dtype=F4).reshape(3, 3)
    for view in (lambda x: x.T, lambda x: x[::-1], lambda x: np.roll(x, 1), lambda x: x):
        store = fs.Store.from_tree({"w": square.copy()}, align=1)
        store["w"] = view(store["w"])
        np.testing.assert_array_equal(store["w"], view(square))
        store.assign(store.flat[::-1])
        np.testing.assert_array_equal(store.to_vector(), view(square).reshape(-1)[::-1])


def test_a_jax_alias_of_the_store_can_be_assigned() -> None:
    store = fs.Store.from_tree({"a": np.zeros(16, F4), "b": np.ones(16, F4)})
    alias = store.alias()
    store.assign({"a": alias["b"], "b": alias["a"]})
    assert (store["a"] == 1).all() and (store["b"] == 0).all()


def test_riders_in_the_values_are_ignored() -> None:
    store = fs.Store.from_tree({"act": act, "k": KEY, "w": np.zeros(2, F4)})
    store.assign({"act": "other", "k": None, "w": np.ones(2, F4)})
    assert (store["w"] == 1).all() and store.tree["act"] is act


def test_narrow_floats_are_rounded_like_numpy_rounds() -> None:
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.half):
        values = np.linspace(-3, 3, 50, dtype=F4)
        store = fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(50, dtype)}))
        store["w"] = values
        assert store["w"].tobytes() == values.astype(dtype).tobytes()
