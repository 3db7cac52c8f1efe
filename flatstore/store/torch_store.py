"""Stores on a device of torch: one buffer of torch's, and leaves that are torch views of it.

```
buffer    | bias | gap | kernel |        a tensor of bytes, on a card or in host memory
leaves      bias         kernel          tensors over the same bytes, of the leaves' shapes and dtypes
```

torch writes what it owns. So verbs move the bytes where they are, as those of a store on the host, and JAX is lent
views by DLPack. The layout, the indices and the bits are those of a store on the host.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Layout, Leaf, is_torch_tensor, spec_of
from flatstore.memory import MOVED, Memory, using
from flatstore.store.assigning import Pairs, is_pairs
from flatstore.store.jax_store import OnDevice
from flatstore.store.moves import Moves
from flatstore.store.parts import Parts
from flatstore.store.placement import placement_of_population, placement_of_store
from flatstore.store.torch_lends import LentTensors
from flatstore.store.torch_streams import write_in_order
from flatstore.store.torch_tensors import array_of, leaves_in, tensor_of, torch_dtype_of
from flatstore.trees import Difference, StructureError, by_path

ALIGN = 256
"""Bytes: the buffer starts at a multiple, as torch's own allocations on a card do."""


class OnTorch(OnDevice):
    """What `TorchStore` and `TorchPopulation` have in common."""

    __slots__ = ("_buffer", "_moved", "cache", "part_of", "parts")

    _buffer: Any

    moves_on_card: ClassVar[Moves]
    """What the verbs do on a card; set by the room that knows it."""

    cache: dict[Any, Any]
    """What was planned for these leaves; for this package's own modules."""

    part_of: tuple[OnTorch, int] | None
    """The population, and the number, of a member."""

    @classmethod
    def zeros(cls, layout: Layout, device: Any, size: int | None = None) -> Self:
        """New bytes of zeros on a device of torch; of `size` members where they train."""
        torch = require("torch", "torch")
        placement = placement_of_store(layout) if size is None else placement_of_population(layout, size, "leaf")
        try:
            raw = torch.zeros(placement.nbytes + ALIGN, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise MemoryError(
                f"expected {placement.nbytes:,} bytes on {device}, got {error}; fix: plan a smaller model"
            ) from error
        start = -raw.data_ptr() % ALIGN
        buffer = raw[start : start + placement.nbytes]
        return cls.over(layout, leaves_in(buffer, layout, placement, size), buffer, size)

    @classmethod
    def over(
        cls,
        layout: Layout,
        leaves: dict[str, Any],
        buffer: Any = None,
        size: int | None = None,
        parts: Parts | None = None,
        moved: Callable[[], list[Difference]] = list,
    ) -> Self:
        """A store over tensors: the homes by path, and the bytes in which all of them lie, if there are such.

        `moved` tells what lies elsewhere by now, of leaves that others own.
        """
        self = object.__new__(cls)
        self.layout, self.size, self._buffer = layout, size, buffer
        found: list[Any] = [x.device for x in (*leaves.values(), buffer) if x is not None]
        self.device = found[0]
        self._leaves, self.cache, self.part_of, self.parts, self._moved = leaves, {}, None, parts, moved
        on_host = self.device.type == "cpu" and buffer is not None and len(buffer) > 0
        own: Any = buffer
        self.memory = Memory(own.numpy()) if on_host else Memory.heap(1)
        self._addresses = self._found()
        return self

    def _found(self, *paths: str) -> dict[str, int]:
        leaves: dict[str, Any] = {path: self._leaves[path] for path in paths} or self._leaves
        return {path: tensor.data_ptr() for path, tensor in leaves.items() if tensor.numel()}

    @property
    def whole(self) -> Layout:
        """The layout to whose indices the noise belongs: its own, or that of the model that it has parts of."""
        return self.layout if self.parts is None else self.parts.whole

    @property
    def moves(self) -> Moves | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the verbs do with it; None in host memory, where the host's loops go over its bytes."""
        return None if self.device.type == "cpu" else self.moves_on_card

    @property
    def buffer(self) -> Any:
        """All bytes, padding included: a 1-D uint8 tensor, a view. None for a member, and where others own them."""
        return self._buffer

    def __getitem__(self, path: Any) -> Any:
        """The tensor of a leaf: a view, the same object each time. Raises `KeyError`."""
        return super().__getitem__(path)

    def __setitem__(self, path: Any, value: Any) -> None:
        """Copy a value of the leaf's shape into the leaf."""
        if not is_torch_tensor(value) or value.device.type == "cpu":
            return super().__setitem__(path, value)
        leaf = self.layout.leaf(path)
        self._put([self._checked_tensor(leaf, value)])

    @property
    def homes(self) -> dict[str, Any]:
        """The tensors by the path of their home; for this package's own modules."""
        leaves: dict[str, Any] = self._leaves
        return leaves

    def leaf_matrix(self, leaf: Leaf) -> Array:
        """The numbers of a home, a row for each member, on the host; for this package's own modules.

        In host memory it is a view.
        """
        values = array_of(self.homes[leaf.path].cpu())
        return values.reshape(self.size if self.size is not None and leaf.trainable else 1, leaf.size)

    def to_vector(self) -> Array:
        """A packed copy of the parameters on the host, in index order; a population has a row per member."""
        rows = self.size or 1
        with using(reads=[self.memory]):
            parts = [np.broadcast_to(self.leaf_matrix(leaf), (rows, leaf.size)) for leaf in self.layout.homes]
            vectors = np.concatenate(parts, -1)
        return vectors[0] if self.size is None else vectors

    def lend(self, library: str = "torch", *, patience: float = 10.0) -> Any:
        """A context that gives the tree to a library, meanwhile writes through the store raise.

        'jax': `jax.Array`s over the same bytes, views by DLPack. On exit they are deleted, and the exit waits until the
        last computation that reads them has finished, or raises `LentError` after `patience` seconds. 'torch': the
        tree as it is, on the same stream as the verbs.

        Raises `BufferError` for leaves that JAX cannot view.
        """
        if library not in ("jax", "torch"):
            raise ValueError(f"expected 'jax' or 'torch', got {library!r}; fix: pass one of these")
        return LentTensors(self, library == "jax", patience)

    def assign(self, values: Any) -> None:
        """Copy `values` in: a tree, a packed vector or a mapping {path: array}, as for a store on the host.

        Torch tensors on the same kind of device are copied there, leaf by leaf.
        """
        if isinstance(values, OnDevice):
            values = values.tree
        if not is_pairs(self.layout, values) and (not hasattr(values, "shape") or is_torch_tensor(values)):
            named = by_path(values)
            if named and all(is_torch_tensor(x) and x.device.type != "cpu" for x in named.values()):
                self._put(self._checked_tensors(named))
                return
        super().assign(values)

    def _checked_tensors(self, named: Mapping[str, Any]) -> Pairs:
        """The homes among tensors elsewhere, which NumPy cannot read. Raises `StructureError`."""
        differences = [
            Difference(path, str(leaf.spec), "nothing", "add this leaf")
            for path, leaf in self.layout.by_path.items()
            if path not in named
        ]
        for path, tensor in named.items():
            found = self._tensor_difference(path, tensor)
            differences += [found] if found else []
        if differences:
            raise StructureError(differences)
        return [(leaf, named[leaf.path]) for leaf in self.layout.homes]

    def _checked_tensor(self, leaf: Leaf, tensor: Any) -> tuple[Leaf, Any]:
        difference = self._tensor_difference(leaf.path, tensor)
        if difference is not None:
            raise StructureError([difference])
        return self.layout.by_path[leaf.tied or leaf.path], tensor

    def _tensor_difference(self, path: str, tensor: Any) -> Difference | None:
        """Why a tensor that NumPy cannot read does not fit: what is narrower could not hold its numbers."""
        leaf, spec = self.layout.by_path.get(path), spec_of(tensor, path)
        assert spec is not None
        return self.layout.difference(path, spec, "safe", self._leading if leaf is not None and leaf.trainable else ())

    def _put(self, pairs: Pairs, reads: using | None = None) -> None:
        torch = require("torch", "torch")

        def put() -> None:
            with torch.no_grad():
                for leaf, array in pairs:
                    given = array if is_torch_tensor(array) else tensor_of(array, leaf.dtype)
                    self.homes[leaf.path].copy_(given)

        self.write(put, reads)

    def clear(self) -> None:
        """Make all parameters zero; for this package's own modules."""

        def zero() -> None:
            for tensor in self.homes.values():
                tensor.detach().zero_()

        self.write(zero)

    def write(self, work: Any, reads: using | None = None) -> None:
        """Do work that writes the leaves, uninterrupted, as the only writer.

        Raises `StructureError` as `verify` does, if the leaves are not this store's own.
        """
        self.refuse_moved()
        write_in_order(self.device, [self.memory], work, reads)

    def refuse_moved(self) -> None:
        """Raise `StructureError` as `verify` does, if the leaves are not this store's own."""
        if self._buffer is None:
            self.verify()

    def verify(self) -> None:
        """Raise `StructureError` unless every leaf lies where it lay when the store was made."""
        now = self._found()
        moved = [
            Difference(path, f"address {was:#x}", f"address {now.get(path, 0):#x}", "make a new store of it")
            for path, was in self._addresses.items()
            if was != now.get(path)
        ]
        moved += self._moved()
        if moved:
            raise StructureError(moved, MOVED)

    def copy(self) -> Self:
        """A copy, in memory of its own on the same device."""
        other = self.zeros(self.layout, self.device, self.size)
        other.parts = self.parts
        with using(reads=[self.memory]):
            other._put([(leaf, self.homes[leaf.path]) for leaf in self.layout.homes])
        return other


class TorchStore(OnTorch):
    """One model on a device of torch: what `Store.from_tree(tree, device="cuda")` makes."""

    __slots__ = ()

    @property
    def flat(self) -> Any:
        """The trainable leaves as one 1-D tensor: a view, in memory order, the gaps between leaves shown as zeros.

        Raises `ValueError` if they are of several dtypes, none, or do not lie together.
        """
        leaves = sorted((x for x in self.layout.homes if x.trainable and x.size), key=lambda leaf: leaf.offset)
        dtypes = list(dict.fromkeys(leaf.dtype.name for leaf in leaves))
        if len(dtypes) != 1:
            raise ValueError(
                f"expected trainable leaves of one dtype, got {', '.join(dtypes) or 'no trainable leaf'}; "
                "fix: use store.to_vector(), a packed copy on the host"
            )
        starts = [self._addresses[leaf.path] for leaf in leaves]
        stops = [start + leaf.nbytes for start, leaf in zip(starts, leaves, strict=True)]
        gaps = map(operator.sub, starts[1:], stops)
        if self._buffer is None or not all(0 <= gap < max(self.layout.align, leaves[0].dtype.itemsize) for gap in gaps):
            raise ValueError(
                "expected leaves that lie together, got others between them; fix: use to_vector() or copy().flat, "
                "which copy"
            )
        first = starts[0] - self._buffer.data_ptr()
        return self._buffer[first : first + stops[-1] - starts[0]].view(torch_dtype_of(leaves[0]))
