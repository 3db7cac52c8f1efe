"""Law 1, one home: every way to a parameter leads to the same bytes."""

import zlib
from typing import Any

import jax
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from tests.example_trees import bits, gap_bytes, same_bits, trees
from tests.routes import agree, aligns, member_routes, orders, seeds, separate, store_routes, trains


@given(trees(), aligns, seeds)
def test_a_tree_comes_back_to_the_bit_with_its_nodes_and_riders(tree: Any, align: int, seed: int) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    assert jax.tree.structure(store.tree) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(store.tree), strict=True):
        assert same_bits(before, after) if isinstance(before, np.ndarray) else before is after
    store.verify()


@given(trees(), aligns, seeds, st.data())
def test_a_write_through_any_view_is_seen_through_all_others_and_gaps_stay_zero(
    tree: Any, align: int, seed: int, data: Any
) -> None:
    store = fs.Store.from_tree(tree, align=align, trainable=trains(seed))
    oracle = separate(tree, store.layout)
    agree(store_routes(store), oracle)
    for _ in range(3):
        views = data.draw(st.sampled_from([views for views in store_routes(store) if views]))
        path = data.draw(st.sampled_from(sorted(views)))
        oracle[path] = bits(oracle[path].shape, oracle[path].dtype, data.draw(seeds))
        views[path][...] = oracle[path]
        agree(store_routes(store), oracle)
        assert not gap_bytes(store.layout, store.buffer).any()


@given(trees(), aligns)
def test_a_copy_and_a_wrapped_copy_of_the_bytes_are_the_same_model_elsewhere(tree: Any, align: int) -> None:
    store = fs.Store.from_tree(tree, align=align)
    oracle = separate(tree, store.layout)
    bytes_of = fs.Store.zeros(store.layout).buffer
    bytes_of[:] = store.buffer
    for other in (store.copy(), fs.Store.wrap(bytes_of, store.layout)):
        agree(store_routes(other), oracle)
        for view in other.values():
            view[...] = bits(view.shape, view.dtype, 1)
    agree(store_routes(store), oracle)


@given(trees(["float32", "int32"]), orders, st.integers(1, 4), seeds, st.data())
def test_members_slices_and_stacks_are_the_same_bytes(tree: Any, order: Any, size: int, seed: int, data: Any) -> None:
    def some_train(path: str, leaf: Any, parent: Any) -> bool:
        return leaf.dtype == np.float32 and (zlib.crc32(path.encode()) + seed) % 4 > 0

    layout = fs.Layout.from_tree(tree, trainable=some_train)
    if not any(leaf.trainable for leaf in layout.leaves):
        return
    pop = fs.Population.from_tree(tree, size, order=order, trainable=some_train)
    oracles = [separate(tree, layout) for _ in range(size)]
    for _ in range(3):
        i = data.draw(st.integers(0, size - 1))
        views = data.draw(st.sampled_from([views for views in member_routes(pop, i) if views]))
        path = data.draw(st.sampled_from(sorted(views)))
        oracles[i][path] = bits(oracles[i][path].shape, np.float32, data.draw(seeds))
        views[path][...] = oracles[i][path]
    for i, oracle in enumerate(oracles):
        agree(member_routes(pop, i), oracle)
        agree(iter([dict(pop[i].items())]), oracle)
        assert pop.to_vector()[i].tobytes() == pop[i].to_vector().tobytes() == pop[i].copy().to_vector().tobytes()
    taken = np.zeros(pop.buffer.size, bool)
    for view in (view for member in pop for view in member.values()):
        first = view.__array_interface__["data"][0] - pop.buffer.__array_interface__["data"][0]
        taken[first : first + view.nbytes] = True
    assert not pop.buffer[~taken].any()
    other = pop.copy(order="leaf" if order == "member" else "member")
    assert all(same_bits(other[path], pop[path]) for path in layout.by_path)


def address(view: Any) -> int:
    return view.__array_interface__["data"][0]


def test_a_lent_leaf_an_aliased_one_and_a_member_are_at_the_address_of_the_store() -> None:
    store = fs.Store.from_tree({"a": np.ones(5, "f4"), "b": np.ones((3, 2), "f4")})
    homes = {leaf.path: address(store.buffer) + leaf.offset for leaf in store.layout.leaves}
    assert {path: address(view) for path, view in store.items()} == homes
    assert store.flat.ctypes.data == homes["a"]
    with store.lend() as lent:
        assert {path: lent[path].unsafe_buffer_pointer() for path in homes} == homes
    assert {path: x.unsafe_buffer_pointer() for path, x in store.alias().items()} == homes
    pop = fs.Population.from_tree(store.tree, 4)
    with pop.lend() as stacked:
        for path, x in stacked.items():
            row = x.nbytes // 4
            assert [address(pop[i][path]) for i in range(4)] == [x.unsafe_buffer_pointer() + i * row for i in range(4)]


def test_an_adopted_module_is_at_the_address_of_its_store_and_what_torch_writes_is_seen() -> None:
    module = torch.nn.Linear(3, 2)
    store = fs.adopt(module)
    for path, parameter in module.named_parameters():
        assert parameter.data_ptr() == address(store[path])
    with torch.no_grad():
        module.weight.fill_(4)
    assert (store["weight"] == 4).all() and (store.flat[:6] == 4).all()


def test_tied_leaves_have_one_home_and_several_names() -> None:
    w = np.ones((2, 3), "f4")
    store = fs.Store.from_tree({"embed": w, "head": w, "other": np.ones(2, "f4")}, align=1)
    assert address(store["embed"]) == address(store["head"]) and store.layout.size == 8
    store["head"][:] = 5
    assert store.flat.tolist() == [5] * 6 + [1] * 2 and (store.tree["embed"] == 5).all()
