"""Law 1: every parameter has one home; tied leaves are one home with several names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from tests.example_trees import says

F4 = np.float32


def ties(tree: Any, tied: Any = None) -> dict[str, str]:
    return {leaf.path: leaf.tied for leaf in fs.Layout.from_tree(tree, tied=tied).leaves if leaf.tied is not None}


def test_one_numpy_array_under_two_names_has_one_home() -> None:
    w = np.arange(4, dtype=F4)
    store = fs.Store.from_tree({"in": w, "mid": np.ones(4, F4), "out": [w, w[:]]})
    assert {leaf.path: leaf.tied for leaf in store.layout.leaves} == {
        **{"in": None, "mid": None},
        **{"out/0": "in", "out/1": "in"},
    }
    assert store.layout.size == 8 and len(store.layout.homes) == 2
    store["out/0"][1] = 9
    assert store["in"][1] == store.tree["out"][1][1] == store.flat[1] == store.to_vector()[1] == 9
    assert store["in"] is store["out/0"] is store.tree["in"] is store.tree["out"][0]


def test_the_same_memory_in_another_shape_or_a_part_of_it_is_refused() -> None:
    w = np.ones((2, 3), F4)
    for other in (w.T, w.reshape(3, 2), w.reshape(-1), w[:1], w[:, 1:], w[::-1], w.view(np.int32)):
        with pytest.raises(ValueError) as error:
            fs.Layout.from_tree({"first": w, "second": other})
        says(error, "'first'", "'second'", "overlap", "tied=False")
        assert ties({"first": w, "second": other}, tied=False) == {}


def test_interleaved_views_that_share_no_byte_are_separate_homes() -> None:
    x = np.arange(12, dtype=F4).reshape(3, 4)
    tree = {"even": x[:, ::2], "odd": x[:, 1::2]}
    assert ties(tree) == {}
    store = fs.Store.from_tree(tree)
    np.testing.assert_array_equal(store["even"], x[:, ::2])
    np.testing.assert_array_equal(store["odd"], x[:, 1::2])
    assert ties({"even": x[:, ::2], "again": x[:, ::2], "odd": x[:, 1::2]}) == {"even": "again"}


def test_an_overlap_far_behind_the_neighbour_is_found() -> None:
    x = np.zeros(100, F4)
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree({"a": x[::3], "b": x[1:2], "c": x[9:10]})
    says(error, "'a'", "'c'")
    assert ties({"a": x[::3], "b": x[1:2], "c": x[10:12]}) == {}


def test_empty_and_equal_arrays_are_not_tied() -> None:
    empty = np.zeros((0, 3), F4)
    assert ties({"a": empty, "b": np.ones(2), "c": np.ones(2), "d": empty}) == {}


def test_a_repeated_jax_array_is_an_error_until_the_caller_says_what_it_means() -> None:
    w = jnp.ones(3)
    tree = {"net": {"w": w}, "target": {"w": w}, "third": w, "other": w + 1}
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree(tree)
    says(error, "'net/w'", "'target/w'", "'third'", "tied=True", "tied=False")
    assert "other" not in str(error.value)
    assert ties(tree, tied=True) == {"target/w": "net/w", "third": "net/w"}
    assert ties(tree, tied=False) == {}
    assert fs.Layout.from_tree(tree, tied=True).size == 6
    assert fs.Layout.from_tree(tree, tied=False).size == 12
    store = fs.Store.from_tree(tree, tied=False)
    store["net/w"][:] = 5
    np.testing.assert_array_equal(store["target/w"], [1, 1, 1])


def test_tied_weights_of_a_torch_module_are_found() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Model()
    tree = dict(model.named_parameters(remove_duplicate=False))
    assert ties(tree) == {"head.weight": "embed.weight"}
    store = fs.Store.from_tree(tree)
    assert store.layout.size == 15
    np.testing.assert_array_equal(store["head.weight"], model.embed.weight.detach().numpy())
    store["head.weight"][0] = 7
    assert (store["embed.weight"][0] == 7).all() and (model.embed.weight[0] != 7).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float64, torch.bool])
def test_torch_tensors_of_any_dtype_are_tied_by_memory(dtype: torch.dtype) -> None:
    w = torch.ones(4).to(dtype)
    assert ties({"a": w, "b": w.view(4), "c": w.clone()}) == {"b": "a"}
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree({"a": w, "b": w[1:]})
    says(error, "'a'", "'b'")


def test_a_numpy_view_of_a_torch_tensor_is_tied_to_it() -> None:
    w = torch.ones(4)
    assert ties({"n": w.numpy(), "t": w}) == {"t": "n"}


def test_ties_can_be_said_for_shapes() -> None:
    shapes = jax.eval_shape(lambda: {"a": jnp.ones(3), "b": jnp.ones(3), "c": jnp.ones(2)})
    assert ties(shapes, tied={"b": "a"}) == {"b": "a"}
    store = fs.Store.zeros(fs.Layout.from_tree(shapes, tied={"b": "a"}))
    store["b"][:] = 4
    np.testing.assert_array_equal(store["a"], [4, 4, 4])


@pytest.mark.parametrize("tied", [{"a": "b"}, {"b": "x"}, {"x": "a"}, {"b": "b"}, {"c": "b", "b": "a"}])
def test_what_is_said_must_name_an_earlier_home(tied: dict[str, str]) -> None:
    with pytest.raises(ValueError) as error:
        fs.Layout.from_tree({"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}, tied=tied)
    says(error, *next(iter(tied.items())))


def test_said_ties_must_agree_in_shape_dtype_and_trainable() -> None:
    for other, trainable in [(np.ones(3), None), (np.ones(2, F4), None), (np.ones(2), "a")]:
        with pytest.raises(ValueError) as error:
            fs.Layout.from_tree({"a": np.ones(2), "b": other}, tied={"b": "a"}, trainable=trainable)
        says(error, "'a'", "'b'", "tied=False")


def test_a_tie_that_is_said_needs_equal_values() -> None:
    with pytest.raises(fs.StructureError) as error:
        fs.Store.from_tree({"a": np.zeros(2), "b": np.ones(2)}, tied={"b": "a"})
    says(error, "'b'", "'a'")


def test_tied_leaves_must_be_given_the_same_and_nothing_is_written_otherwise() -> None:
    w = np.full(2, np.nan, F4)
    store = fs.Store.from_tree({"a": w, "b": w, "c": np.zeros(2, F4)})
    store.assign({"a": np.full(2, np.nan, F4), "b": np.full(2, np.nan, F4), "c": np.ones(2, F4)})
    before = store.buffer.tobytes()
    with pytest.raises(fs.StructureError) as error:
        store.assign({"a": np.zeros(2, F4), "b": np.ones(2, F4), "c": np.zeros(2, F4)})
    says(error, "'b'", "'a'", "tied=False")
    assert store.buffer.tobytes() == before


def test_a_node_that_holds_only_a_tied_name_sees_the_home() -> None:
    w = np.ones(3, F4)
    store = fs.Store.from_tree({"a": {"w": w, "x": np.zeros(2, F4)}, "b": {"v": np.full(2, 2, F4), "w": w}})
    node = dict(store.modules())["b"]
    node["w"][0] = 8
    assert store["a/w"][0] == 8 and node.layout.size == 5
    np.testing.assert_array_equal(node.to_vector(), [2, 2, 8, 1, 1])
    with pytest.raises(ValueError) as error:
        node.flat  # noqa: B018
    says(error, "'w'", "to_vector")
    np.testing.assert_array_equal(node.copy().tree["w"], [8, 1, 1])


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_members_of_a_population_keep_their_ties(order: Any) -> None:
    w = np.ones(2, F4)
    pop = fs.Population.from_tree({"in": w, "out": w}, 3, order=order)
    pop[1]["out"][:] = 5
    np.testing.assert_array_equal(pop["in"], [[1, 1], [5, 5], [1, 1]])
    assert pop["in"] is pop["out"] and pop.axes == {"in": 0, "out": 0}
    assert pop.to_vector().shape == (3, 2)
