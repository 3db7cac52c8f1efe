"""Plain dataclasses, registered with JAX: trees of their own type go in, come out and are lent."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from tests.example_trees import same_bits, says

F4 = np.float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    """A layer; its activation is part of the definition of the tree."""

    kernel: Any
    bias: Any
    act: Any = dataclasses.field(default=jnp.tanh, metadata={"static": True})

    def __call__(self, x: Any) -> Any:
        return self.act(x @ self.kernel + self.bias)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Net:
    """Frozen and with slots: nothing can be set after it is made."""

    layers: tuple[Dense, ...]
    scale: Any

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.scale * x


class Both(NamedTuple):
    """A named tuple around dataclasses."""

    online: Net
    target: Net


def net(seed: int = 0) -> Net:
    rng = np.random.default_rng(seed)
    layers = [Dense(rng.normal(size=(3, 3)).astype(F4), np.zeros(3, F4), act) for act in (jnp.tanh, jnp.sin)]
    return Net(tuple(layers), F4(1))


X = np.random.default_rng(1).normal(size=(4, 3)).astype(F4)


def test_the_tree_is_of_the_users_types_and_its_fields_are_views() -> None:
    given = Both(net(0), net(1))
    store = fs.Store.from_tree(given)
    tree = store.tree
    assert isinstance(tree, Both) and isinstance(tree.online, Net) and tree.target.layers[1].act is jnp.sin
    assert all(map(same_bits, jax.tree.leaves(tree), jax.tree.leaves(given)))
    tree.online.layers[0].kernel[:] = 2
    assert (store["online/layers/0/kernel"] == 2).all() and (
        store.select("target/*/kernel")["target/layers/0/kernel"] != 2
    ).all()


def test_a_lent_dataclass_computes() -> None:
    store = fs.Store.from_tree(net())
    run = jax.jit(lambda n, x: n(x))
    expected = np.array(run(net(), X))
    with store.lend("jax") as lent:
        assert isinstance(lent, Net)
        assert lent.layers[1].kernel.unsafe_buffer_pointer() == store["layers/1/kernel"].ctypes.data
        assert same_bits(np.array(run(lent, X)), expected)
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, lent, jax.grad(lambda n: jnp.square(n(X)).sum())(lent))
    store.assign(stepped)
    assert same_bits(store["layers/0/bias"], stepped.layers[0].bias) and isinstance(stepped, Net)


def test_a_population_of_dataclasses() -> None:
    pop = fs.Population.from_tree(net(), 3)
    pop["scale"][:] = [0, 1, 2]
    with pop.lend("jax") as stacked:
        out = np.array(jax.vmap(lambda n, x: n(x), in_axes=(pop.axes, None))(stacked, X))
    assert not out[0].any() and same_bits(out[2], 2 * out[1]) and isinstance(pop[1].tree, Net)


def test_a_field_that_holds_something_else_is_named() -> None:
    store = fs.Store.from_tree(net())
    odd = dataclasses.replace(net(), layers=(net().layers[0], Dense(np.zeros((3, 2), F4), None)))
    with pytest.raises(fs.StructureError, match="2 leaves") as error:
        store.assign(odd)
    says(error, "'layers/1/kernel': expected float32[3,3], got float32[3,2]", "'layers/1/bias'", "got nothing")


@dataclasses.dataclass
class Unregistered:
    """JAX does not know this one."""

    w: Any


def test_a_dataclass_that_jax_does_not_know_is_no_tree() -> None:
    with pytest.raises(TypeError) as error:
        fs.Store.from_tree(Unregistered(np.zeros(3)))
    says(error, "a node that JAX knows", "Unregistered with numbers", "register its type with jax.tree_util")
