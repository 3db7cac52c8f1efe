"""Nothing numeric rides along unseen (law 6), however many objects lie between it and the leaf."""

import array
import collections
import functools
import itertools
import logging
import threading
import weakref
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numba
import numpy as np
import optax
import pytest
import scipy.sparse
import torch

import flatstore as fs
from tests.example_trees import F4, KEY, act, says

W = np.ones(3, F4)


class Layer:
    """An object in plain Python."""

    def __init__(self, w: Any) -> None:
        self.w = w

    def method(self) -> None: ...


class Slotted:
    __slots__ = ("__w", "unset")

    def __init__(self, w: Any) -> None:
        self.__w = w


class Below(Slotted):
    __slots__ = ()


def in_a_circle() -> Layer:
    layer = Layer(None)
    layer.w = [layer, {"back": layer, "on": Layer(W)}]
    return layer


def a_function() -> Any:
    def function() -> None: ...

    function.layer = Layer(W)
    return function


HIDDEN: dict[str, Any] = {
    "an object in an object": Layer(Layer(W)),
    "an object in a list": Layer([Layer(W)]),
    "an object in a tuple in a dict in a deque": Layer(collections.deque([Layer({1: (W,), "a": None})])),
    "an object in a set": {Layer(W)},
    "an object in a mapping": MappingProxyType({"l": Layer(W)}),
    "a module of torch": Layer(torch.nn.Linear(2, 2)),
    "a method of torch's": torch.nn.Linear(2, 2).forward,
    "a method": Layer(W).method,
    "a method of an array": W.sum,
    "a method of a list": [W].append,
    "a partial of a method of torch's": functools.partial(torch.nn.Linear(2, 2).forward),
    "a partial of a method": functools.partial(Layer(W).method),
    "a partial of a partial": functools.partial(functools.partial(act, x=Layer(W)), 1),
    "slots": Slotted(W),
    "slots of the class above": Below(W),
    "values of a dict": {"a": W}.values(),
    "an iterator": iter([W]),
    "an iterator over numbers": iter([0.1]),
    "an iterator over values": iter({"a": W}.values()),
    "an iterator over an array of JAX's": iter(jnp.ones(2)),
    "a generator": (x for x in [W]),
    "a map": map(act, [W]),
    "a zip": zip([W], strict=True),
    "a chain": itertools.chain([1], [W]),
    "NumPy's iterator": np.nditer(W),
    "a flat iterator": Layer(W.flat),
    "an array of Python's": Layer(array.array("f", [1])),
    "a bytearray": Layer(bytearray(4)),
    "a decimal": Layer(Decimal("0.1")),
    "a fraction in a list": Layer([Fraction(1, 3)]),
    "a storage of torch": Layer(torch.ones(2).untyped_storage()),
    "a polynomial": Layer(np.polynomial.Polynomial([1, 2])),
    "a sparse matrix": Layer(scipy.sparse.csr_matrix(np.eye(2))),
    "an array in an array of objects": Layer(np.array([None, W], object)),
    "an array with fields": Layer(np.zeros(2, [("a", "f4"), ("b", "S3")])),
    "a circle": in_a_circle(),
    "an attribute of a function": a_function(),
    "a store": Layer(Layer(fs.Store.from_tree({"w": W}))),
    "an optimiser": fs.es.Adam(fs.Store.from_tree({"w": W})),
    "a large integer": {10**30},
}


# JAX's own warning for iterators as leaves.
@pytest.mark.filterwarnings("ignore:Python iterable type")
@pytest.mark.parametrize("kind", HIDDEN)
def test_numbers_are_found_however_deep_they_are(kind: str) -> None:
    for make in (fs.Layout.from_tree, fs.Store.from_tree):
        with pytest.raises(TypeError) as error:
            make({"in": {"x": HIDDEN[kind]}, "w": W})
        says(error, "'in/x': ", type(HIDDEN[kind]).__name__)


def test_the_error_says_where_they_are() -> None:
    with pytest.raises(TypeError) as error:
        fs.Store.from_tree({"x": Layer([None, {"a": Layer(W)}])})
    says(error, "'x': ", "a Layer with numbers in it (ndarray at .w[1]['a'].w); fix: ")


@pytest.mark.filterwarnings("ignore:Python iterable type")
def test_looking_does_not_use_up_what_can_be_used_once() -> None:
    names = (str(x) for x in "abc")
    fs.Layout.from_tree({"rider": names, "w": W})
    assert list(names) == ["a", "b", "c"]


class Module(nn.Module):
    """A module of flax's, which has its parameters elsewhere."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(x)


def jitted() -> Any:
    return jax.jit(functools.partial(act, W))


RIDERS: dict[str, Any] = {
    "a module of flax's": Module(),
    "its apply": Module().apply,
    "a function of optax's": optax.adam(1e-3).update,
    "an initialiser": nn.initializers.lecun_normal(),
    "a function of JAX's": jax.nn.relu,
    "a jitted function of an array": jitted(),
    "a partial of a jitted function of an array": functools.partial(jitted()),
    "a function compiled by Numba": numba.njit(act),
    "a function of NumPy's": np.vectorize(abs),
    "a module": np,
    "an object with a module": Layer(jnp),
    "an activation of torch's": torch.nn.ReLU().forward,
    "a lock": threading.Lock(),
    "a thread": threading.current_thread(),
    "a logger": Layer(logging.getLogger()),
    "an object with a key": Layer([Layer(KEY)]),
    "an object with a layout": Layer(Layer(fs.Layout.from_tree({"w": W}))),
    "noise": Layer(fs.Normal(0.1)),
    "a shape": Layer(jax.ShapeDtypeStruct((2,), F4)),
    "a configuration": Layer({"rates": [0.1, F4(0.2)], "sizes": (1, 2), "which": {1, 2}, "steps": range(3)}),
    "a set of configurations": {Layer(0.1)},
    "a generator's method": np.random.default_rng(0).normal,
    "a count": itertools.count(),
    "a circle": SimpleNamespace(),
    "an empty slot": Below(None),
    "an array of names": Layer([np.array(["a"]), np.array([None], object), np.datetime64("2020-01-01")]),
    "a reference": weakref.ref(in_a_circle),
    "a placement": jax.sharding.SingleDeviceSharding(jax.devices()[0]),
}
RIDERS["a circle"].itself = RIDERS["a circle"]


@pytest.mark.parametrize("kind", RIDERS)
def test_what_leads_to_no_numbers_rides_along(kind: str) -> None:
    assert fs.Store.from_tree({"rider": RIDERS[kind], "w": W}).tree["rider"] is RIDERS[kind]


def test_a_closure_rides_along_with_its_function() -> None:
    store = fs.Store.from_tree({"apply": lambda x, w=W: (x, W, w), "w": W})
    assert store.layout.size == 3


def test_an_object_that_leads_to_too_many_others_is_refused_and_not_looked_through_for_ever() -> None:
    class Endless(Mapping[str, Any]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            return iter("a")

        def __getitem__(self, key: str) -> Any:
            return Endless()

    for rider in (Layer([Layer(i) for i in range(1 << 15)]), Endless()):
        with pytest.raises(TypeError) as error:
            fs.Layout.from_tree({"rider": rider, "w": W})
        says(error, "'rider': ", type(rider).__name__, "leads to more than 32,768 objects")


def test_what_cannot_be_looked_through_is_an_error_with_its_reason() -> None:
    class Closed(Mapping[str, Any]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            raise OSError("closed")

        def __getitem__(self, key: str) -> Any: ...

    with pytest.raises(TypeError) as error:
        fs.Layout.from_tree({"rider": Layer(Closed()), "w": W})
    says(error, "'rider': ", "a Layer that cannot be looked through: OSError: closed")


def test_an_exception_of_a_signal_handler_comes_through_as_it_is() -> None:
    class Once(dict[str, Any]):
        def items(self) -> Any:
            if not self:
                self["called"] = True
                raise TimeoutError("a signal")
            return super().items()

    with pytest.raises(TimeoutError, match="a signal"):
        fs.Layout.from_tree({"rider": Layer(Once()), "w": W})


def test_a_tree_of_many_riders_is_planned_without_opening_anything_twice() -> None:
    opened = 0

    class Counts:
        @property
        def __dict__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            nonlocal opened
            opened += 1
            return {"self": self}

    shared = Counts()
    fs.Layout.from_tree({"rider": Layer([shared] * 1000), "w": W})
    assert opened <= 3
