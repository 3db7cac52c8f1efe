"""`share` and `attach`: the same layout, bits and places in another mapping of the same bytes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flatstore as fs
from flatstore.store.sharing import Shared, read, text_of
from tests.example_trees import Pair, bits, same_bits, says, tree


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["f4", "f8", "i1", "bfloat16", "bool"])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 16, 64, 4096]),
)
def test_what_is_attached_has_the_layout_and_the_bits_of_what_is_shared(kinds, align):
    params = {f"n{i % 2}": {} for i in range(2)} | {"top": np.float32(2)}
    for i, (shape, dtype) in enumerate(kinds):
        params[f"n{i % 2}"][f"t/{i}"] = bits(tuple(shape), dtype, i)
    store = fs.Store.from_tree(params, align=align)
    shared = store.share()
    attached = fs.attach(shared.segment)
    assert shared.layout == attached.layout == store.layout and shared.layout.digest == attached.layout.digest
    assert shared.segment == attached.segment and store.segment is None
    assert all(same_bits(store[at], x[at]) for at in store for x in (shared, attached))
    assert same_bits(shared.buffer, attached.buffer)
    assert all(leaf.index == store.layout.by_path[leaf.path].index for leaf in attached.layout.leaves)
    shared.verify()


@pytest.mark.parametrize("order", ["leaf", "member"])
def test_populations_too_in_their_order_with_what_all_members_share(order):
    pop = fs.Population.from_tree(tree(2), 5, order=order)
    pop[3]["a/w"][:] = 7
    shared = pop.share()
    attached = fs.attach(shared.segment)
    assert (type(attached), attached.size, attached.order) == (fs.Population, 5, order)
    assert same_bits(attached.to_vector(), pop.to_vector()) and same_bits(shared.buffer, pop.buffer)
    assert (attached[3]["a/w"] == 7).all() and attached.segment == shared.segment
    shared["n"] = np.int32(9)  # held once, and written through the whole
    assert attached[1]["n"] == 9
    if order == "member":
        assert attached.matrix.shape == (5, 10)
    else:
        with attached.lend() as stacked:
            assert float(stacked["a"]["w"].sum()) == 2 * 6 * 4 + 7 * 6


def test_ties_axes_frozen_leaves_and_an_order_of_their_own_are_kept():
    w = np.ones((2, 3), "f4")
    layout = fs.Layout.from_tree(
        {"a": {"w": w}, "b": {"w": w, "x": np.ones(3, "f4")}, "c": np.ones(2, "f4")},
        dims={"a/w": ("in", None)},
        trainable=lambda path, leaf, node: path != "c",
    )
    moved = fs.replan(layout, order=["b/x"])
    assert moved.by_path["b/x"].offset == 0
    for plan in (layout, moved):
        store = fs.Store.zeros(plan)
        store["b/w"] = np.full((2, 3), 4, "f4")
        shared = store.share()
        attached = fs.attach(shared.segment)
        assert attached.layout == plan
        assert attached["a/w"] is attached["b/w"] and attached.layout.by_path["a/w"].dims == ("in", None)
        assert not attached.layout.by_path["c"].trainable


def test_nodes_of_other_types_become_ordered_dicts_with_the_same_paths():
    store = fs.Store.from_tree(Pair([np.ones(2, "f4")], {3: np.ones(3, "f4")}))
    shared = store.share()
    attached = fs.attach(shared.segment)
    assert type(shared.tree) is Pair and list(attached) == list(store)
    assert same_bits(attached.to_vector(), store.to_vector())


def test_a_part_of_what_is_shared_has_no_name_to_attach_to():
    pop = fs.Population.from_tree(tree(), 4).share()
    parts = [pop[1], pop[1:], pop.copy(), fs.Store.wrap(pop.buffer[:64], fs.Layout.from_tree({"w": np.ones(2)}))]
    parts += [node for path, node in pop.modules() if path]
    assert all(part.segment is None for part in parts)
    again = pop[1].share()  # a copy, in a segment of its own
    assert again.segment not in (None, pop.segment) and (fs.attach(again.segment)["z"] == 0).all()


def test_a_member_that_is_shared_is_a_store():
    pop = fs.Population.from_tree(tree(5), 4)
    shared = pop[2].share()
    assert type(fs.attach(shared.segment)) is fs.Store and (shared.flat[:3] == 5).all()


def test_what_is_aligned_to_more_than_a_page_is_refused():
    store = fs.Store.from_tree({"w": np.ones(3)}, align=8192)
    with pytest.raises(ValueError) as caught:
        store.share()
    says(caught, "align <= 4096", "8192")


def test_a_text_says_what_lies_there_and_no_other_is_read():
    layout = fs.Store.from_tree(tree()).layout
    text = text_of(Shared(layout, 3, "leaf"))
    assert read(text) == (layout, 3, "leaf") and json.loads(text)["digest"] == layout.digest
    for other in ("", "[]", "null", "{}", '{"leaves": {}}', text.replace(layout.digest, "0" * 64), "[" * 10**5):
        with pytest.raises(ValueError) as caught:
            read(other)
        says(caught, "the text of a segment")
