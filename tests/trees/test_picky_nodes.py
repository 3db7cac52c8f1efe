"""Nodes whose constructor looks at its children: run on arrays where that will do, or named where it will not."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import GetAttrKey

import flatstore as fs
from flatstore.trees import unflatten
from tests.example_trees import F4, act, says


@jax.tree_util.register_pytree_with_keys_class
class Matrix:
    """A node that takes only an array of two axes, and something that rides along."""

    def __init__(self, w: Any, name: Any = "m") -> None:
        if w.ndim != 2:
            raise ValueError(f"a matrix has two axes, not {w.ndim}")
        self.w, self.name = w, name

    def tree_flatten_with_keys(self) -> Any:
        return [(GetAttrKey("w"), self.w), (GetAttrKey("name"), self.name)], None

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Any:
        return cls(*children)


def net(value: float = 1) -> Any:
    return {"lr": F4(0.1), "nets": [{"a": Matrix(np.full((2, 3), value, F4), act)}]}


def test_a_store_of_it_does_what_any_store_does() -> None:
    store = fs.Store.from_tree(net())
    assert isinstance(store.tree["nets"][0]["a"], Matrix) and store.tree["nets"][0]["a"].name is act
    assert [path for path, _ in store.modules()] == ["", "nets", "nets/0", "nets/0/a"]
    assert dict(store.modules())["nets/0/a"].tree.w is not None
    layout = pickle.loads(pickle.dumps(store.layout))
    assert layout == store.layout and layout.treedef == store.layout.treedef and layout.riders == store.layout.riders
    store.verify()
    with store.lend("jax") as lent:
        assert isinstance(lent["nets"][0]["a"].w, jax.Array)
    fs.put_back(store, net(2))
    fs.put_back(store, {"a": net(3)["nets"][0]["a"]}, at="nets/0")
    assert (store["nets/0/a/w"] == 3).all()


def test_surgery_of_it_works_where_its_children_stay() -> None:
    store = fs.Store.from_tree(net())
    layout = fs.replan(store.layout, rename={"nets/*": "all/*"}, add={"x": F4(1)})
    new = fs.transfer(store, layout, rename={"nets/*": "all/*"}, add={"x": F4(7)})
    assert isinstance(new.tree["all"][0]["a"], Matrix) and (new["all/0/a/w"] == 1).all() and new["x"] == 7


def test_destructure_and_rebuild_of_it() -> None:
    flat, rebuild = fs.destructure(net())
    again = pickle.loads(pickle.dumps(rebuild))
    assert again == rebuild and isinstance(again(2 * flat)["nets"][0]["a"], Matrix)
    assert rebuild.flatten(net(3)).tolist() == [F4(0.1)] + [3] * 6


@jax.tree_util.register_pytree_with_keys_class
class Strict(Matrix):
    """A node that takes only an array of NumPy or JAX, of one shape, and computes with it, and something else."""

    def __init__(self, w: Any, name: Any) -> None:
        assert isinstance(w, (np.ndarray, jax.Array)), type(w)
        assert w.astype("f4").sum() is not None and w.shape == (2, 3) and w.dtype == F4
        self.w, self.name = w, name


def strict(value: float = 1) -> Any:
    return {"lr": F4(0.1), "nets": [{"a": Strict(np.full((2, 3), value, F4), act)}]}


def test_a_node_that_takes_only_arrays_is_verified_and_put_back() -> None:
    store = fs.Store.from_tree(strict())
    store.verify()  # nothing was handed out yet
    tree = store.tree
    store.verify()
    tree["nets"][0]["a"].w = np.ones((2, 3), F4)
    with pytest.raises(fs.StructureError, match="nets/0/a/w"):
        store.verify()
    fs.put_back(store, strict(2))
    fs.put_back(store, strict(3)["nets"][0], at="nets/0")
    assert (store["nets/0/a/w"] == 3).all()
    with pytest.raises(fs.StructureError, match=r"expected float32\[\], got float64\[2\]"):
        fs.put_back(store, {**strict(4), "lr": np.ones(2)})
    assert (store["nets/0/a/w"] == 3).all()


def test_a_layout_of_a_node_that_takes_only_arrays_is_pickled_and_copied_without_their_bytes() -> None:
    layout = fs.Layout.from_tree({"nets": [Strict(np.ones((2, 3), F4), act)], "large": np.zeros(1 << 20, F4)})
    text = pickle.dumps(layout)
    assert len(text) < 4_000
    for other in (pickle.loads(text), copy.deepcopy(layout)):
        assert other == layout and other.treedef == layout.treedef and other.riders == layout.riders
        assert other.leaves == layout.leaves


def test_surgery_of_a_node_that_takes_only_arrays() -> None:
    old, pop = fs.Store.from_tree(strict()), fs.Population.from_tree(strict(), 3)
    moved: Any = dict(rename={"nets/*": "all/*"})
    added: Any = dict(add={"more": fs.Layout.from_tree(strict()), "arrays": strict(5)})
    renamed, larger = fs.replan(old.layout, **moved), fs.replan(old.layout, **added)
    assert list(renamed.by_path) == ["all/0/a/w", "lr"] and dict(renamed.riders) == {1: act}
    assert type(fs.transfer(old, renamed, **moved).tree["all"][0]["a"]) is Strict
    new = fs.transfer(old, larger, **added)
    assert (new["arrays/nets/0/a/w"] == 5).all() and not new["more/nets/0/a/w"].any()
    fs.transfer(old, new, **added)
    assert fs.transfer(pop, renamed, **moved)["all/0/a/w"].tolist() == np.ones((3, 2, 3)).tolist()
    fs.transfer(pop, fs.Population.zeros(larger, 3), **added)


def test_a_vector_of_a_node_that_takes_only_arrays_is_flattened() -> None:
    flat, rebuild = fs.destructure(strict())
    assert rebuild.flatten(strict(3)).shape == flat.shape
    assert pickle.loads(pickle.dumps(rebuild)) == rebuild


@jax.tree_util.register_pytree_with_keys_class
class Copying(Matrix):
    """A node that is made again with JAX arrays of another dtype."""

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Any) -> Any:
        return cls(jnp.asarray(children[0], jnp.float32), children[1])


def test_what_a_constructor_makes_of_a_leaf_is_not_taken_for_the_leaf() -> None:
    layout = fs.Layout.from_tree({"n": Copying(np.ones((3, 1)), None)})
    again = pickle.loads(pickle.dumps(layout))
    new = fs.replan(layout, rename={"n": "m"}, add={"x": layout})
    assert again.leaves == layout.leaves and [str(leaf.spec) for leaf in new.leaves] == ["float64[3,1]"] * 2
    assert not new.riders


REFUSED: dict[str, Callable[[], Any]] = {
    "the tree of a population": lambda: fs.Population.from_tree(net(), 4).tree,
    "the axes of a population": lambda: fs.Population.from_tree(net(), 4).axes,
    "a lent population": lambda: fs.Population.from_tree(net(), 4).lend("jax").__enter__(),
    "an aliased population": lambda: fs.Population.from_tree(net(), 4).alias("jax"),
    "a part lent": lambda: fs.Store.from_tree(net()).lend("jax", only="lr").__enter__(),
    "a batch rebuilt": lambda: fs.destructure(net())[1](jnp.ones((5, 7))),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_it_cannot_hold_is_an_error_that_names_it_its_path_and_its_reason(kind: str) -> None:
    with pytest.raises(TypeError) as error:
        REFUSED[kind]()
    says(error, "'nets/0/a': ", "Matrix", "as JAX asks", "Error: ")
    assert isinstance(error.value.__cause__, (ValueError, AttributeError))


def test_a_lend_that_cannot_begin_leaves_nothing_lent_even_while_its_error_is_held() -> None:
    pop = fs.Population.from_tree(net(), 4)
    with pytest.raises(TypeError) as error:
        pop.lend("jax", patience=0.0).__enter__()
    pop["lr"] = np.ones(4)
    assert (pop["lr"] == 1).all()
    says(error, "Matrix")


def test_a_population_of_it_is_read_member_by_member_all_the_same() -> None:
    pop = fs.Population.from_tree(net(), 4)
    assert pop["nets/0/a/w"].shape == (4, 2, 3) and isinstance(pop[2].tree["nets"][0]["a"], Matrix)
    assert [path for path, _ in pop.modules()] == ["", "nets", "nets/0", "nets/0/a"]


@jax.tree_util.register_pytree_with_keys_class
class Table(Matrix):
    """A node that takes arrays of one axis or of more."""

    def __init__(self, w: Any, name: Any) -> None:
        assert w.ndim > 0
        self.w, self.name = w, name


@jax.tree_util.register_pytree_with_keys_class
class Silent(Matrix):
    """A node that does not say why it refuses."""

    def __init__(self, w: Any) -> None:
        if w.ndim == 0:
            raise AssertionError
        self.w = w

    def tree_flatten_with_keys(self) -> Any:
        return [(GetAttrKey("w"), self.w)], None


def test_a_node_that_takes_stacked_arrays_is_lent_and_mapped_by_one_axis() -> None:
    pop = fs.Population.from_tree({"t": Table(np.ones((3, 2), F4), None)}, 4)
    with pytest.raises(TypeError, match="'t': expected a node that accepts any leaf, .* Table, .* AttributeError"):
        _ = pop.axes
    with pop.lend("jax") as stacked:
        assert jax.vmap(lambda tree: tree["t"].w.sum(), in_axes=({"t": 0},))(stacked).tolist() == [6] * 4


def test_a_reason_without_words_is_named_by_its_type() -> None:
    with pytest.raises(TypeError, match="Silent, whose constructor raised AssertionError; fix: ") as error:
        unflatten(jax.tree.structure({"s": Silent(np.ones(2))}), [np.ones(())])
    says(error, "Silent")


def test_a_node_whose_path_is_not_known_is_named_without_one() -> None:
    treedef = jax.tree.structure({"a": Matrix(np.ones((2, 3)))})
    with pytest.raises(TypeError, match="^expected a node that accepts any leaf.*got Matrix") as error:
        unflatten(treedef, [1, 2])
    says(error, "Matrix")
    assert unflatten(treedef, [np.ones((2, 3)), 2])["a"].name == 2


def test_a_layout_makes_trees_of_as_many_values_as_it_has_rows() -> None:
    layout = fs.Layout.from_tree({"act": act, "b": 1.0, "w": 2.0})
    assert layout.unflatten([5, 6]) == {"act": act, "b": 5, "w": 6}
    assert layout.unflatten([5, 6], riders=False) == {"act": None, "b": 5, "w": 6}
    for values in ([5], [5, 6, 7]):
        with pytest.raises(ValueError) as error:
            layout.unflatten(values)
        says(error, "2 values", f"got {len(values)}", "layout.leaves")
