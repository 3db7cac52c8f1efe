"""Stores on a device of JAX: a tree of `jax.Array`s, one per leaf, which verbs donate and replace in the same place.

JAX owns the memory, and never changes an array. So a verb is a jitted function to which the leaves are donated: XLA
writes the new ones where the old ones were, and a stale use of an old one raises. The bits are those of the host.

```
store["w"]   jax.Array at address a  --donated-->  es.perturb  -->  another jax.Array at address a
```

A NumPy view of a leaf, or a DLPack export, that is still held keeps XLA from writing there: then the leaf lies
elsewhere afterwards, which is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf, describe
from flatstore.memory import Memory, using, write
from flatstore.store.assigning import Pairs, checked_leaf, checked_leaves, is_pairs
from flatstore.store.donation import replace_together, written
from flatstore.store.lent_trees import LentTree
from flatstore.store.moves import Moves
from flatstore.store.parts import Parts
from flatstore.store.verbs import memories_in
from flatstore.store.views import Views
from flatstore.trees import Difference, StructureError

jnp: Any = jax.numpy
_jax: Any = jax

MOVED = "elsewhere than before, since something holds a view of what was there; their numbers are as they should be"


class OnDevice(Mapping[str, jax.Array]):
    """What `JaxStore` and `JaxPopulation` have in common."""

    __slots__ = ("_addresses", "_leaves", "device", "known", "layout", "memory", "size")

    _addresses: dict[str, int]
    _leaves: dict[str, jax.Array]

    device: Any
    """Where the leaves are."""

    known: dict[str, Any]
    """What verbs know of the arrays that they have made; for this package's own modules."""

    moves: ClassVar[Moves]
    """What the verbs do; set by the room that knows them."""

    layout: Layout
    """Where every parameter stands in the index."""

    parts: Parts | None = None
    """Where the leaves stand in a whole model, if they are parts of one."""

    memory: Memory
    """A byte that stands for the leaves: readers and writers are counted by it. For this package's own modules."""

    size: int | None
    """The number of members of a population."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"expected a named constructor, got {name}(); fix: call Store.from_tree(tree, device=...)")

    @classmethod
    def zeros(cls, layout: Layout, device: Any, size: int | None = None) -> Self:
        """New leaves of zeros on a device; of `size` members where they train."""
        if not isinstance(device, _jax.Device):
            raise TypeError(f"expected a device of JAX, got {device!r}; fix: pass one, such as jax.devices()[0]")
        self = object.__new__(cls)
        self.layout, self.device, self.size = layout, device, size
        self.memory, self.known = Memory.heap(1), {}
        for leaf in layout.homes:
            if _jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
                raise ValueError(
                    f"{leaf.path!r}: expected a dtype that JAX has, got {leaf.dtype} with 64-bit types off; "
                    "fix: jax.config.update('jax_enable_x64', True), or a float32 leaf"
                )
        self._make()
        return self

    def _make(self) -> None:
        self._leaves = {}  # the old ones go before there are new ones
        for leaf in self.layout.homes:
            self._leaves[leaf.path] = jnp.zeros(self._shape(leaf), leaf.dtype, device=self.device)
        _jax.block_until_ready(self._leaves)
        self._addresses = self._found()

    def _shape(self, leaf: Leaf) -> tuple[int, ...]:
        return (self.size, *leaf.shape) if self.size is not None and leaf.trainable else leaf.shape

    def _found(self, *paths: str) -> dict[str, int]:
        """The addresses of homes, or of all of them."""
        leaves: dict[str, Any] = {path: self._leaves[path] for path in paths} or self._leaves
        return {path: array.unsafe_buffer_pointer() for path, array in leaves.items() if array.size}

    # -- reading

    @property
    def tree(self) -> Any:
        """The tree, with the arrays that are the leaves now: after the next verb, they can no longer be used."""
        return self.layout.unflatten([self._leaves[leaf.tied or leaf.path] for leaf in self.layout.leaves])

    def __getitem__(self, path: str | tuple[Any, ...]) -> jax.Array:
        """The array that is a leaf now. Raises `KeyError`."""
        leaf = self.layout.leaf(path)
        return self._leaves[leaf.tied or leaf.path]

    def __iter__(self) -> Iterator[str]:
        """The paths, in JAX's order."""
        return iter(self.layout.by_path)

    def __len__(self) -> int:
        """The number of paths."""
        return len(self.layout.by_path)

    def __eq__(self, other: object) -> bool:
        """Whether this is the same object; compare values with `to_vector()`."""
        return self is other

    def __hash__(self) -> int:
        """A hash of the object, not of its values."""
        return id(self)

    @property
    def flat(self) -> Any:
        """Raises `ValueError`: arrays of JAX do not lie together."""
        raise ValueError(
            "expected leaves in one buffer, got arrays of JAX, one per leaf; fix: use to_vector(), a copy, or "
            "fs.destructure(store.tree)"
        )

    def to_vector(self) -> Array:
        """A packed copy of the parameters on the host, in index order; a population has a row per member."""
        with using(reads=[self.memory]):
            parts = [np.array(self._leaves[leaf.path]) for leaf in self.layout.homes]
        leading = () if self.size is None else (self.size,)
        rows = [
            np.broadcast_to(x.reshape((*x.shape[: x.ndim - len(leaf.shape)], leaf.size)), (*leading, leaf.size))
            for leaf, x in zip(self.layout.homes, parts, strict=True)
        ]
        return np.concatenate(rows, -1)

    @property
    def segment(self) -> None:
        """Raises `BufferError`: other processes cannot attach to it."""
        raise BufferError(
            f"expected memory that other processes can attach to, got arrays on {self.device}; "
            "fix: leave workers= out, or use a store on the host"
        )

    def share(self, name: str | None = None) -> None:
        """Raises `BufferError`, as `segment`."""
        return self.segment

    def leaf_matrix(self, leaf: Leaf) -> Array:
        """The numbers of a home, a row for each member, on the host; for this package's own modules.

        On a CPU it is a view, and while it is held the leaf cannot be written in its place.
        """
        # An array keeps what it was copied to, as long as it lives: this one does not live long.
        values = np.asarray(self._leaves[leaf.path].addressable_data(0))
        return values.reshape(self.size if self.size is not None and leaf.trainable else 1, leaf.size)

    def lend(self, library: str = "jax", *, patience: float = 10.0) -> LentTree:
        """A context that gives the tree. Meanwhile writes through the store raise. There is nothing to wait for.

        A computation that still reads when the context ends reads what it was given: JAX keeps the order.
        """
        if library != "jax":
            raise ValueError(
                f"expected 'jax', got {library!r}; fix: pass 'jax', or copy the leaves, np.array(store[path])"
            )
        return LentTree(self.memory, lambda: self.tree)

    def verify(self) -> None:
        """Raise `StructureError` unless every leaf lies where it lay before the last verb."""
        moved = [
            Difference(
                path, f"address {was:#x}", f"address {now:#x}", "drop NumPy and DLPack views before the next verb"
            )
            for (path, was), now in zip(self._addresses.items(), self._found().values(), strict=True)
            if was != now
        ]
        if moved:
            self._addresses = self._found()
            raise StructureError(moved, MOVED)

    # -- writing

    def assign(self, values: Any) -> None:
        """Copy `values` in, leaf by leaf: a tree, a vector, a mapping or an iterable of pairs, as on the host."""
        if isinstance(values, OnDevice):
            values = values.tree
        elif isinstance(values, Views):
            values = {path: values.leaf_view(path) for path in values.layout.by_path}
        if is_pairs(self.layout, values):
            for path, value in values:
                self[path] = value
            return
        with using(reads=memories_in(values)) as own:
            self._put(checked_leaves(self.layout, values, self._leading), own)

    def __setitem__(self, path: Any, value: Any) -> None:
        """Copy a value of the leaf's shape into the leaf."""
        with using(reads=memories_in(value)) as own:
            self._put([checked_leaf(self.layout, path, value, self._leading)], own)

    def clear(self) -> None:
        """Make all parameters zero, in new memory; for this package's own modules."""
        self.write(self._make)

    @property
    def _leading(self) -> tuple[int, ...]:
        return () if self.size is None else (self.size,)

    def _put(self, pairs: Pairs, reads: using | None = None) -> None:
        own = set(self._addresses.values())  # a leaf that is given as a value would be held
        pairs = [(leaf, array.copy() if array.ctypes.data in own else array) for leaf, array in pairs]

        def put() -> None:
            for leaf, array in pairs:
                old = self._leaves[leaf.path]
                given = _jax.device_put(np.asarray(array, leaf.dtype), self.device)
                if old.is_deleted():  # to a verb that failed
                    self._leaves[leaf.path] = jnp.array(given, copy=True)
                    self._addresses |= self._found(leaf.path)
                else:
                    self._leaves |= written({leaf.path: old}, {leaf.path: given})
                _jax.block_until_ready(self._leaves[leaf.path])

        self.write(put, reads)

    def replace(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Make the homes, {path: array}, what a jitted function that donates them makes of them and of `arguments`."""

        def donate(homes: tuple[Any, ...]) -> list[Any]:
            return [function(homes[0], *arguments)]

        replace_together([self], donate)

    def write(self, work: Callable[[], object], reads: using | None = None) -> None:
        """Do work that replaces leaves, uninterrupted, as the only writer. At its end, raise as `verify`.

        `reads` is what the work itself reads.
        """
        write([self.memory], work, reads)
        if not self.memory.is_written():
            self.verify()

    def put_in_place(self, homes: Mapping[str, Any]) -> None:
        """Take arrays as homes, by their paths; for this package's own modules."""
        self._leaves = {**self._leaves, **homes}

    @property
    def homes(self) -> dict[str, jax.Array]:
        """The arrays by the path of their home; for this package's own modules."""
        return self._leaves

    def copy(self) -> Self:
        """A copy, in memory of its own on the same device."""
        other = self.zeros(self.layout, self.device, self.size)
        with using(reads=[self.memory]):
            other.replace(written, dict(self._leaves))
        other.verify()
        return other

    def __repr__(self) -> str:
        """The leaves with their addresses."""
        what = f"{self.size:,} members of " if self.size is not None else ""
        title = f"{type(self).__name__} on {self.device}: {what}{self.layout.summary}"
        return (
            f"{title}\n{describe(self.layout.leaves, lambda leaf: hex(self._addresses.get(leaf.tied or leaf.path, 0)))}"
        )


class JaxStore(OnDevice):
    """One model on a device of JAX: what `Store.from_tree(tree, device=...)` makes."""

    __slots__ = ()
