"""What surgery refuses: said first, all of it, and nothing is written."""

from typing import Any

import jax
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import F4, says
from tests.surgery.models import S, filled, net

LAYOUT = fs.Layout.from_tree({"a": {"w": np.ones((2, 3), F4)}, "b": np.ones(3, F4)})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"drop": "c"}, ["drop", "'c'", "'a/w'"]),
        ({"drop": ["a", "c*"]}, ["drop", "'c*'"]),
        ({"drop": "*"}, ["numeric leaf", "drop fewer"]),
        ({"rename": {"c": "d"}}, ["rename", "'c'", "'a/w'"]),
        ({"rename": {"a/*": "*/*"}}, ["rename", "'*/*'", "as many"]),
        ({"rename": {"b": "a/w"}}, ["'b'", "'a/w'"]),
        ({"rename": {"b": "a"}}, ["'b'", "'a/w'"]),
        ({"rename": {"b": "a/w/x"}}, ["'b'", "'a/w'"]),
        ({"rename": {"b": ""}}, ["'b'", "'a/w'", "rename one of them"]),
        ({"rename": {"a": ""}}, ["rename", "got ''", "'/w'", "'a/*': '*'"]),
        ({"rename": {"a": "c/"}}, ["rename", "'c/'", "'c//w'"]),
        ({"rename": {"b": "c*"}}, ["rename", "'c*'", "never a character of a name"]),
        ({"add": {"c/": S((1,), F4)}}, ["add", "'c/'"]),
        ({"add": {"b": S((1,), F4)}}, ["'b'", "'b (added)'"]),
        ({"add": {"a": S((1,), F4)}}, ["'a (added)'", "'a/w'"]),
        ({"add": {"head": (256, 10)}}, ["'head'", "(256, 10)", "ShapeDtypeStruct"]),
        ({"add": {"head": {"w": np.array(["x"])}}}, ["'head/w'", "numbers"]),
        ({"add": {"head": {"a": 1.0, 3: 2.0}}}, ["keys of one type", "'int' and 'str'"]),
        (
            {"add": {"head": fs.Population.zeros(LAYOUT, 2)}},
            ["add", "'head'", "one model", "population[0]"],
        ),
        ({"add": {"head": {"x": fs.Population.zeros(LAYOUT, 2)}}}, ["'head/x'", "a Population"]),
        ({"add": {"head": {"x": LAYOUT}}}, ["'head/x'", "a Layout", "a path of its own"]),
        ({"drop": 3}, ["drop", "3"]),
        ({"drop": [4]}, ["drop", "[4]"]),
        ({"drop": None}, ["drop", "None"]),
        ({"order": None}, ["order", "None"]),
        ({"drop": "b[1]"}, ["drop", "got 'b[1]'", "'[[]'"]),
        ({"rename": "b"}, ["rename", "'b'"]),
        ({"rename": {"b": 3}}, ["int 3"]),
        ({"add": ["b"]}, ["add", "['b']"]),
        ({"order": "c*"}, ["order", "'c*'"]),
    ],
)
def test_an_edit_that_cannot_be_says_what_was_expected(edit: Any, words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        fs.replan(LAYOUT, **edit)
    says(error, *words)


def test_all_without_a_counterpart_are_listed_and_nothing_is_written() -> None:
    old = fs.Store.from_tree({**net(), "same": np.ones(3, F4), "kind": np.ones(3, F4)})
    target = {"Dense_0": net()["Dense_0"], "head": {"w": 1.0}, "same": np.ones(4, F4), "kind": np.ones(3, np.float16)}
    new = filled(fs.Layout.from_tree(target))
    before = new.buffer.copy()
    with pytest.raises(fs.StructureError) as error:
        fs.transfer(old, new, drop="Dense_2/bias", rename={"Dense_1/bias": "Dense_1/b"})
    says(error, "6 leaves without a counterpart", "float32[3]", "float32[4]", "float16[3]", "none at 'Dense_1/b'")
    paths = [difference.path for difference in error.value.differences]
    assert paths == ["Dense_1/bias", "Dense_1/kernel", "Dense_2/kernel", "kind", "same", "head/w"]
    np.testing.assert_array_equal(new.buffer, before)


def test_names_that_match_nothing_are_a_slip_of_the_pen() -> None:
    old = fs.Store.zeros(LAYOUT)
    for edit in ({"drop": "c"}, {"rename": {"c": "d"}}, {"add": "c"}, {"add": {"c": np.ones(2)}}):
        with pytest.raises(ValueError) as error:
            fs.transfer(old, LAYOUT, **edit)
        says(error, "'c'")


def test_two_leaves_for_one_place_are_refused() -> None:
    old = fs.Store.from_tree({"a": np.ones(3, F4), "b": np.zeros(3, F4)})
    new = fs.Store.zeros(fs.replan(old.layout, drop="b"))
    for edit in ({"rename": {"b": "a"}}, {"drop": "b", "add": {"a": np.ones(3, F4)}}):
        with pytest.raises(ValueError) as error:
            fs.transfer(old, new, **edit)
        says(error, "'a'")
    assert not new.flat.any()


def test_an_array_to_add_must_fit() -> None:
    old = fs.Store.zeros(LAYOUT)
    layout = fs.replan(LAYOUT, add={"c": S((2,), F4)})
    for array in (np.ones(3, F4), np.ones(2, np.float16)):
        with pytest.raises(fs.StructureError) as error:
            fs.transfer(old, layout, add={"c": array})
        says(error, "'c'", "float32[2]")


@pytest.mark.parametrize("value", ["abc", None, {}, len, (), S((3,), F4), {"w": "abc"}])
def test_what_is_no_array_where_one_belongs_is_refused(value: Any) -> None:
    new = filled(fs.replan(LAYOUT, add={"c": S((2,), F4)}))
    before = new.buffer.copy()
    with pytest.raises(fs.StructureError) as error:
        fs.transfer(fs.Store.zeros(LAYOUT), new, add={"c": value})
    says(
        error,
        "'c'",
        "float32[2]" if not isinstance(value, dict) or not value else "rename an old leaf to it, or name it",
    )
    np.testing.assert_array_equal(new.buffer, before)


def test_what_is_added_covers_its_node_or_the_rest_is_listed() -> None:
    layout = fs.replan(LAYOUT, add={"c": {"u": S((2,), F4), "v": S((2,), F4)}})
    with pytest.raises(fs.StructureError) as error:
        fs.transfer(fs.Store.zeros(LAYOUT), layout, add={"c": {"u": np.ones(2, F4)}})
    says(error, "'c/v'", "name it in add=")
    new = fs.transfer(fs.Store.zeros(LAYOUT), layout, add={"c": {"u": np.ones(2, F4), "v": S((2,), F4)}})
    assert new["c/u"].all() and not new["c/v"].any()


@pytest.mark.parametrize("add", [3, [3], {"c": fs.Population.zeros(LAYOUT, 2)}, {"c": (256, 10)}])
def test_an_add_that_is_none_says_what_was_expected(add: Any) -> None:
    with pytest.raises(TypeError) as error:
        fs.transfer(fs.Store.zeros(LAYOUT), fs.replan(LAYOUT, add={"c": S((2,), F4)}), add=add)
    says(error, "add")


def test_the_paths_of_a_mapping_to_add_are_no_globs() -> None:
    edit = {"add": {"net[1]": np.ones(2, F4), "a*": S((), F4)}}
    new = fs.transfer(fs.Store.zeros(LAYOUT), fs.replan(LAYOUT, **edit), **edit)
    assert new["net[1]"].all() and list(new) == ["a/w", "a*", "b", "net[1]"]
    assert list(fs.replan(new.layout, drop="net[[]1]").by_path) == ["a/w", "a*", "b"]
    assert fs.transfer(new, new.layout, add=None)["net[1]"].all()


def test_a_node_whose_key_was_empty_may_stay_so() -> None:
    layout = fs.Layout.from_tree({"": {"w": 1.0}})
    assert list(fs.replan(layout, rename={"*": "net/*"}).by_path) == ["net//w"]


def test_a_store_over_the_same_memory_is_refused() -> None:
    old = filled(LAYOUT)
    before = old.buffer.copy()
    with pytest.raises(ValueError) as error:
        fs.transfer(old, fs.Store.wrap(old.buffer, LAYOUT))
    says(error, "memory of its own")
    np.testing.assert_array_equal(old.buffer, before)


def test_a_store_and_a_population_do_not_mix() -> None:
    pop, store = fs.Population.zeros(LAYOUT, 2), fs.Store.zeros(LAYOUT)
    for old, new in ((pop, store), (store, pop), (pop, fs.Population.zeros(LAYOUT, 3)), (store.tree, store)):
        with pytest.raises(TypeError) as error:
            fs.transfer(old, new)
        says(error, "of one size", "old: ", "new: Store" if new is store else "new: Population of")
    with pytest.raises(TypeError) as error:
        fs.replan(store)  # type: ignore[arg-type]
    says(error, "Store", "store.layout")


def test_a_lent_store_takes_nothing_but_gives() -> None:
    store, new = filled(LAYOUT), fs.Store.zeros(LAYOUT)
    with new.lend("jax"):
        with pytest.raises(fs.LentError):
            fs.transfer(store, new)
    assert not new.flat.any()
    with store.lend("jax"):
        fs.transfer(store, new)
    np.testing.assert_array_equal(new.flat, store.flat)


def test_a_deleted_array_cannot_be_added() -> None:
    array = jax.numpy.ones(2)
    array.delete()
    with pytest.raises(ValueError) as error:
        fs.replan(LAYOUT, add={"c": array})
    says(error, "deleted")
