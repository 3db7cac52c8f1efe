"""What does not fit is an error that lists every difference, and nothing is written (laws 6 and 11)."""

import pickle
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given

import flatstore as fs
from tests.example_trees import F4, KEY, says, tree, trees, vector
from tests.routes import aligns, seeds, trains

WRONG: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "shape": ({**tree(5), "z": np.ones(2, F4)}, fs.StructureError, ["'z'", "float32[]", "float32[2]"]),
    "a shape that would broadcast": (
        {**tree(5), "a": {**tree(5)["a"], "w": np.ones((1, 3), F4)}},
        fs.StructureError,
        ["'a/w'"],
    ),
    "float into int": ({**tree(5), "n": 5.5}, fs.StructureError, ["'n'", "int32[]", "float32[]"]),
    "complex into float": ({**tree(5), "z": 1j}, fs.StructureError, ["'z'", "complex64"]),
    "missing leaves": (
        {"a": {"b": np.ones(3, F4)}, "z": F4(5)},
        fs.StructureError,
        ["2 leaves", "'a/w'", "'n'", "nothing"],
    ),
    "extra leaves": ({**tree(5), "x": F4(1), "y": [F4(1)]}, fs.StructureError, ["2 leaves", "'x'", "'y/0'", "nothing"]),
    "all at once": (
        {"a": {"b": np.ones(4, F4), "w": 1j}, "x": F4(1), "z": F4(5)},
        fs.StructureError,
        ["4 leaves", "'a/b'", "'a/w'", "'x'", "'n'"],
    ),
    "a string for a number": ({**tree(5), "z": "0.5"}, fs.StructureError, ["'z'", "str", "0.5"]),
    "None for a number": ({**tree(5), "z": None}, fs.StructureError, ["'z'"]),
    "a list for an array": ({**tree(5), "a": {**tree(5)["a"], "b": [5.0, 5.0, 5.0]}}, fs.StructureError, ["'a/b'"]),
    "a shape without data": ({**tree(5), "z": jax.ShapeDtypeStruct((), F4)}, TypeError, ["'z'", "shape"]),
    "objects": ({**tree(5), "a": {**tree(5)["a"], "b": np.array([1, None, 2])}}, TypeError, ["'a/b'", "object"]),
    "strings": ({**tree(5), "a": {**tree(5)["a"], "b": np.array(["1", "2", "3"])}}, TypeError, ["'a/b'", "<U1"]),
    "dates": ({**tree(5), "z": np.array(1, "M8[s]")}, TypeError, ["'z'", "datetime64"]),
    "a key for a number": ({**tree(5), "z": KEY}, fs.StructureError, ["'z'"]),
    "an integer that is too wide": ({**tree(5), "n": np.int64(2**40)}, fs.StructureError, ["'n'", "int32", str(2**40)]),
    "a vector that is short": (vector()[1:], fs.StructureError, ["(11,)", "float32[10]", "to_vector"]),
    "the flat vector, padding included": (np.ones(36, F4), fs.StructureError, ["(11,)", "float32[36]", "flat"]),
    "a matrix": (np.ones((1, 11), F4), fs.StructureError, ["(11,)", "float32[1,11]"]),
    "a vector of strings": (vector().astype(str), TypeError, ["vector"]),
    "a vector with fractions for integers": (vector() + 0.5, fs.StructureError, ["'n'", "int32"]),
    "a vector with NaN for integers": (vector(np.nan), fs.StructureError, ["'n'", "int32"]),
    "a complex vector": (vector() + 1j, fs.StructureError, ["'a/b'", "'a/w'", "'n'", "'z'"]),
    "a number": (5.0, fs.StructureError, []),
    "None": (None, fs.StructureError, ["4 leaves"]),
    "text": ("weights", fs.StructureError, ["4 leaves"]),
    "a mapping with a wrong path": (
        {"a/b": np.ones(3, F4), "a/v": np.ones((2, 3), F4), "n": 1, "z": 1.0},
        fs.StructureError,
        ["2 leaves", "'a/v'", "'a/w'"],
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_an_error_with_nothing_written(store: fs.Store, kind: str) -> None:
    values, expected, words = WRONG[kind]
    before = store.buffer.tobytes()
    with pytest.raises(expected) as error:
        store.assign(values)
    says(error, *words)
    assert store.buffer.tobytes() == before


def test_only_the_leaves_that_differ_are_listed(store: fs.Store) -> None:
    for values in ({"a": tree()["a"], "n": np.int32(1)}, {"a": tree()["a"], "n": np.int32(1), "q": F4(0)}):
        with pytest.raises(fs.StructureError) as error:
            store.assign(values)
        assert {found.path for found in error.value.differences} == {"z"} | (values.keys() - tree().keys())


def test_two_keys_of_one_name_are_an_error() -> None:
    clash = OrderedDict([("1", np.ones(2, F4)), (1, np.zeros(2, F4))])
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree({"in": clash})
    says(error, "'in/1'", "rename")
    store = fs.Store.zeros(fs.Layout.from_tree({"in": {"1": np.ones(2, F4)}}))
    for verb in (store.layout.check, store.assign):
        with pytest.raises(ValueError) as error:
            verb({"in": clash})
        says(error, "'in/1'")
    assert not store.buffer.any()


@pytest.mark.parametrize("make", [fs.Layout.from_tree, fs.Store.from_tree, lambda x: fs.Population.from_tree(x, 2)])
def test_a_torch_module_is_not_a_tree(make: Any) -> None:
    for module in (torch.nn.Linear(2, 1), {"net": torch.nn.Linear(2, 1)}):
        with pytest.raises(TypeError) as error:
            make(module)
        says(error, "Linear", "named_parameters")


def test_a_jax_array_that_was_donated_away_is_an_error(store: fs.Store) -> None:
    gone = jnp.ones(())
    jax.jit(lambda x: x + 1, donate_argnums=0)(gone)
    deleted = jnp.ones(3)
    deleted.delete()
    before = store.buffer.tobytes()
    for values, path in [({**tree(), "z": gone}, "'z'"), ({**tree(), "a": {**tree()["a"], "b": deleted}}, "'a/b'")]:
        for verb in (fs.Layout.from_tree, fs.Store.from_tree, store.assign):
            with pytest.raises(ValueError) as error:
                verb(values)
            says(error, path, "deleted")
    assert store.buffer.tobytes() == before


def test_integers_are_never_wrapped_around() -> None:
    store = fs.Store.from_tree({"b": np.zeros(2, np.int8), "i": np.zeros(2, np.int32), "u": np.zeros(1, np.uint8)})
    for values in (
        {"b": np.array([1, 300]), "i": np.zeros(2, np.int64), "u": np.uint8([1])},
        {"b": np.zeros(2, np.int8), "i": np.zeros(2, np.int32), "u": np.array([256], np.uint16)},
        np.array([1, 300, 0, 0, 0]),
        np.array([1, -129, 0, 0, 0], np.int32),
        np.array([1, 1, 2**31, 0, 0]),
        np.array([0, 0, 0, 0, -1]),
        np.array([0, 0, 0, 0, 256.0]),
        [("i", np.array([0, 2**31]))],
    ):
        with pytest.raises(fs.StructureError) as error:
            store.assign(values)
        says(error)
        assert not store.buffer.any()
    narrow = fs.Store.zeros(fs.Layout.from_tree(np.zeros(2, ml_dtypes.int4)))
    with pytest.raises(fs.StructureError):
        narrow.assign(np.array([7, 100], np.int8))


def test_a_narrowing_cast_never_fails_half_way() -> None:
    store = fs.Store.from_tree({"a": np.zeros(2, F4), "b": np.zeros(2, np.half)})
    with np.errstate(all="raise"):
        try:
            store.assign({"a": np.ones(2), "b": np.array([1.0, 1e300])})
        except (ArithmeticError, fs.StructureError):
            assert not store.buffer.any()
        else:
            assert (store["a"] == 1).all() and np.isinf(store["b"][1])


WRONG_STACK: dict[str, tuple[Any, list[str]]] = {
    "one model": ({"b": np.zeros(3), "mean": np.zeros(2), "n": 0}, ["1 leaf ", "'b'", "float32[4,3]"]),
    "a stack for a shared leaf": (
        {"b": np.zeros((4, 3)), "mean": np.zeros((4, 2)), "n": 0},
        ["1 leaf ", "'mean'", "float32[2]"],
    ),
    "another size": (np.zeros((3, 6)), ["(4, 6)"]),
    "one vector": (np.zeros(6), ["(4, 6)"]),
    "shared leaves that differ": (np.arange(24).reshape(4, 6), ["'mean'", "'n'", "shared"]),
}


@pytest.mark.parametrize("order", ["leaf", "member"])
@pytest.mark.parametrize("kind", WRONG_STACK)
def test_what_does_not_fit_a_population_is_an_error_with_nothing_written(order: Any, kind: str) -> None:
    values, words = WRONG_STACK[kind]
    layout = fs.Layout.from_tree({"b": np.zeros(3, F4), "mean": np.zeros(2, F4), "n": np.int32(0)}, trainable="b")
    pop = fs.Population.zeros(layout, 4, order=order)
    before = pop.buffer.tobytes()
    with pytest.raises(fs.StructureError) as error:
        pop.assign(values)
    says(error, *words)
    assert pop.buffer.tobytes() == before


def test_an_axis_of_negative_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'w': expected axes of size >= 0, got shape \(-3,\); fix"):
        fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((-3,), np.float32)})


def test_the_error_arrives_whole_from_another_process() -> None:
    with pytest.raises(fs.StructureError) as caught:
        fs.Store.from_tree({"b": np.zeros(2), "w": np.zeros(3)}).assign({"b": 1.0, "w": 2.0})
    caught.value.add_note("with a note")
    there = pickle.loads(pickle.dumps(caught.value))
    assert type(there) is fs.StructureError and str(there) == str(caught.value)
    assert there.differences == caught.value.differences and len(there.differences) == 2
    assert there.__notes__ == ["with a note"]


def test_a_store_is_not_a_tree() -> None:
    with pytest.raises(
        TypeError,
        match=r"expected a tree of arrays, got a Store.*fix: pass store.tree; for a copy store.copy\(\), for its",
    ):
        fs.Store.from_tree(fs.Store.from_tree({"w": np.zeros(3)}))


def test_trainable_is_globs_or_a_function() -> None:
    with pytest.raises(TypeError, match=r"trainable: expected globs or a function, got False; fix"):
        fs.Layout.from_tree({"w": np.zeros(3)}, trainable=False)  # pyright: ignore[reportArgumentType]
    assert not fs.Layout.from_tree({"w": np.zeros(3)}, trainable=()).leaves[0].trainable


def test_a_population_is_indexed_by_numbers_slices_and_paths() -> None:
    pop = fs.Population.from_tree({"w": np.zeros(3)}, 4)
    with pytest.raises(TypeError, match="expected a member's number, a slice or a path, got list; fix"):
        pop[[1, 2]]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected at_most >= 1, got 0; fix"):
        pop.chunks(0)


@given(trees(), aligns, seeds)
def test_shapes_plan_what_arrays_plan_and_a_pickle_is_equal(tree: Any, align: int, seed: int) -> None:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, np.ndarray) else x, tree)
    layout = fs.Layout.from_tree(tree, align=align, trainable=trains(seed))
    assert fs.Layout.from_tree(shapes, align=align, trainable=trains(seed)) == layout
    layout.check(tree)
    layout.check(shapes)
