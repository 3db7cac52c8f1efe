"""Nothing numeric rides along unseen (law 6): what holds numbers and is no leaf is refused, with its path."""

import array
import ctypes
import functools
from collections import UserDict, UserList, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import tensordict
import torch

import flatstore as fs
from tests.example_trees import F4, KEY, act, says

W = np.ones((2, 3), F4)


class Offers:
    """An object that has numbers, and offers them by one protocol alone."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return W


class OffersDLPack:
    __slots__ = ()

    def __dlpack__(self, **keywords: Any) -> Any:
        return W.__dlpack__(**keywords)

    def __dlpack_device__(self) -> Any:
        return W.__dlpack_device__()


class OffersInterface:
    """As some libraries do: an attribute of the instance."""

    def __init__(self, name: str) -> None:
        setattr(self, name, W.__array_interface__)


@dataclass
class Unregistered:
    w: Any


@dataclass(slots=True)
class Slotted:
    w: Any


class Plain:
    """A layer in plain Python."""

    def __init__(self, w: Any) -> None:
        self.w = w

    def __call__(self, x: Any) -> Any:
        return x @ self.w


HIDDEN: dict[str, Any] = {
    "__array__": Offers("__array__"),
    "__dlpack__": OffersDLPack(),
    "__array_interface__": OffersInterface("__array_interface__"),
    "__cuda_array_interface__": OffersInterface("__cuda_array_interface__"),
    "an array of Python's": array.array("f", [1, 2]),
    "a memoryview": memoryview(W),
    "a bytearray": bytearray(4),
    "a number of C": ctypes.c_float(1),
    "a storage of torch": torch.ones(2).untyped_storage(),
    "a decimal": Decimal("0.1"),
    "a fraction": Fraction(1, 3),
    "a set": {0.1, 0.2},
    "a deque": deque([0.1]),
    "a UserList": UserList([[1.0]]),
    "a mapping that is no dict": MappingProxyType({"lr": 0.1}),
    "a UserDict": UserDict({"w": W}),
    "a mapping in a mapping": MappingProxyType({"inside": [{"w": jnp.ones(2)}]}),
    "a partial function of an array": functools.partial(act, W),
    "a dataclass": Unregistered(W),
    "a dataclass with slots": Slotted(torch.ones(2)),
    "a dataclass of a list": Unregistered([{1: jnp.ones(2), "a": None}]),
    "a layer": Plain(W),
    "a namespace of a store": SimpleNamespace(model=fs.Store.from_tree({"w": W})),
}

TAKERS: dict[str, Any] = {
    "Layout.from_tree": fs.Layout.from_tree,
    "Store.from_tree": fs.Store.from_tree,
    "Population.from_tree": lambda tree: fs.Population.from_tree(tree, 2),
    "destructure": fs.destructure,
    "assign": lambda tree: fs.Store.from_tree({"w": W}).assign(tree),
    "check": lambda tree: fs.Layout.from_tree({"w": W}).check(tree),
    "Rebuild.flatten": lambda tree: fs.destructure({"w": W})[1].flatten(tree),
    "put_back": lambda tree: fs.put_back(fs.Store.from_tree({"in": {"x": act}, "w": W}), tree),
    "replan": lambda tree: fs.replan(fs.Layout.from_tree({"v": W}), add=tree),
    "transfer": lambda tree: fs.transfer(
        fs.Store.from_tree({"v": W}), fs.Layout.from_tree({"in": {"x": W}, "v": W, "w": W}), add=tree
    ),
    "virtual": lambda tree: fs.es.virtual(tree, fs.Normal(0.1), 1),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_what_holds_numbers_and_is_no_leaf_is_an_error_that_names_it(kind: str) -> None:
    with pytest.raises(TypeError) as error:
        fs.Store.from_tree({"in": {"x": HIDDEN[kind]}, "w": W})
    says(error, "'in/x': ", type(HIDDEN[kind]).__name__)


@pytest.mark.parametrize("take", TAKERS)
@pytest.mark.parametrize("value", [Offers("__array__"), Plain(W), Decimal(1), np.ma.masked_array(W, W > 0)])
def test_it_is_an_error_wherever_a_tree_comes_in(take: str, value: Any) -> None:
    with pytest.raises(TypeError) as error:
        TAKERS[take]({"in": {"x": value}, "w": W})
    says(error, "'in/x': ")


def test_nothing_is_written_where_something_is_refused() -> None:
    store = fs.Store.from_tree({"w": W})
    with pytest.raises(TypeError):
        store.assign({"w": 5 * W, "x": Plain(W)})
    assert (store["w"] == 1).all()


@dataclass
class Configuration:
    rate: float = 0.1
    sizes: tuple[int, ...] = (2, 3)


RIDERS: dict[str, Any] = {
    "a function": act,
    "a jitted function of an array": jax.jit(functools.partial(act, 1)),
    "a configuration": Configuration(),
    "a key": KEY,
    "an object with a key": SimpleNamespace(key=KEY),
    "an array of objects elsewhere": SimpleNamespace(names=np.array(["a"])),
    "a set of names": {"a", "b"},
    "a layout in an object": SimpleNamespace(plan=fs.Layout.from_tree({"w": W})),
    "a class with arrays in it": Plain,
    "a dtype of torch": torch.float32,
    "a device": torch.device("cpu"),
    "a generator": np.random.default_rng(0),
    "a range": range(3),
    "bytes": b"12",
}


@pytest.mark.parametrize("kind", RIDERS)
def test_what_holds_no_numbers_rides_along(kind: str) -> None:
    assert fs.Store.from_tree({"rider": RIDERS[kind], "w": W}).tree["rider"] is RIDERS[kind]


def test_a_tensordict_of_mixed_dtypes_or_of_one_is_an_error_that_says_to_dict() -> None:
    for other in (torch.float32, torch.int32):
        leaves = {"a": torch.ones(2, 3), "b": torch.ones(2, dtype=other)}
        with pytest.raises(TypeError) as error:
            fs.Layout.from_tree({"model": tensordict.TensorDict(leaves, batch_size=[2])})
        says(error, "'model': ", "TensorDict", "a dict")


class Claims:
    """An object with a dtype and a shape that it says, and no data."""

    def __init__(self, dtype: Any, shape: Any = (2, 3)) -> None:
        self.dtype, self.shape = dtype, shape


@pytest.mark.parametrize(
    "claims", [Claims(torch.float32), Claims("no such dtype"), Claims(F4, "ab")], ids=["torch", "name", "shape"]
)
def test_a_dtype_or_a_shape_that_numpy_has_not_is_an_error_of_ours(claims: Any) -> None:
    with pytest.raises(TypeError) as error:
        fs.Layout.from_tree({"x": claims})
    says(error, "'x': ", "Claims", "dtype and a shape that NumPy has")


@pytest.mark.parametrize("take", ["Store.from_tree", "destructure", "assign"])
@pytest.mark.parametrize(
    "value", [Claims(F4), scipy.sparse.csr_matrix(W), scipy.sparse.coo_array(W)], ids=["claims", "matrix", "array"]
)
def test_what_has_a_shape_and_a_dtype_but_cannot_be_read_is_an_error_of_ours(take: str, value: Any) -> None:
    with pytest.raises(TypeError) as error:
        TAKERS[take]({"w": value})
    says(error, "'w': ", type(value).__name__, "toarray()", "ShapeDtypeStruct")


def test_an_object_that_numpy_reads_by_its_dtype_and_shape_is_a_leaf() -> None:
    class Series(Claims):
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.arange(6, dtype=F4).reshape(2, 3)

    store = fs.Store.from_tree({"w": Series(F4)})
    assert store["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


class Failing(Claims):
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("not in this process")


def test_an_array_that_refuses_to_be_read_is_named_with_its_reason() -> None:
    with pytest.raises(TypeError) as error:
        fs.Store.from_tree({"w": Failing(F4)})
    says(error, "'w': ", "not in this process")


@pytest.mark.parametrize("mask", [np.ma.nomask, W > 1, W > 0], ids=["none", "of nothing", "of all"])
def test_a_masked_array_is_an_error_that_names_the_leaf(mask: Any) -> None:
    masked = np.ma.masked_array(W, mask)
    store = fs.Store.from_tree({"w": W})
    layout, size = store.layout, store.layout.nbytes
    for take in (
        lambda: fs.Layout.from_tree({"w": masked}),
        lambda: fs.destructure({"w": masked}),
        lambda: store.assign({"w": masked}),
        lambda: store.assign([("w", masked)]),
        lambda: store.__setitem__("w", masked),
        lambda: fs.transfer(store, fs.replan(layout, add={"x": W}), add={"x": masked}),
    ):
        with pytest.raises(TypeError) as error:
            take()
        says(error, "without a mask", "filled", "'x'" if "'x'" in str(error.value) else "'w'")
    for take in (
        lambda: store.assign(np.ma.masked_array(np.zeros(6), True)),
        lambda: fs.Store.wrap(np.ma.zeros(size, np.uint8), layout),
        lambda: fs.destructure({"w": W})[1](np.ma.zeros(6)),
    ):
        with pytest.raises(TypeError, match="without a mask"):
            take()
    assert (store["w"] == 1).all()


def test_a_masked_tensor_of_torch_is_an_error() -> None:
    with pytest.warns(UserWarning):
        masked = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    with pytest.raises((TypeError, ValueError)) as error:
        fs.Store.from_tree({"w": masked})
    says(error, "'w': ")
