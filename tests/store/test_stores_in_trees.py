"""A store in a tree counts as its tree: nothing of it rides along unseen (law 6)."""

import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import F4, act, same_bits, says, tree


def model(value: float = 3, **keywords: Any) -> fs.Store:
    """A store of which something is frozen, something tied and something named."""
    w = np.full((2, 3), value, F4)
    keywords = {"trainable": ["b", "v", "w"], "dims": {"b": ("out",)}} | keywords
    return fs.Store.from_tree({"b": np.full(3, value, F4), "f": F4(value), "v": w, "w": w, "act": act}, **keywords)


def test_a_layout_of_a_tree_with_a_store_is_that_of_the_tree_with_its_tree() -> None:
    store = model()
    layout = fs.Layout.from_tree({"lr": F4(0.1), "nets": [store]})
    rows = {leaf.path: (leaf.shape, leaf.trainable, leaf.tied, leaf.dims) for leaf in layout.leaves}
    assert rows == {
        "lr": ((), True, None, None),
        "nets/0/b": ((3,), True, None, ("out",)),
        "nets/0/f": ((), False, None, None),
        "nets/0/v": ((2, 3), True, None, None),
        "nets/0/w": ((2, 3), True, "nets/0/v", None),
    }
    assert layout.treedef == jax.tree.structure({"lr": 0, "nets": [store.tree]})


def test_what_the_caller_says_of_trainable_dims_and_ties_counts_more() -> None:
    layout = fs.Layout.from_tree({"m": model()}, trainable="m/f", dims={"m/b": ("x",)}, tied=False)
    rows = {leaf.path: (leaf.trainable, leaf.tied, leaf.dims) for leaf in layout.leaves}
    assert rows["m/f"] == (True, None, None) and rows["m/b"] == (False, None, ("x",)) and rows["m/w"][1] is None
    seen = []
    fs.Layout.from_tree({"m": model()}, trainable=lambda path, leaf, node: seen.append((path, sorted(node))))
    assert seen[0] == ("m/b", ["act", "b", "f", "v", "w"])


def test_a_store_in_a_tree_is_copied_in_and_rides_with_its_functions() -> None:
    inner = model()
    store = fs.Store.from_tree({"lr": 0.1, "model": inner})
    assert store.layout.size == 1 + 3 + 1 + 6 and store.tree["model"]["act"] is act
    assert all(same_bits(store[f"model/{path}"], inner[path]) for path in inner)
    inner["b"][:] = 0
    assert (store["model/b"] == 3).all() and not np.shares_memory(store["model/b"], inner["b"])


def test_a_saved_file_has_the_model(tmp_path: Any) -> None:
    fs.save(tmp_path / "x.safetensors", fs.Store.from_tree({"lr": 0.1, "model": fs.Store.from_tree(tree(2))}))
    assert sorted(fs.load(tmp_path / "x.safetensors")) == ["lr", "model/a/b", "model/a/w", "model/n", "model/z"]


def test_one_store_under_two_names_is_tied_and_its_copy_is_not() -> None:
    store = fs.Store.from_tree({"w": np.ones(2, F4)})
    ties = [leaf.tied for leaf in fs.Layout.from_tree({"a": store, "b": store, "c": store.copy()}).leaves]
    assert ties == [None, "a/w", None]


def test_members_and_nodes_are_stores_too() -> None:
    pop = fs.Population.from_tree({"net": {"w": np.ones(2, F4)}, "n": 1}, 3)
    pop[1]["net/w"][:] = 5
    node = dict(pop[1].modules())["net"]
    store = fs.Store.from_tree({"all": pop[1], "part": node})
    assert store["all/net/w"].tolist() == [5, 5] and store.layout.by_path["part/w"].tied == "all/net/w"


def test_a_population_of_a_tree_with_a_store() -> None:
    pop = fs.Population.from_tree({"lr": 0.1, "model": model()}, 4)
    assert pop["model/b"].shape == (4, 3) and pop["model/f"].shape == () and (pop["model/w"] == 3).all()


def test_assign_and_check_take_a_store_in_its_place() -> None:
    store = fs.Store.from_tree({"lr": 0.1, "model": model(0)})
    store.layout.check({"lr": 0.1, "model": model(7)})
    model(7).layout.check(model(7))
    store.assign({"lr": 0.5, "model": model(7)})
    assert store["lr"] == F4(0.5) and (store["model/w"] == 7).all() and store["model/f"] == 7
    with pytest.raises(fs.StructureError) as error:
        store.assign({"lr": 0.5, "model": fs.Store.from_tree({"b": np.ones(3), "x": 1.0})})
    says(error, "'model/x'", "'model/w'", "'model/v'")
    with pytest.raises(fs.StructureError) as error:
        store["lr"] = model()
    says(error, "'lr'", "Store")


def test_destructure_takes_stores_and_flatten_gives_their_vector() -> None:
    actor, critic = model(1), fs.Store.from_tree(tree(2))
    flat, rebuild = fs.destructure({"actor": actor, "critic": critic, "lr": jnp.float32(0.5)})
    assert flat.tolist() == [1] * 9 + [2] * 10 + [0.5]
    back = rebuild(flat)
    assert back["actor"]["v"] is back["actor"]["w"] and back["critic"]["n"] == 2 and back["actor"]["act"] is act
    actor["b"][:] = 4
    moved = rebuild.flatten({"actor": actor, "critic": critic, "lr": F4(0.5)})
    assert moved.tolist() == [4] * 3 + [1] * 6 + [2] * 10 + [0.5]
    assert fs.destructure(critic)[1].flatten(critic).tolist() == [2] * 10
    assert pickle.loads(pickle.dumps(rebuild)) == rebuild


def test_a_large_number_beside_a_store_rides_along() -> None:
    flat, rebuild = fs.destructure({"model": model(1), "seed": 2**40})
    assert flat.shape == (9,) and rebuild(flat)["seed"] == 2**40


def test_surgery_takes_a_store_in_what_it_adds_and_in_what_it_puts_back() -> None:
    old = fs.Store.from_tree({"w": np.ones(2, F4)})
    add = {"head": {"net": model(5)}}
    layout = fs.replan(old.layout, add=add)
    assert not layout.by_path["head/net/f"].trainable and layout.by_path["head/net/w"].tied == "head/net/v"
    new = fs.transfer(old, layout, add=add)
    assert (new["head/net/b"] == 5).all() and new["w"].all()
    fs.put_back(new, {"net": model(6)}, at="head")
    assert (new["head/net/w"] == 6).all()
    fs.put_back(old, fs.Store.from_tree({"w": np.full(2, 8, F4)}))
    assert (old["w"] == 8).all()


def test_virtual_takes_a_store_in_its_place() -> None:
    noise, w = fs.Normal(0.5), {"w": np.ones(5, F4)}
    plain, with_store = (fs.es.virtual({"m": x}, noise, 3) for x in (w, fs.Store.from_tree(w)))
    assert same_bits(plain["m"]["w"], with_store["m"]["w"]) and not (plain["m"]["w"] == 1).any()


def test_virtual_snapped_and_load_take_a_store_for_its_tree_with_all_that_its_layout_says(tmp_path: Any) -> None:
    noise, store = fs.Normal(0.5), model()
    for made in (fs.es.virtual(store, noise, 3), fs.es.snapped(store, noise)):
        assert jax.tree.structure(made) == store.layout.treedef and made["f"] is store["f"]
    moved = fs.es.virtual(store, noise, 3)
    assert same_bits(moved["w"], fs.es.virtual(store, noise, 3, layout=store.layout)["v"])
    fs.save(tmp_path / "x.safetensors", store)
    loaded = fs.load(tmp_path / "x.safetensors", like=store)
    assert loaded.layout == store.layout and loaded.tree["act"] is act


def test_a_store_alone_is_not_planned_anew_and_the_error_says_what_to_pass() -> None:
    fix = "fix: pass store.tree; for a copy store.copy(), for its layout store.layout"
    for take in (fs.Store.from_tree, fs.Layout.from_tree, lambda store: fs.Population.from_tree(store, 2)):
        with pytest.raises(TypeError, match=f"got a Store, which has a layout; {re.escape(fix)}$"):
            take(model())
    with pytest.raises(TypeError, match="fix: pass population.tree; for a copy population.copy"):
        fs.Layout.from_tree(fs.Population.from_tree(tree(), 2))


def test_an_error_about_the_tree_itself_begins_without_an_empty_path() -> None:
    for wrong in (fs.Layout.from_tree(tree()), fs.Population.from_tree(tree(), 2)):
        with pytest.raises(TypeError, match="^expected"):
            fs.Store.from_tree(wrong)
        with pytest.raises(TypeError, match="^expected"):
            fs.destructure(wrong)


def test_a_tree_with_a_store_is_read_during_a_lend() -> None:
    inner = model()
    with inner.lend("jax"):
        assert (fs.Store.from_tree({"m": inner})["m/w"] == 3).all()


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "a population": (fs.Population.from_tree(tree(), 2), ["a Population", "population[0]", "population.tree"]),
    "a layout": (fs.Layout.from_tree(tree()), ["a Layout", "store.tree", "replan"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_population_or_a_layout_in_a_tree_is_an_error_that_names_it(kind: str) -> None:
    inside, words = REFUSED[kind]
    whole = {"lr": 0.1, "model": [inside]}
    store = fs.Store.from_tree({"lr": 0.1, "model": [{"w": 1.0}]})
    for take in (
        fs.Layout.from_tree,
        fs.Store.from_tree,
        fs.destructure,
        store.assign,
        store.layout.check,
        fs.destructure(store)[1].flatten,
        lambda tree: fs.put_back(store, tree),
        lambda tree: fs.replan(store.layout, add={"x": tree}),
        lambda tree: fs.Population.from_tree(tree, 2),
    ):
        with pytest.raises(TypeError) as error:
            take(whole)
        says(error, "model/0'", *words)
    with pytest.raises(TypeError) as error:
        fs.put_back(store, {"0": inside}, at="model")
    says(error, "'model/0'", *words)
    assert store["lr"] == F4(0.1)


def test_a_layout_alone_is_not_a_tree() -> None:
    with pytest.raises(TypeError, match="got a Layout"):
        fs.Layout.from_tree(fs.Layout.from_tree(tree()))
