"""What stores and populations on a device of JAX or torch have in common: arrays by the path of their home."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from flatstore.layout import Layout, describe, memory_map
from flatstore.memory import Memory, using
from flatstore.store.assigning import Pairs, checked_leaf, checked_leaves, is_pairs
from flatstore.store.parts import Parts
from flatstore.store.verbs import memories_in
from flatstore.store.views import Views


class OnDevice(Mapping[str, Any]):
    """A mapping from path to what is the leaf there."""

    __slots__ = ("_addresses", "device", "homes", "layout", "memory", "parts", "size")

    _addresses: dict[str, int]
    """Where the homes were when that was last looked at; empty ones are nowhere."""

    device: Any
    """Where the leaves are."""

    homes: dict[str, Any]
    """The arrays or tensors by the path of their home; for this package's own modules."""

    layout: Layout
    """Where every parameter stands in the index."""

    memory: Memory
    """By which readers and writers are counted; for this package's own modules."""

    parts: Parts | None
    """Where the leaves stand in a whole model, if they are parts of one."""

    size: int | None
    """The number of members of a population."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"expected a named constructor, got {name}(); fix: call Store.from_tree(tree, device=...)")

    @property
    def tree(self) -> Any:
        """The tree, with what is the leaves now: a verb replaces those of JAX, which can no longer be used then."""
        return self.layout.unflatten([self.homes[leaf.tied or leaf.path] for leaf in self.layout.leaves])

    def __getitem__(self, path: Any) -> Any:
        """What is a leaf now: a `jax.Array`, or a torch view, which is the same object each time. Raises `KeyError`."""
        leaf = self.layout.leaf(path)
        return self.homes[leaf.tied or leaf.path]

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
    def segment(self) -> None:
        """Raises `BufferError`: other processes cannot attach to it."""
        raise BufferError(
            f"expected memory that other processes can attach to, got arrays on {self.device}; "
            "fix: leave workers= out, or use a store on the host"
        )

    def share(self, name: str | None = None) -> None:
        """Raises `BufferError`, as `segment`."""
        return self.segment

    def assign(self, values: Any) -> None:
        """Copy `values` in, leaf by leaf: a tree, a vector, a mapping or an iterable of pairs, as on the host."""
        given = values
        if isinstance(values, OnDevice):
            values = values.tree
        elif isinstance(values, Views):
            values = {path: values.leaf_view(path) for path in values.layout.by_path}
        if is_pairs(self.layout, values):
            for path, value in values:
                self[path] = value
            return
        with using(reads=[given.memory] if isinstance(given, OnDevice) else memories_in(given)) as own:
            self._put(checked_leaves(self.layout, values, self._leading), own)

    def __setitem__(self, path: Any, value: Any) -> None:
        """Copy a value of the leaf's shape into the leaf."""
        with using(reads=memories_in(value)) as own:
            self._put([checked_leaf(self.layout, path, value, self._leading)], own)

    @property
    def _leading(self) -> tuple[int, ...]:
        return () if self.size is None else (self.size,)

    @abstractmethod
    def _put(self, pairs: Pairs, reads: using | None = None) -> None:
        """Write values that were checked, as the only writer; `reads` is what they lie in."""

    def __repr__(self) -> str:
        """The leaves with their addresses."""
        what = f"{self.size:,} members of " if self.size is not None else ""
        title = f"{type(self).__name__} on {self.device}: {what}{self.layout.summary}"
        return (
            f"{title}\n{describe(self.layout.leaves, lambda leaf: hex(self._addresses.get(leaf.tied or leaf.path, 0)))}"
        )

    def _repr_html_(self) -> str:
        """The memory map of the layout, in a notebook."""
        return memory_map(repr(self).partition("\n")[0], self.layout.leaves, self.layout.nbytes)
