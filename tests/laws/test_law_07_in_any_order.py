"""Any order of writes, lends, slices and copies, against plain arrays and the number of open lends (law 7)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import flatstore as fs
from tests.example_trees import gap_bytes, same_bits

LAYOUT = fs.Layout.from_tree(
    {
        "a": [np.zeros((2, 3), np.float32), np.zeros((), np.float32)],
        "h": np.zeros(5, ml_dtypes.bfloat16),
        "e": np.zeros((0, 2), np.float32),
        "n": np.zeros(3, np.int8),
        "z": {"w": np.zeros(17, np.float32)},
    }
)
SIZE = 4
SHARED = [leaf.path for leaf in LAYOUT.leaves if not leaf.trainable]
SOLO, MANY = "store", "population"

who = st.sampled_from([SOLO, MANY])
paths = st.sampled_from(list(LAYOUT.by_path))
trainable = st.sampled_from([leaf.path for leaf in LAYOUT.leaves if leaf.trainable])
members = st.integers(0, SIZE - 1)
seeds = st.integers(0, 999)


def numbers(like: np.ndarray, seed: int) -> np.ndarray:
    """Integers that every dtype here holds."""
    return np.random.default_rng(seed).integers(0, 100, like.shape).astype(like.dtype)


class Machine(RuleBasedStateMachine):
    """One store and one population, next to the arrays that they should show."""

    def __init__(self) -> None:
        super().__init__()
        self.real: dict[str, Any] = {SOLO: fs.Store.zeros(LAYOUT), MANY: fs.Population.zeros(LAYOUT, SIZE)}
        self.model = {name: {path: np.array(real[path]) for path in LAYOUT.by_path} for name, real in self.real.items()}
        self.lends: list[tuple[str, Any, Any]] = []
        self.member, self.part = self.real[MANY][2], self.real[MANY][1:3]
        self.node = dict(self.real[SOLO].modules())["a"]

    def lent(self, name: str) -> bool:
        return any(lent == name for lent, _, _ in self.lends)

    def attempt(self, name: str, write: Callable[[], Any], record: Callable[[], None]) -> None:
        """Do it in both worlds; while lent, it must fail in the real one with nothing written."""
        if not self.lent(name):
            write()
            record()
            return
        before = self.real[name].buffer.tobytes()
        with pytest.raises((fs.LentError, ValueError)) as error:
            write()
        assert isinstance(error.value, fs.LentError) or "read-only" in str(error.value)
        assert self.real[name].buffer.tobytes() == before

    def write(self, name: str, view: np.ndarray, path: str, at: Any, seed: int) -> None:
        """Write through a view of the leaf at `path`, or of its part `at`."""
        model = self.model[name][path]
        values = numbers(model[at], seed)
        self.attempt(name, lambda: np.copyto(view, values), lambda: model.__setitem__(at, values))

    # -- writes

    @rule(name=who, path=paths, seed=seeds)
    def write_through_a_leaf(self, name: str, path: str, seed: int) -> None:
        self.write(name, self.real[name][path], path, ..., seed)

    @rule(name=who, seed=seeds)
    def write_through_the_tree(self, name: str, seed: int) -> None:
        self.write(name, self.real[name].tree["a"][0], "a/0", ..., seed)

    @rule(seed=seeds)
    def write_through_a_node(self, seed: int) -> None:
        self.write(SOLO, self.node["0"], "a/0", ..., seed)
        self.write(SOLO, self.node.tree[1], "a/1", ..., seed)

    @rule(seed=seeds, path=st.sampled_from(["a/0", "z/w"]))
    def write_through_flat(self, seed: int, path: str) -> None:
        leaf, first = LAYOUT.leaf(path), LAYOUT.leaf("a/0")
        start = (leaf.offset - first.offset) // 4
        view = self.real[SOLO].flats["float32"][start : start + leaf.size].reshape(leaf.shape)
        self.write(SOLO, view, path, ..., seed)

    @rule(path=trainable, i=members, seed=seeds)
    def write_through_a_member(self, path: str, i: int, seed: int) -> None:
        self.write(MANY, self.real[MANY][i][path], path, (i, ...), seed)

    @rule(path=trainable, seed=seeds)
    def write_through_a_member_and_a_slice_that_are_kept(self, path: str, seed: int) -> None:
        self.write(MANY, self.member[path], path, (2, ...), seed)
        self.write(MANY, self.part[path], path, (slice(1, 3), ...), seed + 1)

    @rule(path=st.sampled_from(SHARED))
    def a_shared_leaf_is_never_written_through_a_member(self, path: str) -> None:
        with pytest.raises(ValueError, match="read-only"):
            self.member[path][...] = 1
        with pytest.raises((fs.StructureError, fs.LentError)):
            self.part[path] = self.model[MANY][path] + 1

    # -- verbs

    @rule(name=who, form=st.sampled_from(["tree", "mapping", "pairs", "vector", "other"]), seed=seeds)
    def assign(self, name: str, form: str, seed: int) -> None:
        new = {path: numbers(array, seed + i) for i, (path, array) in enumerate(self.model[name].items())}
        other = fs.Store.zeros(LAYOUT) if name == SOLO else fs.Population.zeros(LAYOUT, SIZE, order="leaf")
        other.assign(new)
        forms = {"tree": other.tree, "mapping": new, "pairs": iter(new.items()), "other": other}
        values = other.to_vector() if form == "vector" else forms[form]
        self.attempt(name, lambda: self.real[name].assign(values), lambda: self.model[name].update(new))

    @rule(name=who, path=paths, seed=seeds)
    def set_a_leaf(self, name: str, path: str, seed: int) -> None:
        value = numbers(self.model[name][path], seed)
        self.attempt(
            name, lambda: self.real[name].__setitem__(path, value), lambda: self.model[name].update({path: value})
        )

    @rule(i=members, seed=seeds)
    def assign_to_a_member(self, i: int, seed: int) -> None:
        model = self.model[MANY]
        new = {path: array if path in SHARED else numbers(array[i], seed) for path, array in model.items()}

        def record() -> None:
            for path in model.keys() - SHARED:
                model[path][i] = new[path]

        self.attempt(MANY, lambda: self.real[MANY][i].assign(new), record)

    @rule()
    def swap_leaves_of_the_store(self) -> None:
        store, model = self.real[SOLO], self.model[SOLO]
        w = np.array(model["z/w"])[::-1]
        swapped = {**{path: store[path] for path in store}, "z/w": store["z/w"][::-1]}
        self.attempt(SOLO, lambda: store.assign(swapped), lambda: model.update({"z/w": w}))

    @rule(name=who, seed=seeds)
    def a_failing_assign_writes_nothing(self, name: str, seed: int) -> None:
        new = {path: numbers(array, seed) for path, array in self.model[name].items()}
        new["z/w"] = np.ones(3, np.float32)
        with pytest.raises((fs.StructureError, fs.LentError)):
            self.real[name].assign(new)

    @rule(seed=seeds)
    def write_through_another_store_over_the_same_bytes(self, seed: int) -> None:
        store, model = self.real[SOLO], self.model[SOLO]
        new = numbers(model["h"], seed)

        def write() -> None:
            fs.Store.wrap(store.buffer, LAYOUT)["h"] = new

        self.attempt(SOLO, write, lambda: model.update({"h": new}))

    # -- reads

    @precondition(lambda self: len(self.lends) < 4)
    @rule(name=who)
    def lend(self, name: str) -> None:
        lend = self.real[name].lend()
        self.lends.append((name, lend, lend.__enter__()))

    @precondition(lambda self: self.lends)
    @rule(data=st.data())
    def read_a_lend(self, data: Any) -> None:
        name, _, tree = data.draw(st.sampled_from(self.lends))
        for array, path in zip(jax.tree.leaves(tree), LAYOUT.by_path, strict=True):
            assert same_bits(jnp.copy(array), self.model[name][path])

    @precondition(lambda self: self.lends)
    @rule(data=st.data())
    def end_a_lend(self, data: Any) -> None:
        _, lend, tree = self.lends.pop(data.draw(st.integers(0, len(self.lends) - 1)))
        lend.__exit__(None, None, None)
        assert all(array.is_deleted() for array in jax.tree.leaves(tree))

    @rule(name=who)
    def read_the_alias(self, name: str) -> None:
        alias = self.real[name].alias()
        assert alias is self.real[name].alias()
        for array, path in zip(jax.tree.leaves(alias), LAYOUT.by_path, strict=True):
            assert same_bits(array, self.model[name][path])

    @rule(name=who, seed=seeds)
    def copies_are_detached_and_writable(self, name: str, seed: int) -> None:
        other = self.real[name].copy()
        for path, array in self.model[name].items():
            assert same_bits(other[path], array)
            other[path] = numbers(array, seed)

    # -- what always holds

    @invariant()
    def all_views_show_the_model(self) -> None:
        for name, real in self.real.items():
            for path, array in self.model[name].items():
                assert same_bits(real[path], array)
            tree = dict(zip(LAYOUT.by_path, jax.tree.leaves(real.tree), strict=True))
            assert all(tree[path] is real[path] for path in tree)
        for path in set(LAYOUT.by_path) - set(SHARED):
            assert same_bits(self.member[path], self.model[MANY][path][2])
            assert same_bits(self.part[path], self.model[MANY][path][1:3])

    @invariant()
    def cached_views_are_read_only_while_lent_and_only_then(self) -> None:
        for name, real in self.real.items():
            views = [real[path] for path in LAYOUT.by_path] + [real.buffer]
            views += list(real.flats.values()) + list(self.node.values()) if name == SOLO else []
            if name == MANY:
                views += [
                    part[path]
                    for part in (self.member, self.part)
                    for path in part.layout.by_path
                    if path not in SHARED
                ]
            assert {view.flags.writeable for view in views} == {not self.lent(name)}
            assert ("(lent)" in repr(real)) == self.lent(name)
        assert not any(self.member[path].flags.writeable for path in SHARED)

    @invariant()
    def gaps_are_zero(self) -> None:
        assert not gap_bytes(LAYOUT, self.real[SOLO].buffer).any()
        pop = self.real[MANY]
        free = np.ones(pop.buffer.size, bool)
        for view in (pop[path] for path in LAYOUT.by_path):
            start = view.__array_interface__["data"][0] - pop.buffer.ctypes.data
            free[start : start + view.nbytes] = False
        assert not pop.buffer[free].any()

    def teardown(self) -> None:
        for _, lend, _ in self.lends:
            lend.__exit__(None, None, None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=50)
