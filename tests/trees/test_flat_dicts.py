"""flatten_dict and unflatten_dict do what Flax's do, and lose no leaf where those would."""

import enum
from collections import OrderedDict
from typing import Any

import flax.traverse_util as flax_util
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from tests.example_trees import says

X = np.ones(2, np.float32)
CLASH = {"a/b": 1, "a": {"b": 2}}


def dicts(keys: st.SearchStrategy[Any], frozen: bool = False) -> st.SearchStrategy[Any]:
    """Nested dicts, empty ones too; with leaves that are no nodes to Flax."""
    leaf = st.integers() | st.none() | st.just([{"a": 1}]) | st.just(())
    kinds = st.sampled_from([dict, OrderedDict, FrozenDict] if frozen else [dict])
    node = st.recursive(
        leaf, lambda child: st.builds(lambda kind, d: kind(d), kinds, st.dictionaries(keys, child, max_size=3))
    )
    return st.builds(lambda kind, d: kind(d), kinds, st.dictionaries(keys, node, max_size=4))


plain = st.text("ab~1", min_size=1, max_size=2)
awkward = st.text("a/~:012.", max_size=3)
any_key = st.one_of(
    awkward, st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), awkward), st.binary(max_size=2)
)


def as_flax(flat: dict[Any, Any]) -> dict[Any, Any]:
    """With Flax's mark for an empty node where we keep an empty dict."""
    return {key: flax_util.empty_node if isinstance(x, dict) else x for key, x in flat.items()}


@given(dicts(any_key, frozen=True), st.booleans())
def test_tuples_are_flaxs_tuples(tree: Any, keep: bool) -> None:
    flat = fs.flatten_dict(tree, keep_empty_nodes=keep)
    assert list(as_flax(flat).items()) == list(flax_util.flatten_dict(tree, keep_empty_nodes=keep).items())
    assert fs.unflatten_dict(flat) == flax_util.unflatten_dict(flax_util.flatten_dict(tree, keep_empty_nodes=keep))


@given(dicts(plain, frozen=True), st.sampled_from(["/", ".", "::"]), st.booleans())
def test_names_are_flaxs_names(tree: Any, sep: str, keep: bool) -> None:
    flat = fs.flatten_dict(tree, sep, keep)
    theirs = flax_util.flatten_dict(tree, keep_empty_nodes=keep, sep=sep)
    assert list(as_flax(flat).items()) == list(theirs.items())
    assert fs.unflatten_dict(flat, sep) == flax_util.unflatten_dict(theirs, sep)


@given(dicts(awkward), st.sampled_from(["/", "~", "0.", "::"]))
def test_where_keys_hold_the_separator_names_are_flaxs_or_an_error_says_which_clash(tree: Any, sep: str) -> None:
    theirs = flax_util.flatten_dict(tree, sep=sep)
    tuples = flax_util.flatten_dict(tree)
    names = {tuple(name.split(sep)) for name in theirs}
    lost = len(theirs) < len(tuples) or any(path[:end] in names for path in names for end in range(1, len(path)))
    if lost:
        with pytest.raises(ValueError, match="expected .* got .*; fix: "):
            fs.flatten_dict(tree, sep)
    else:
        assert fs.flatten_dict(tree, sep) == theirs
        assert fs.unflatten_dict(theirs, sep) == flax_util.unflatten_dict(theirs, sep)


@given(dicts(any_key), st.sampled_from(["/", ".", "::", "aba", " "]), st.booleans())
def test_escaped_names_bring_any_key_back(tree: Any, sep: str, keep: bool) -> None:
    flat = fs.flatten_dict(tree, sep, keep, escape=True)
    tuples = fs.flatten_dict(tree, keep_empty_nodes=keep)
    assert len(flat) == len(tuples)
    back = fs.unflatten_dict(flat, sep, escape=True)
    assert fs.flatten_dict(back, keep_empty_nodes=keep) == tuples
    assert not keep or back == tree


@given(dicts(plain, frozen=True), st.integers(0, 3))
def test_is_leaf_is_asked_as_flax_asks_it(tree: Any, depth: int) -> None:
    asked: list[Any] = []

    def is_leaf(keys: Any, node: Any) -> bool:
        asked.append((keys, node))
        return len(keys) == depth

    ours = fs.flatten_dict(tree, is_leaf=is_leaf)
    by_us, asked = asked, []
    assert ours == flax_util.flatten_dict(tree, is_leaf=is_leaf)
    assert by_us == asked


def test_an_empty_node_is_kept_as_an_empty_dict_and_flaxs_mark_is_understood() -> None:
    tree = {"a": {}, "b": {"c": FrozenDict()}, "d": 1}
    assert fs.flatten_dict(tree) == {("d",): 1}
    assert fs.flatten_dict(tree, "/", keep_empty_nodes=True) == {"a": {}, "b/c": {}, "d": 1}
    assert fs.flatten_dict({}, keep_empty_nodes=True) == {}
    assert fs.unflatten_dict(flax_util.flatten_dict(tree, keep_empty_nodes=True)) == tree


def test_the_leaves_are_not_copied() -> None:
    tree = {"a": {"w": X}, "b": FrozenDict({"w": X})}
    assert all(leaf is X for leaf in fs.flatten_dict(tree, "/").values())
    assert fs.unflatten_dict({"a/w": X}, "/")["a"]["w"] is X


def test_an_nnx_state_goes_there_and_back() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.rest = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(i)) for i in range(2)])

    state = nnx.state(Net())
    flat = fs.flatten_dict(state)
    assert list(flat) == [tuple(keys) for keys, _ in nnx.to_flat_state(state)]
    assert all(isinstance(leaf, nnx.Variable) for leaf in flat.values())
    named = fs.flatten_dict(state, "/", escape=True)
    assert "rest/~21/kernel" in named
    back = nnx.State(fs.unflatten_dict(named, "/", escape=True))
    assert nnx.to_pure_dict(back).keys() == nnx.to_pure_dict(state).keys()
    assert back["rest"][1]["kernel"] is state["rest"][1]["kernel"]


def test_a_store_is_a_flat_dict_of_views_with_escaped_names() -> None:
    store = fs.Store.from_tree({"my_net/~/linear_0": {"w": X}, "z": X + 1})
    nested = fs.unflatten_dict(store, "/", escape=True)
    assert nested["my_net/~/linear_0"]["w"] is store.tree["my_net/~/linear_0"]["w"]
    assert fs.flatten_dict(store.tree, "/", escape=True).keys() == store.keys()


def test_a_clash_is_an_error_that_names_both() -> None:
    assert len(flax_util.flatten_dict(CLASH, sep="/")) == 1  # what Flax loses
    with pytest.raises(ValueError) as error:
        fs.flatten_dict(CLASH, "/")
    says(error, "('a/b',)", "('a', 'b')", "escape=True")
    assert fs.flatten_dict(CLASH, "/", escape=True) == {"a~1b": 1, "a/b": 2}
    assert fs.unflatten_dict({"a~1b": 1, "a/b": 2}, "/", escape=True) == CLASH


def test_a_leaf_where_another_has_a_node_is_an_error_that_names_both() -> None:
    for flat in ({"a": X, "a/b": 2}, {"a/b": 2, "a": X}):
        with pytest.raises(ValueError) as error:
            fs.unflatten_dict(flat, "/")
        says(error, "'a'", "'a/b'")
        assert "escape=" not in str(error.value)
    with pytest.raises(ValueError) as error:
        fs.unflatten_dict({("a",): 1, ("a", "b", "c"): 2})
    says(error, "('a',)", "('a', 'b', 'c')")
    with pytest.raises(ValueError) as error:
        fs.flatten_dict({"a": 1, "a/b": {"c": 2}}, "/")
    says(error, "('a',)", "('a/b', 'c')", "escape=True")


def test_keys_that_are_no_strings_are_an_error_with_a_separator() -> None:
    with pytest.raises(TypeError) as error:
        fs.flatten_dict({"layers": {0: X}}, "/")
    says(error, "('layers', 0)", "int", "sep=None", "escape=True")


class Kind(enum.StrEnum):
    FIRST = "first"


def test_keys_without_a_literal_cannot_be_escaped_and_strings_come_back_plain() -> None:
    for key in (frozenset({1}), float("nan"), float("inf"), np.int64(3), enum.IntEnum("E", "A").A):
        with pytest.raises(TypeError) as error:
            fs.flatten_dict({"layers": {key: X}}, "/", escape=True)
        says(error, "'layers'", type(key).__name__, "sep=None")
    (back,) = fs.unflatten_dict(fs.flatten_dict({Kind.FIRST: X}, "/", escape=True), "/", escape=True)
    assert back == Kind.FIRST and type(back) is str


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fs.flatten_dict([1]), ["list", "mapping"]),  # type: ignore[arg-type]
        (lambda: fs.unflatten_dict([1]), ["list"]),  # type: ignore[arg-type]
        (lambda: fs.unflatten_dict({"a/b": 1}), ["'a/b'", "tuples of keys", "pass sep='/'"]),
        (lambda: fs.unflatten_dict({("a",): 1}, "/"), ["('a',)", "sep=None"]),
        (lambda: fs.unflatten_dict({(): 1}), ["()"]),
        (lambda: fs.unflatten_dict({"a~b": 1}, "/", escape=True), ["'a~b'", "'~0'"]),
        (lambda: fs.unflatten_dict({"~2nope": 1}, "/", escape=True), ["'~2nope'"]),
        (lambda: fs.unflatten_dict({"~21": 1, "~2True": 2}, "/", escape=True), ["'~21'", "'~2True'"]),
        (lambda: fs.flatten_dict({}, True), ["True", "sep='/'"]),  # type: ignore[arg-type]
        (lambda: fs.flatten_dict({}, ""), ["''"]),
        (lambda: fs.flatten_dict({}, "~", escape=True), ["'~'"]),
        (lambda: fs.flatten_dict({}, escape=True), ["sep=None"]),
        (lambda: fs.flatten_dict({"a": {"b": 1}}, is_leaf=3), ["is_leaf", "3"]),  # type: ignore[arg-type]
    ],
)
def test_bad_input_says_what_was_expected(call: Any, words: list[str]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    says(error, *words)
