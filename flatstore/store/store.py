"""Store: one model in one buffer.

    >>> store = Store.from_tree({"dense": {"bias": np.zeros(2, "f4"), "kernel": np.ones((2, 2), "f4")}}, align=1)
    >>> store.flat[1] = 5
    >>> store.tree["dense"]["bias"]
    array([0., 5.], dtype=float32)

The flat vector, the tree and each leaf are views of the same bytes: what one writes, all show. Ask for them as often
as you like: after the first time it is the same object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, overload

import numpy as np

from flatstore.layout import Array, Dims, Layout, Leaf, Tied, Trainable
from flatstore.memory import GuardedView, Memory
from flatstore.store.jax_store import JaxStore
from flatstore.store.parts import Parts
from flatstore.store.placement import placement_in_file, placement_in_spans, placement_of_store
from flatstore.store.torch_population import on_device
from flatstore.store.torch_store import TorchStore
from flatstore.store.verbs import Verbs
from flatstore.store.views import Views


class Store(Verbs, Mapping[str, Array]):
    """One buffer and one layout: a mapping from path to view.

    Made by `from_tree` (copies the values in, once), `zeros` or `wrap` (memory that you own).
    """

    __slots__ = ("_flat",)

    @overload
    @classmethod
    def from_tree(
        cls, tree: Any, *, align: int = 64, trainable: Trainable = None, dims: Dims = None, tied: Tied = None
    ) -> Self: ...
    @overload
    @classmethod
    def from_tree(
        cls,
        tree: Any,
        *,
        align: int = 64,
        trainable: Trainable = None,
        dims: Dims = None,
        tied: Tied = None,
        device: Any,
    ) -> JaxStore: ...
    @classmethod
    def from_tree(
        cls,
        tree: Any,
        *,
        align: int = 64,
        trainable: Trainable = None,
        dims: Dims = None,
        tied: Tied = None,
        device: Any = None,
    ) -> Any:
        """A store with the values of a pytree of arrays: copies them, once. Arguments as for `Layout.from_tree`.

        With a `device` of JAX it is a `JaxStore`: a tree of `jax.Array`s there, one per leaf.
        """
        layout = Layout.from_tree(tree, align=align, trainable=trainable, dims=dims, tied=tied)
        if device is not None:
            return on_device(layout, tree, device)
        store = cls.zeros(layout)
        store.assign(tree)
        return store

    @classmethod
    def zeros(cls, layout: Layout) -> Self:
        """A store of zeros in `layout.nbytes` new bytes. Raises `MemoryError`, or `TypeError` without a `Layout`."""
        placement = placement_of_store(layout)
        return cls._over(layout, Memory.heap(layout.nbytes, max(64, layout.align)), placement)

    @classmethod
    def wrap(cls, buffer: Any, layout: Layout) -> Self:
        """A store over memory that you own: views. The values found there are the parameters; nothing is written.

        `buffer` is a NumPy array, a torch tensor, anything with DLPack or the buffer protocol; its first
        `layout.nbytes` bytes are used.

        Raises `ValueError` if it is too small, misaligned, read-only or not contiguous, or if the bytes between the
        leaves are not zero; `TypeError` if it is not memory, or `layout` not a `Layout`.
        """
        return cls._wrap(buffer, layout, placement_of_store(layout), layout.align)

    @classmethod
    def in_file(cls, memory: Memory, layout: Layout, starts: Mapping[str, int]) -> Self:
        """A store over the bytes of a file, in which its homes start at `starts`; for this package's own modules."""
        store = cls._over(layout, memory, placement_in_file(layout, starts, None))
        store._whole = True
        return store

    @classmethod
    def like(cls, other: Views) -> Store:
        """A store of zeros with the layout and the indices of another; for this package's own modules."""
        placement = placement_of_store(other.layout)._replace(parts=other.parts)
        return Store._over(other.layout, Memory.heap(other.layout.nbytes, max(64, other.layout.align)), placement)

    @classmethod
    def in_place(cls, memory: Memory, layout: Layout, starts: Mapping[str, int], parts: Parts | None = None) -> Self:
        """A store over leaves that their owner keeps wherever they are; for this package's own modules.

        The homes start at the bytes `starts` of the memory.
        """
        store = cls._over(layout, memory, placement_in_spans(layout, starts, parts))
        store._whole = True
        return store

    @classmethod
    def in_segment(cls, memory: Memory, layout: Layout) -> Self:
        """A store over the bytes of a segment; for this package's own modules."""
        return cls._in_segment(memory, layout, placement_of_store(layout), None)

    # -- a mapping

    def __getitem__(self, path: str | tuple[Any, ...]) -> Array:
        """The view of a leaf, by its path or tuple of keys; a 0-d leaf is a 0-d view. Raises `KeyError`."""
        if self._memory.lends:
            return self.leaf_view(path)
        try:
            return self._plain.views[path]  # pyright: ignore[reportArgumentType] (a tuple is a miss)
        except (KeyError, TypeError):
            return self.leaf_view(path)

    def __iter__(self) -> Iterator[str]:
        """The paths, in JAX's order."""
        return iter(self.layout.by_path)

    def __len__(self) -> int:
        """The number of paths."""
        return len(self.layout.by_path)

    def __eq__(self, other: object) -> bool:
        """Whether this is the same store; compare values with `to_vector()`."""
        return self is other

    def __hash__(self) -> int:
        """A hash of the object, not of its values."""
        return id(self)

    # -- vectors

    @property
    def flat(self) -> Array:
        """The trainable leaves as one 1-D vector: a view, in memory order, the gaps between leaves shown as zeros.

        Raises `ValueError` if they are of several dtypes (see `flats`), none, or do not lie together, as those of a
        module that was adopted with `move=False`.
        """
        if not self._memory.lends:
            try:
                return self._flat
            except AttributeError:  # the first time
                pass
        flats = self.flats
        if len(flats) != 1:
            raise ValueError(
                f"expected trainable leaves of one dtype, got {', '.join(flats) or 'no trainable leaf'}; "
                "fix: use store.flats, a vector per dtype, or store.to_vector(), a packed copy"
            )
        (flat,) = flats.values()
        if not isinstance(flat, GuardedView):
            self._flat = flat
        return flat

    @property
    def flats(self) -> dict[str, Array]:
        """A dict {dtype name: 1-D vector of the trainable leaves of that dtype}: views, like `flat`."""
        self._refuse_apart("use store.to_vector() or store.copy().flat, which copy, or adopt(module), which moves them")
        groups: dict[str, list[Leaf]] = {}
        in_file = self._placement.order == "file"
        for leaf in sorted(self.layout.homes, key=lambda x: (self.start_of(x) if in_file else x.offset, x.nbytes)):
            if leaf.trainable:
                groups.setdefault(leaf.dtype.name, []).append(leaf)
        return {name: self._vector(name, leaves) for name, leaves in groups.items()}

    def _vector(self, name: str, leaves: list[Leaf]) -> Array:
        if self._placement.order == "leaf":
            raise ValueError(
                "expected a model whose leaves lie together, got a member of a population in order='leaf'; "
                "fix: use member.to_vector() or member.copy().flat, which copy, or a population in order='member'"
            )
        starts = [self.start_of(leaf) for leaf in leaves]
        stops = [start + leaf.nbytes for start, leaf in zip(starts, leaves, strict=True)]
        dtype = leaves[0].dtype
        most_gap = 0 if self._placement.order == "file" else max(self.layout.align, dtype.itemsize) - 1
        for leaf, stop, start in zip(leaves[1:], stops, starts[1:], strict=False):
            if not 0 <= start - stop <= most_gap:
                elsewhere, name = "it is tied to a leaf outside of this node", "node"
                if most_gap == 0:
                    elsewhere, name = "other leaves lie between them in the file", "store"
                raise ValueError(
                    f"expected leaves that lie together, got {leaf.path!r} apart from the one before it ({elsewhere}); "
                    f"fix: use {name}.to_vector() or {name}.copy().flat, which copy"
                )
        size = (stops[-1] - starts[0]) // dtype.itemsize
        return self._combined_view(name, lambda: np.ndarray(size, dtype, self._memory.bytes, starts[0]))

    def copy(self) -> Store:
        """A copy: a store with the same values in memory of its own, even of a member or a node.

        Raises `LentError` while another thread writes.
        """
        return self._copy_to(Store.like(self))

    def share(self, name: str | None = None) -> Store:
        """A copy in memory that other processes of this user attach to: `attach(x.segment)` shows the same bytes there.

        They read it, and this process writes it: a verb that finds readers in other processes raises `LentError`, and
        so do readers a writer. It is removed when the store is not used any more, as this process ends, and, if that is
        killed, when another process shares.

        `name` is one that is free, by default one that nobody else has. Raises `LentError` while another thread writes,
        `ValueError` for a name that cannot be one, `FileExistsError` for one in use, `MemoryError` where there is no
        room, and `OSError` on systems other than Linux.
        """
        return self._copy_to_segment(name, None, placement_of_store(self.layout))

    def __repr__(self) -> str:
        """The leaves with their places."""
        return self._describe(f"Store: {self.layout.summary}")


AnyStore = Store | JaxStore | TorchStore
"""A model on the host, or on a device."""
