"""A leaf is named by its key path: typed keys, joined by '/' and escaped as RFC 6901 says."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

import flatstore as fs
from flatstore.trees.paths import as_path, by_path, children, keys_of, matcher, nodes, path_of
from tests.example_trees import says, trees

X = np.ones(2, np.float32)


class Dense(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclass
class Block:
    first: Any
    second: Any


@jax.tree_util.register_pytree_with_keys_class
class Keyed:
    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def tree_flatten_with_keys(self) -> Any:
        return [(GetAttrKey("inside"), self.inside)], None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Any:
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class Keyless:
    def __init__(self, *inside: Any) -> None:
        self.inside = inside

    def tree_flatten(self) -> Any:
        return self.inside, None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Any:
        return cls(*children)


class Net(eqx.Module):
    layers: Any
    name: str = eqx.field(static=True, default="net")


TREES = {
    "dict": ({"b": X, "a": X.copy()}, ["a", "b"], (DictKey("a"),)),
    "list": ([X, X.copy()], ["0", "1"], (SequenceKey(0),)),
    "tuple": ((X, {"w": X.copy()}), ["0", "1/w"], (SequenceKey(0),)),
    "NamedTuple": ({"d": Dense(X, X.copy())}, ["d/kernel", "d/bias"], (DictKey("d"), GetAttrKey("kernel"))),
    "dataclass": (Block(X, [X.copy()]), ["first", "second/0"], (GetAttrKey("first"),)),
    "FrozenDict": (FrozenDict({"a": {"w": X}}), ["a/w"], (DictKey("a"), DictKey("w"))),
    "Equinox": (Net([X, Net(X.copy())]), ["layers/0", "layers/1/layers"], (GetAttrKey("layers"), SequenceKey(0))),
    "custom with keys": (Keyed({"w": X}), ["inside/w"], (GetAttrKey("inside"), DictKey("w"))),
    "custom without keys": (Keyless(X, X.copy()), ["0", "1"], (FlattenedIndexKey(0),)),
    "None and empty": ({"a": None, "b": {}, "c": [], "d": (), "w": X}, ["w"], (DictKey("w"),)),
    "int keys in numeric order": ({10: X, 2: X.copy()}, ["2", "10"], (DictKey(2),)),
    "long list in numeric order": ([X.copy() for _ in range(11)], list(map(str, range(11))), (SequenceKey(0),)),
    "escaped": ({"a/b": X, "a": {"b": X.copy()}, "m~n": X + 1}, ["a/b", "a~1b", "m~0n"], (DictKey("a"), DictKey("b"))),
    "one array": (X, [""], ()),
}


@pytest.mark.parametrize("kind", TREES)
def test_any_pytree_has_named_leaves_with_typed_key_paths(kind: str) -> None:
    tree, paths, first = TREES[kind]
    layout = fs.Layout.from_tree(tree)
    assert [leaf.path for leaf in layout.leaves] == paths
    assert layout.leaves[0].key_path == first
    assert [leaf.key_path for leaf in layout.leaves] == [keys for keys, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("kind", TREES)
def test_any_pytree_comes_back_in_its_own_node_types(kind: str) -> None:
    tree, paths, _ = TREES[kind]
    store = fs.Store.from_tree(tree)
    assert type(store.tree) is type(tree)
    assert jax.tree.structure(store.tree) == jax.tree.structure(tree)
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(store.tree), paths, strict=True)
    for got, view, path in leaves:
        np.testing.assert_array_equal(got, view)
        assert view is store[path]


def test_a_haiku_tree_is_escaped_and_can_be_indexed_by_its_own_keys() -> None:
    store = fs.Store.from_tree({"my_net/~/linear_0": {"w": X, "b": X + 1}})
    assert list(store) == ["my_net~1~0~1linear_0/b", "my_net~1~0~1linear_0/w"]
    assert store[("my_net/~/linear_0", "w")] is store["my_net~1~0~1linear_0/w"]
    store[("my_net/~/linear_0", "w")] = X * 5
    np.testing.assert_array_equal(store.tree["my_net/~/linear_0"]["w"], [5, 5])


def test_a_leaf_can_be_indexed_by_its_typed_key_path() -> None:
    store = fs.Store.from_tree({"a": [X, Dense(X + 1, X + 2)]})
    for leaf in store.layout.leaves:
        assert store[leaf.key_path] is store[leaf.path]
    assert store[("a", 1, "bias")] is store["a/1/bias"]
    assert ("a", 1, "bias") in store and ("a", 2) not in store and 3 not in store


def test_a_tree_that_is_one_array_has_the_empty_path() -> None:
    store = fs.Store.from_tree(X)
    assert store[""] is store[()] is store.tree
    assert list(store) == [""]


@given(st.lists(st.text(), min_size=1).map(tuple))
def test_keys_of_is_the_inverse_of_path_of(keys: tuple[str, ...]) -> None:
    assert keys_of(path_of(keys)) == keys


@given(trees())
def test_two_leaves_of_a_tree_never_share_a_path(tree: Any) -> None:
    assert len(by_path(tree)) == len(jax.tree.leaves(tree))


@given(trees())
def test_nodes_are_all_that_has_children_and_parents_come_first(tree: Any) -> None:
    found = dict(nodes(tree))
    for keys, node in found.items():
        assert children(node)
        assert not keys or keys[:-1] in found
    order = list(found)
    assert all(order.index(keys[:-1]) < order.index(keys) for keys in order if keys)
    leaves = {keys[:i] for keys, _ in jax.tree_util.tree_leaves_with_path(tree) for i in range(len(keys))}
    assert leaves <= found.keys()


def test_a_star_crosses_slashes_and_a_glob_matches_the_whole_path() -> None:
    is_kernel = matcher("*/kernel")
    assert is_kernel("a/kernel") and is_kernel("a/b/kernel")
    assert not is_kernel("kernel") and not is_kernel("a/kernels") and not is_kernel("a/kernel/x")
    either = matcher(["a/*", "?"])
    assert either("a/b") and either("c") and not either("cc")
    assert not matcher([])("a")


def test_globs_tell_upper_from_lower_case() -> None:
    assert not matcher("Dense*")("dense_0")


@pytest.mark.parametrize("key", [3, 2.5, None, ["a"], b"a"])
def test_what_is_not_a_path_is_refused(key: Any) -> None:
    with pytest.raises(TypeError) as error:
        as_path(key)
    says(error, type(key).__name__, "tuple of keys")
    with pytest.raises(TypeError):
        fs.Store.from_tree({"a": X})[key]
