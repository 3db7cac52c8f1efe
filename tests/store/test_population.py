"""Population: many models in one buffer, in two orders."""

import itertools
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import flatstore as fs
from tests.example_trees import act, says

F4 = np.float32
ORDERS: list[Literal["leaf", "member"]] = ["leaf", "member"]
LAYOUT = fs.Layout.from_tree(
    {"b": np.zeros(3, F4), "mean": np.zeros(2, F4), "n": np.int32(0), "w": np.zeros((2, 3), F4)}, trainable=["b", "w"]
)


def numbered(order: Any = "leaf", size: int = 4) -> fs.Population:
    """A population in which every parameter is another number, but for the shared leaves."""
    pop = fs.Population.zeros(LAYOUT, size, order=order)
    values = np.arange(size * LAYOUT.size, dtype=F4).reshape(size, -1)
    values[:, 3:6] = [7, 8, 9]
    pop.assign(values)
    return pop


both = pytest.mark.parametrize("order", ORDERS)


@both
def test_a_leaf_has_the_axis_of_the_members_and_a_shared_one_has_not(order: Any) -> None:
    pop = numbered(order)
    assert {path: pop[path].shape for path in LAYOUT.by_path} == {"b": (4, 3), "mean": (2,), "n": (), "w": (4, 2, 3)}
    assert pop[("w",)] is pop["w"] is pop.tree["w"] and pop.tree is pop.tree
    assert (len(pop), pop.size, pop.order) == (4, 4, order) and "w" in pop and "x" not in pop
    np.testing.assert_array_equal(pop["w"][1], [[18, 19, 20], [21, 22, 23]])
    assert pop.axes == {"b": 0, "mean": None, "n": None, "w": 0}


@both
def test_a_write_through_a_member_is_seen_in_the_stack_and_the_slice(order: Any) -> None:
    pop = numbered(order)
    part = pop[1:3]
    pop[2]["w"][0, 0] = -1
    assert pop["w"][2, 0, 0] == part["w"][1, 0, 0] == part[1].tree["w"][0, 0] == -1
    part[0]["b"] = np.full(3, -2)
    assert (pop[1]["b"] == -2).all() and (pop.tree["b"][1] == -2).all()
    pop["b"][2, 1] = -3
    assert pop[-2]["b"][1] == part[-1]["b"][1] == -3
    assert [member["b"].tolist() for member in part] == pop["b"][1:3].tolist()


def test_leaf_order_is_a_dense_block_per_leaf() -> None:
    pop = numbered("leaf")
    for path in ("b", "w"):
        assert pop[path].flags.c_contiguous and pop[path].ctypes.data % 64 == 0
    assert (pop.buffer[:48].view(F4) == pop["b"].reshape(-1)).all()
    for verb in (lambda: pop.matrix, lambda: pop[0].flat):
        with pytest.raises(ValueError) as error:
            verb()
        says(error, "order='leaf'", "to_vector", "copy")


def test_member_order_is_a_packed_row_per_member() -> None:
    pop = numbered("member")
    assert pop.matrix.shape == (4, 9) and pop.matrix.flags.c_contiguous and pop.matrix is pop.matrix
    trainable = [i for i in range(LAYOUT.size) if LAYOUT.leaf(LAYOUT.locate(i)[0]).trainable]
    np.testing.assert_array_equal(pop.matrix, pop.to_vector()[:, trainable])
    pop.matrix[3, 0] = -5
    pop[1:].matrix[0, -1] = -6
    assert pop["b"][3, 0] == pop[3].flat[0] == -5 and pop["w"][1, 1, 2] == pop[1].flat[-1] == -6
    assert pop[1:3].matrix.shape == (2, 9) and pop[1].flat.base is not None
    with pytest.raises(ValueError) as error:
        fs.Population.from_tree({"a": np.ones(1), "b": np.ones(1, F4)}, 2, order="member")
    says(error, "float32, float64", "order='leaf'")


@both
def test_shared_leaves_are_held_once_and_read_only_in_members_and_slices(order: Any) -> None:
    pop = numbered(order)
    for part in (pop[0], pop[1:3], pop[:], next(iter(pop)), dict(pop[0].modules())[""]):
        with pytest.raises(ValueError, match="read-only"):
            part["mean"][0] = 1
        assert part["mean"].tolist() == [8 - 1, 8] and part["mean"].ctypes.data == pop["mean"].ctypes.data
    pop["mean"][:] = [1, 2]
    pop["n"] = 3
    assert pop[3]["mean"].tolist() == [1, 2] and pop[0:2]["n"] == 3


@both
def test_changing_a_shared_leaf_through_a_member_is_an_error_with_nothing_written(order: Any) -> None:
    pop = numbered(order)
    before = pop.buffer.tobytes()
    other = {"b": np.zeros(3), "mean": np.zeros(2), "n": 1, "w": np.zeros((2, 3))}
    for verb in (
        lambda: pop[0].assign(other),
        lambda: pop[0].assign(np.zeros(LAYOUT.size)),
        lambda: pop[0].__setitem__("mean", np.zeros(2)),
        lambda: pop[0:1].__setitem__("n", 2),
    ):
        with pytest.raises(fs.StructureError) as error:
            verb()
        says(error, "members share", "trainable")
        assert pop.buffer.tobytes() == before
    pop[0].assign({**other, "mean": pop["mean"], "n": pop["n"]})
    assert (pop[0]["w"] == 0).all() and (pop[1]["w"] != 0).all()


@both
@pytest.mark.parametrize("dtype", [F4, ml_dtypes.bfloat16, np.complex64])
def test_a_member_takes_what_it_gives_also_when_shared_leaves_hold_nan(order: Any, dtype: Any) -> None:
    tree = {"s": np.full(2, np.nan, dtype), "w": np.ones(2, F4)}
    pop = fs.Population.from_tree(tree, 3, order=order, trainable="w")
    pop[0].assign(pop[1].copy())
    pop[0].assign(pop[1].to_vector())
    pop.assign(pop.copy())
    pop.assign(pop.to_vector())


@both
def test_a_population_is_made_of_copies_of_one_model(order: Any) -> None:
    tree = {"act": act, "b": jnp.arange(3.0), "n": 5, "w": torch.ones(2, 3)}
    pop = fs.Population.from_tree(tree, 3, order=order)
    assert all((member["b"] == [0, 1, 2]).all() and (member["w"] == 1).all() for member in pop)
    assert pop["n"] == 5 and pop.tree["act"] is act and pop[0].tree["act"] is act
    assert pop.to_vector().shape == (3, 10)


@both
def test_assign_takes_a_stacked_tree_a_matrix_pairs_and_another_population(order: Any) -> None:
    source = numbered(order)
    stacked = {path: np.array(source[path]) for path in LAYOUT.by_path}
    for values in (
        stacked,
        source.to_vector(),
        jnp.asarray(source.to_vector()),
        list(stacked.items()),
        source,
        source.copy(),
    ):
        pop = fs.Population.zeros(LAYOUT, 4, order=order)
        pop.assign(values)
        np.testing.assert_array_equal(pop.to_vector(), source.to_vector())


@both
def test_a_population_takes_another_order_and_a_slice_of_itself(order: Any) -> None:
    pop, other = numbered(order), numbered(ORDERS[order == "leaf"])
    values = pop.to_vector()
    pop[0:3].assign(pop[1:4])
    np.testing.assert_array_equal(pop.to_vector(), values[[1, 2, 3, 3]])
    pop.assign(other)
    np.testing.assert_array_equal(pop.to_vector(), values)
    pop["b"] = pop["b"][::-1]
    np.testing.assert_array_equal(pop["b"], values[::-1, :3])


@both
def test_rows_of_to_vector_are_the_members_vectors(order: Any) -> None:
    pop = numbered(order)
    for row, member in zip(pop.to_vector(), pop, strict=True):
        assert row.tobytes() == member.to_vector().tobytes() == member.copy().to_vector().tobytes()
    np.testing.assert_array_equal(pop[1:3].to_vector(), pop.to_vector()[1:3])


@pytest.mark.parametrize(("order", "to"), list(itertools.product(ORDERS, [None, *ORDERS])))
def test_a_copy_has_the_same_members_in_memory_of_its_own(order: Any, to: Any) -> None:
    pop = numbered(order)
    for part in (pop, pop[1:3], dict(pop.modules())[""]):
        other = part.copy(order=to)
        assert other.order == (to or order) and not np.shares_memory(other.buffer, pop.buffer)
        np.testing.assert_array_equal(other.to_vector(), part.to_vector())
        other["mean"][:] = other["b"][:] = -1
        assert (pop["mean"] == [7, 8]).all() and (pop["b"] >= 0).all()


@both
def test_modules_are_populations_over_each_node(order: Any) -> None:
    pop = fs.Population.from_tree({"a": {"k": np.ones(2, F4), "n": 3}, "b": [np.ones(3, F4)]}, 4, order=order)
    found = dict(pop.modules())
    assert list(found) == ["", "a", "b"] and found["a"].tree["k"].shape == (4, 2)
    found["b"]["0"][2] = 5
    found["a"]["n"] = 6
    assert (pop[2]["b/0"] == 5).all() and pop["a/n"] == 6


def test_the_matrix_of_a_node_has_the_columns_of_its_leaves() -> None:
    tree = {"a": {"k": np.ones(2, F4)}, "b": {"q": np.full(3, 2, F4)}, "c": {"n": 1}}
    found = dict(fs.Population.from_tree(tree, 2, order="member").modules())
    np.testing.assert_array_equal(found["b"].matrix, np.full((2, 3), 2))
    found["a"].matrix[1] = 7
    np.testing.assert_array_equal(found[""].matrix, [[1, 1, 2, 2, 2], [7, 7, 2, 2, 2]])
    with pytest.raises(ValueError):
        found["c"].matrix  # noqa: B018


def test_a_view_of_a_member_is_read_only_while_lent_and_writable_afterwards_even_if_the_member_is_gone() -> None:
    pop = fs.Population.from_tree({"w": np.ones(16, F4)}, 4)
    before = pop[1]["w"]
    with pop.lend():
        during = pop[2]["w"]
        assert not before.flags.writeable and not during.flags.writeable
    assert before.flags.writeable and during.flags.writeable


def test_chunks_start_where_jax_can_take_them_and_cover_all() -> None:
    pop = numbered("leaf", 50)
    for at_most in (16, 20, 33, 49, 50, 99):
        parts = list(pop.chunks(at_most))
        assert sum(len(part) for part in parts) == 50 and max(map(len, parts)) <= at_most
        np.testing.assert_array_equal(np.concatenate([part["w"] for part in parts]), pop["w"])
        for part in parts:
            assert part["w"].ctypes.data % 64 == part["b"].ctypes.data % 64 == 0
            with part.lend() as params:
                assert params["w"].shape == part["w"].shape
    for at_most, words in [(15, "16"), (0, "at_most >= 1"), (-1, "at_most >= 1")]:
        with pytest.raises(ValueError) as error:
            list(pop.chunks(at_most))
        says(error, words)
    assert [len(part) for part in numbered("member", 10).chunks(4)] == [4, 4, 2]
    assert [len(part) for part in numbered("leaf", 3).chunks(3)] == [3]


@pytest.mark.parametrize(
    ("shape", "members", "sizes"),
    [
        ((1 << 17,), 64, [64]),  # 32 MiB
        ((1 << 17,), 65, [33, 32]),
        ((1 << 20,), 20, [7, 7, 6]),  # 80 MiB
        ((1 << 26,), 3, [1, 1, 1]),  # each more than 32 MiB
        ((1 << 20,), 64, [8] * 8),
        (((1 << 20) + 1,), 64, [16] * 4),  # aligned at each sixteenth alone
        ((1 << 18,), 4096, [41] * 99 + [37]),  # 4 GiB, of which 1 % is more than 32 MiB
        ((2,), 1000, [1000]),
        ((0,), 5, [5]),
    ],
)
def test_chunks_are_32_mib_or_a_hundredth_unless_told_otherwise_of_members_in_equal_parts(shape, members, sizes):
    layout = fs.Layout.from_tree({"w": jax.ShapeDtypeStruct(shape, F4)})
    assert [len(part) for part in fs.Population.zeros(layout, members).chunks()] == sizes  # never touched, so no memory


def test_what_does_not_train_is_in_no_chunk_and_counts_for_none() -> None:
    shapes = {"frozen": jax.ShapeDtypeStruct((1 << 24,), F4), "w": jax.ShapeDtypeStruct((16,), F4)}
    pop = fs.Population.zeros(fs.Layout.from_tree(shapes, trainable="w"), 64)
    assert [len(part) for part in pop.chunks()] == [64]


def test_chunks_of_a_slice_are_aligned_or_an_error() -> None:
    pop = numbered("leaf", 50)
    assert all(part["w"].ctypes.data % 64 == 0 for part in pop[16:].chunks(16))
    with pytest.raises(ValueError) as error:
        list(pop[3:40].chunks(16))
    says(error, "16")
    assert [len(part) for part in pop[3:40].chunks()] == [37]  # as it is
    large = fs.Population.zeros(fs.Layout.from_tree({"w": jax.ShapeDtypeStruct(((1 << 20) + 1,), F4)}), 40)
    assert [len(part) for part in large[16:].chunks()] == [16, 8]
    with pytest.raises(ValueError, match="starts at a multiple of 16 members, got a slice from 3; fix"):
        large[3:].chunks()


def test_axes_are_what_vmap_needs_and_all_members_are_evaluated_in_place() -> None:
    net = {"lin": eqx.nn.Linear(3, 2, key=jax.random.key(1)), "scale": np.full(3, 2, F4)}
    pop = fs.Population.from_tree(net, 5, trainable="lin/*")
    pop["lin/weight"][:] = np.random.default_rng(0).normal(size=(5, 2, 3))
    x = np.arange(3, dtype=F4)

    def score(params: Any) -> Any:
        return params["lin"](params["scale"] * x).sum()

    with pop.lend() as stacked:
        assert isinstance(stacked["lin"], eqx.nn.Linear)
        got = np.array(jax.vmap(score, in_axes=(pop.axes,))(stacked))
    plain = [(m["lin/weight"] @ (m["scale"] * x) + m["lin/bias"]).sum() for m in pop]
    np.testing.assert_allclose(got, plain, rtol=1e-5)
    assert (pop.axes["lin"].weight, pop.axes["scale"]) == (0, None)


@both
def test_members_are_addressed_like_items_of_a_list(order: Any) -> None:
    pop = numbered(order)
    assert (pop[np.int64(2)]["b"] == pop[-2]["b"]).all() and isinstance(pop[0], fs.Store)
    assert len(pop[-3:]) == 3 and len(pop[1:99]) == 3 and len(pop[:]) == 4
    assert (pop[1:][1:][0]["w"] == pop[2]["w"]).all()
    for key in (4, -5, slice(2, 2), slice(0, 4, 2), slice(None, None, -1)):
        with pytest.raises(IndexError) as error:
            pop[key]
        says(error)
    with pytest.raises(KeyError) as error:
        pop["v"]
    says(error, "'v'")
    with pytest.raises(TypeError):
        pop[1.5]


def test_what_cannot_be_a_population_is_an_error_and_what_is_one_shows_it() -> None:
    frozen = fs.Layout.from_tree({"n": 1})
    for layout, size, order, words in [
        (LAYOUT, 0, "leaf", "one member"),
        (LAYOUT, -1, "member", "one member"),
        (LAYOUT, 2, "column", "'column'"),
        (frozen, 2, "leaf", "trainable"),
    ]:
        with pytest.raises(ValueError) as error:
            fs.Population.zeros(layout, size, order=order)  # pyright: ignore[reportArgumentType]
        says(error, words)
    assert all(word in repr(numbered()) for word in ["Population", "4 members", "'leaf'", "float32[2,3]", "frozen"])


@both
def test_zero_sized_and_0d_leaves_are_members_too(order: Any) -> None:
    pop = fs.Population.from_tree({"e": np.zeros((0, 2), F4), "s": F4(1), "w": np.ones(2, F4)}, 3, order=order)
    assert pop["e"].shape == (3, 0, 2) and pop["s"].shape == (3,) and pop[1]["s"].shape == ()
    pop[1]["s"][...] = 4
    assert pop["s"].tolist() == [1, 4, 1] and pop.to_vector().tolist() == [[1, 1, 1], [4, 1, 1], [1, 1, 1]]


def test_the_matrix_of_a_layout_in_another_order_is_one_row_per_member():
    layout = fs.Layout.from_tree({"a": np.zeros(2, "f4"), "b": np.zeros(3, "f4"), "c": np.zeros((), "f4")})
    pop = fs.Population.zeros(fs.replan(layout, order=["c", "b", "*"]), 2, order="member")
    pop["a"][:], pop["b"][:], pop["c"][:] = 1, 2, 3
    assert pop.matrix.shape == (2, 6)
    pop.matrix[0] = 7
    assert (pop["a"].tolist(), pop["c"].tolist()) == ([[7, 7], [1, 1]], [7, 3])
