"""destructure: a tree as one vector, and back: what enters, what rides along, and in which dtype it comes back."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import flatstore as fs
from tests.example_trees import KEY, Pair, act, same_bits, small, trees

FLOATS = ("float16", "float32", "bfloat16", "float8_e4m3fn", "complex64")

MIXED = (*FLOATS, "int8", "int32", "bool")


def floating(tree):
    """The leaves that enter, in JAX's order."""
    return [x for x in jax.tree.leaves(tree) if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.inexact)]


@settings(max_examples=25)  # each compiles
@given(trees(MIXED, small))
def test_a_tree_comes_back_as_it_was(tree):
    flat, rebuild = fs.destructure(tree, tied=False)
    back = rebuild(flat)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert same_bits(before, after) if isinstance(before, np.ndarray) else before is after


@settings(max_examples=25)  # each compiles
@given(trees(MIXED, small))
def test_the_vector_is_the_floating_leaves_packed_in_jax_order(tree):
    flat, rebuild = fs.destructure(tree, tied=False)
    parts = [x.astype(np.complex64).reshape(-1) for x in floating(tree)]
    assert np.array_equal(np.asarray(flat).astype(np.complex64), np.concatenate([np.zeros(0), *parts]))
    assert flat.shape == (rebuild.size,) and flat.dtype == rebuild.dtype


@settings(max_examples=25)  # each compiles
@given(trees(MIXED, small))
def test_by_copies_and_by_slices_the_leaves_are_the_same_bits(tree):
    flat, rebuild = fs.destructure(tree, tied=False)
    for vector in (flat, jnp.stack([flat, 1 - flat, flat])):
        copied, sliced = rebuild(vector), jax.jit(lambda v: [x for _, x in rebuild.items(v)])(vector)
        for (path, leaf), other in zip(rebuild.items(vector), sliced, strict=True):
            assert same_bits(leaf, other), path
        shapes = [vector.shape[:-1] + x.shape for x in floating(tree)]
        paths = {row.key_path: row for row in (rebuild.layout.leaves if rebuild.layout else ())}
        found = [x for keys, x in jax.tree_util.tree_leaves_with_path(copied) if keys in paths]
        assert [x.shape for x in found] == shapes


@pytest.mark.parametrize(
    "vector", [np.zeros(5), np.arange(5), np.ones(5, bool), np.ones(5, ">f8"), jnp.ones(5, "int8")]
)
def test_any_real_vector_gives_each_leaf_its_own_dtype(vector):
    _, rebuild = fs.destructure({"a": np.ones(2, "f2"), "b": jnp.ones((1, 3), "bfloat16")})
    tree = rebuild(vector)
    assert {name: x.dtype.name for name, x in tree.items()} == {"a": "float16", "b": "bfloat16"}
    assert np.array_equal(np.concatenate([x.ravel().astype("f4") for x in tree.values()]), np.asarray(vector, "f4"))


def test_a_complex_vector_gives_real_leaves_its_real_part():
    flat, rebuild = fs.destructure({"c": np.full(2, 1j, "c8"), "r": np.ones(2, "f4")})
    assert flat.dtype == np.complex64
    tree = rebuild(np.array([1, 2j, 3 + 4j, 5]))
    assert same_bits(tree["c"], np.array([1, 2j], "c8")) and same_bits(tree["r"], np.array([3, 5], "f4"))
    assert rebuild(np.ones(4))["c"].dtype == np.complex64


def test_one_byte_floats_are_promoted_to_a_dtype_that_holds_them():
    flat, rebuild = fs.destructure({"x": jnp.full(2, 0.875, "float8_e4m3fn"), "y": jnp.full(2, 57344.0, "float8_e5m2")})
    assert flat.dtype == jnp.bfloat16 and flat.tolist() == [0.875, 0.875, 57344.0, 57344.0]
    assert {x.dtype.name for x in rebuild(flat).values()} == {"float8_e4m3fn", "float8_e5m2"}


def test_floats_of_half_a_byte_come_back_too():
    flat, rebuild = fs.destructure({"x": jnp.ones(3, "float4_e2m1fn"), "y": jnp.ones(2)})
    assert rebuild(flat)["x"].astype("float32").tolist() == [1, 1, 1]


def test_what_does_not_enter_comes_back_as_it_was():
    count = jnp.int32(3)
    tree = {
        "act": act,
        "count": count,
        "key": KEY,
        "name": "relu",
        "no": None,
        "np": np.int8(2),
        "w": jnp.ones(2),
        "z": 7,
    }
    flat, rebuild = fs.destructure(tree)
    back = rebuild(2 * flat)
    assert flat.shape == (2,) and back.keys() == tree.keys()
    assert all(back[name] is tree[name] for name in tree if name != "w")


def test_an_array_that_rides_along_is_safe_from_later_writes():
    tree = {"n": np.arange(3), "w": np.ones(2, "f4")}
    flat, rebuild = fs.destructure(tree)
    tree["n"][:] = 9
    tree["w"][:] = 9
    back = rebuild(flat)
    assert back["n"].tolist() == [0, 1, 2] and flat.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        back["n"][:] = 0


def test_leaves_do_not_alias_the_vector_that_they_were_made_of():
    vector = np.zeros(64, "f4")
    leaf = fs.destructure({"w": vector})[1](vector)["w"]
    vector[:] = 5
    assert not np.asarray(leaf).any()


@pytest.mark.parametrize("trainable", ["*/w", ["a/w", "b/w"], lambda path, leaf, parent: "w" in path and "n" in parent])
def test_trainable_restricts_what_enters(trainable):
    tree = {k: {"b": jnp.ones(3), "n": 4, "w": jnp.ones(2)} for k in "ab"}
    flat, rebuild = fs.destructure(tree, trainable=trainable)
    back = rebuild(flat * 0)
    assert flat.shape == (4,) and not back["a"]["w"].any() and back["b"]["b"] is tree["b"]["b"]


def test_integers_do_not_enter_whatever_trainable_says():
    assert fs.destructure({"n": 3, "w": jnp.ones(2)}, trainable="*")[0].shape == (2,)


@pytest.mark.parametrize("tree", [{}, [], None, (), {"n": 3, "f": act}, Pair(None, "relu")])
def test_a_tree_of_which_nothing_enters_gives_an_empty_vector(tree):
    flat, rebuild = fs.destructure(tree)
    assert flat.shape == (0,) and flat.dtype == np.float32 and rebuild.layout is None
    assert rebuild(flat) == tree and rebuild(np.zeros((4, 0))) == tree and list(rebuild.items(flat)) == []
    assert rebuild.flatten(tree).shape == (0,)


def test_leaves_without_axes_or_numbers_and_trees_that_are_one_array_are_ordinary():
    flat, rebuild = fs.destructure({"empty": np.zeros((0, 3), "f4"), "one": np.float32(2), "x": 0.5})
    assert flat.tolist() == [2, 0.5] and rebuild(flat)["empty"].shape == (0, 3) and rebuild(flat)["x"].shape == ()
    flat, rebuild = fs.destructure(jnp.arange(3.0))
    assert rebuild(flat).tolist() == [0, 1, 2]


@pytest.mark.parametrize("tied", [True, {"out": "embed"}])
def test_tied_leaves_enter_once_and_come_back_as_the_same_object(tied):
    w = jnp.ones((2, 2))
    flat, rebuild = fs.destructure({"embed": w, "mid": jnp.zeros(1), "out": w}, tied=tied)
    back = rebuild(flat)
    assert flat.shape == (5,) and back["embed"] is back["out"]
    gradient = jax.grad(lambda v: (2 * rebuild(v)["embed"] + 3 * rebuild(v)["out"]).sum())(flat)
    assert gradient.tolist() == [5, 5, 5, 5, 0]
    assert fs.destructure({"embed": w, "out": w}, tied=False)[0].shape == (8,)


def test_numpy_arrays_are_tied_by_their_memory_and_repeated_integers_are_nobodys_business():
    w, count = np.ones(2, "f4"), jnp.int32(1)
    flat, rebuild = fs.destructure({"a": w, "b": w, "n": count, "o": count})
    back = rebuild(flat)
    assert flat.shape == (2,) and back["a"] is back["b"] and back["o"] is count


def test_gradients_with_none_and_optimiser_states_are_trees_too():
    gradients = {"a": None, "w": jnp.full(2, 3.0)}
    flat, rebuild = fs.destructure(gradients)
    assert flat.tolist() == [3, 3] and rebuild(flat)["a"] is None
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init({"b": jnp.zeros(2), "w": jnp.ones(3)})
    flat, rebuild = fs.destructure(state)
    back = rebuild(flat + 1)
    assert flat.shape == (10,) and jax.tree.structure(back) == jax.tree.structure(state)
    assert back[1][0].count is state[1][0].count and back[1][0].nu["w"].tolist() == [1, 1, 1]


def test_flatten_is_the_way_there_for_another_tree_of_the_structure():
    tree = {"f": act, "n": 3, "w": np.ones((2, 2), "f4")}
    flat, rebuild = fs.destructure(tree)
    assert same_bits(rebuild.flatten(rebuild(flat)), flat)
    assert rebuild.flatten({"f": None, "n": None, "w": np.zeros((2, 2))}).dtype == np.float32


def test_locate_counts_in_the_vector_not_in_the_tree():
    _, rebuild = fs.destructure({"a": jnp.zeros(2), "m": jnp.arange(5), "w": jnp.zeros((2, 3))})
    assert [rebuild.locate(i) for i in (0, 1, 2, 7)] == [("a", (0,)), ("a", (1,)), ("w", (0, 0)), ("w", (1, 2))]


def test_an_equal_rebuild_is_the_same_static_argument():
    traced = []

    @partial(jax.jit, static_argnums=0)
    def total(rebuild, vector):
        traced.append(rebuild)
        return sum(x.sum() for _, x in rebuild.items(vector))

    tree = {"act": act, "key": KEY, "n": np.arange(2), "w": jnp.ones(3)}
    flat, first = fs.destructure(tree)
    others = [fs.destructure(jax.tree.map(lambda x: x, tree))[1], pickle.loads(pickle.dumps(first))]
    for rebuild in (first, *others):
        assert rebuild == first and hash(rebuild) == hash(first) and total(rebuild, flat) == 3
    assert len(traced) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"n": np.array([0, 2])},
        {"n": jnp.arange(2)},
        {"act": abs},
        {"w": jnp.ones(4)},
        {"z": None},
        {"n": np.arange(2.0)},
    ],
)
def test_what_makes_other_trees_is_not_equal(change):
    tree = {"act": act, "n": np.arange(2), "w": jnp.ones(3)}
    assert fs.destructure(tree)[1] != fs.destructure(tree | change)[1]
    pair = Pair(jnp.ones(1), 2)
    assert fs.destructure(pair)[1] != fs.destructure({"left": pair.left, "right": 2})[1] != "a string"


def test_rebuild_is_frozen_and_says_what_it_is():
    _, rebuild = fs.destructure({"n": 3, "w": jnp.ones((2, 2))})
    with pytest.raises(AttributeError):
        rebuild.layout = None
    assert repr(rebuild) == "Rebuild: float32[4] to 2 leaves (1 ride along)"


def test_integers_that_no_dtype_holds_ride_along():
    flat, rebuild = fs.destructure({"seed": 2**70, "tokens": -(2**40), "w": jnp.ones(1)})
    assert flat.tolist() == [1]
    back = rebuild(flat)
    assert (back["seed"], back["tokens"]) == (2**70, -(2**40))


def test_one_object_that_rides_along_under_two_names_stays_one():
    count = np.arange(2)
    back = fs.destructure({"a": count, "b": count, "w": np.ones(2, "f4")})[1](np.ones(2))
    assert back["a"] is back["b"] is not count


def test_what_jax_tells_apart_when_it_traces_is_told_apart():
    weak, strong = (fs.destructure({"n": n, "w": jnp.ones(1)})[1] for n in (jnp.asarray(3), jnp.int32(3)))
    assert weak != strong


def test_gradients_of_integers_equal_themselves():
    def gradient():
        return jax.grad(lambda p: (p["w"] ** 2).sum(), allow_int=True)({"i": jnp.arange(2), "w": jnp.ones(2)})

    one = fs.destructure(gradient())[1]
    assert one == fs.destructure(gradient())[1] == pickle.loads(pickle.dumps(one))


def test_a_deleted_rider_is_equal_to_itself_alone():
    first, second = (fs.destructure({"n": jnp.arange(3), "w": jnp.ones(1)})[1] for _ in range(2))
    assert first == second
    first.riders[0][1].delete()
    assert first != second and first == first
