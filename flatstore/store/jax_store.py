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

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf
from flatstore.memory import Memory, using, write
from flatstore.store.assigning import Pairs
from flatstore.store.donation import replace_together, written
from flatstore.store.lent_trees import LentTree
from flatstore.store.moves import Moves
from flatstore.store.on_device import OnDevice
from flatstore.trees import Difference, StructureError

jnp: Any = jax.numpy
_jax: Any = jax

MOVED = "elsewhere than before, since something holds a view of what was there; their numbers are as they should be"


class OnJax(OnDevice):
    """What `JaxStore` and `JaxPopulation` have in common."""

    __slots__ = ("known",)

    known: dict[str, Any]
    """What verbs know of the arrays that they have made; for this package's own modules."""

    moves: ClassVar[Moves]
    """What the verbs do; set by the room that knows them."""

    @classmethod
    def zeros(cls, layout: Layout, device: Any, size: int | None = None) -> Self:
        """New leaves of zeros on a device; of `size` members where they train."""
        self = object.__new__(cls)
        self.layout, self.device, self.size, self.parts = layout, device, size, None
        self.memory, self.known = Memory.heap(1), {}  # a byte that stands for the leaves
        for leaf in layout.homes:
            if _jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
                raise ValueError(
                    f"{leaf.path!r}: expected a dtype that JAX has, got {leaf.dtype} with 64-bit types off; "
                    "fix: jax.config.update('jax_enable_x64', True), or a float32 leaf"
                )
        self._make()
        return self

    def _make(self) -> None:
        self.homes = {}  # the old ones go before there are new ones
        for leaf in self.layout.homes:
            self.homes[leaf.path] = jnp.zeros(self._shape(leaf), leaf.dtype, device=self.device)
        _jax.block_until_ready(self.homes)
        self._addresses = self._found()

    def _shape(self, leaf: Leaf) -> tuple[int, ...]:
        return (self.size, *leaf.shape) if self.size is not None and leaf.trainable else leaf.shape

    def _found(self, *paths: str) -> dict[str, int]:
        """The addresses of homes, or of all of them."""
        leaves: dict[str, Any] = {path: self.homes[path] for path in paths} or self.homes
        return {path: array.unsafe_buffer_pointer() for path, array in leaves.items() if array.size}

    # -- reading

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
            parts = [np.array(self.homes[leaf.path]) for leaf in self.layout.homes]
        leading = () if self.size is None else (self.size,)
        rows = [
            np.broadcast_to(x.reshape((*x.shape[: x.ndim - len(leaf.shape)], leaf.size)), (*leading, leaf.size))
            for leaf, x in zip(self.layout.homes, parts, strict=True)
        ]
        return np.concatenate(rows, -1)

    def leaf_matrix(self, leaf: Leaf) -> Array:
        """The numbers of a home, a row for each member, on the host; for this package's own modules.

        On a CPU it is a view, and while it is held the leaf cannot be written in its place.
        """
        # An array keeps what it was copied to, as long as it lives: this one does not live long.
        values = np.asarray(self.homes[leaf.path].addressable_data(0))
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

    def clear(self) -> None:
        """Make all parameters zero, in new memory; for this package's own modules."""
        self.write(self._make)

    def _put(self, pairs: Pairs, reads: using | None = None) -> None:
        own = set(self._addresses.values())  # a leaf that is given as a value would be held
        pairs = [(leaf, array.copy() if array.ctypes.data in own else array) for leaf, array in pairs]

        def put() -> None:
            for leaf, array in pairs:
                old = self.homes[leaf.path]
                given = _jax.device_put(np.asarray(array, leaf.dtype), self.device)
                if old.is_deleted():  # to a verb that failed
                    self.homes[leaf.path] = jnp.array(jnp.broadcast_to(given, self._shape(leaf)), copy=True)
                    self._addresses |= self._found(leaf.path)
                else:
                    self.homes |= written({leaf.path: old}, {leaf.path: given})
                _jax.block_until_ready(self.homes[leaf.path])

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
        self.homes: dict[str, Any] = {**self.homes, **homes}

    def copy(self) -> Self:
        """A copy, in memory of its own on the same device."""
        other = self.zeros(self.layout, self.device, self.size)
        with using(reads=[self.memory]):
            other.replace(written, dict(self.homes))
        other.verify()
        return other


class JaxStore(OnJax):
    """One model on a device of JAX: what `Store.from_tree(tree, device=...)` makes."""

    __slots__ = ()
