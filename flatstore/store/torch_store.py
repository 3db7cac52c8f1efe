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
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from flatstore.extras import require
from flatstore.layout import Array, Layout, Leaf, is_torch_tensor, spec_of
from flatstore.memory import MOVED, Memory, Spans, bytes_of, memories_of, using
from flatstore.store.assigning import Pairs, is_pairs
from flatstore.store.moves import Moves
from flatstore.store.on_device import OnDevice
from flatstore.store.parts import Parts
from flatstore.store.placement import placement_of_population, placement_of_store
from flatstore.store.torch_lends import LentTensors
from flatstore.store.torch_streams import after_verbs, write_in_order
from flatstore.store.torch_tensors import array_of, leaves_in, tensor_of, torch_dtype_of, writable
from flatstore.store.verbs import memories_in
from flatstore.trees import Difference, StructureError, by_path

ALIGN = 256
"""Bytes: the buffer starts at a multiple, as torch's own allocations on a card do."""


class OnTorch(OnDevice):
    """What `TorchStore` and `TorchPopulation` have in common."""

    __slots__ = ("_buffer", "_elsewhere", "cache", "part_of")

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
        buffer = writable(raw)[start : start + placement.nbytes]
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
        memory: Memory | None = None,
    ) -> Self:
        """A store over tensors: the homes by path, and the bytes in which all of them lie, if there are such.

        `moved` tells what lies elsewhere by now, of leaves that others own; `memory` is that of which they are a part.
        """
        self = object.__new__(cls)
        leaves = {path: writable(x) for path, x in leaves.items()}
        self.layout, self.size, self._buffer = layout, size, buffer
        found: list[Any] = [x.device for x in (*leaves.values(), buffer) if x is not None]
        self.device = found[0]
        self.homes, self.cache, self.part_of, self.parts = leaves, {}, None, parts
        self._addresses = {path: tensor.data_ptr() for path, tensor in leaves.items() if tensor.numel()}
        self._elsewhere = partial(_elsewhere, leaves, self._addresses, moved)
        if memory is None:
            memory = Spans(map(bytes_of, leaves.values()), self._elsewhere) if buffer is None else _memory_of(buffer)
        self.memory = memory
        return self

    @property
    def whole(self) -> Layout:
        """The layout to whose indices the noise belongs: its own, or that of the model that it has parts of."""
        return self.layout if self.parts is None else self.parts.whole

    @property
    def moves(self) -> Moves | None:
        """What the verbs do with it; None in host memory, where the host's loops go over its bytes."""
        return None if self.device.type == "cpu" else self.moves_on_card

    @property
    def buffer(self) -> Any:
        """All bytes, padding included: a 1-D uint8 tensor, a view. None for a member, and where others own them."""
        return self._buffer

    def __setitem__(self, path: Any, value: Any) -> None:
        """Copy a value of the leaf's shape into the leaf."""
        if not is_torch_tensor(value) or value.device.type == "cpu":
            return super().__setitem__(path, value)
        leaf = self.layout.leaf(path)
        with using(reads=memories_of([value])) as own:
            self._put([self._checked_tensor(leaf, value)], own)

    def leaf_matrix(self, leaf: Leaf) -> Array:
        """The numbers of a home, a row for each member, on the host; for this package's own modules.

        In host memory it is a view.
        """
        with after_verbs(self.device):
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
        tree as it is. On a card the stream that is current as the block begins comes after all verbs before it, and all
        verbs after the block come after what that stream was asked.

        Raises `BufferError` for leaves that JAX cannot view.
        """
        if library not in ("jax", "torch"):
            raise ValueError(f"expected 'jax' or 'torch', got {library!r}; fix: pass one of these")
        return LentTensors(self, library == "jax", patience)

    def assign(self, values: Any) -> None:
        """Copy `values` in: a tree, a packed vector or a mapping {path: array}, as for a store on the host.

        Torch tensors on the same kind of device are copied there, leaf by leaf.
        """
        tree = values.tree if isinstance(values, OnDevice) else values
        if not is_pairs(self.layout, tree) and (not hasattr(tree, "shape") or is_torch_tensor(tree)):
            named = by_path(tree)
            if named and all(is_torch_tensor(x) and x.device.type != "cpu" for x in named.values()):
                with using(reads=[values.memory] if isinstance(values, OnDevice) else memories_in(tree)) as own:
                    self._put(self._checked_tensors(named), own)
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
            own = [(leaf, self._apart(leaf, array)) for leaf, array in pairs]
            with torch.no_grad():
                for leaf, array in own:
                    self.homes[leaf.path].copy_(array if is_torch_tensor(array) else tensor_of(array, leaf.dtype))

        self.write(put, reads)

    def _apart(self, leaf: Leaf, array: Any) -> Any:
        """An array for a leaf, copied if it lies in this memory, where it could be overwritten before its turn."""
        shown = bytes_of(array) if is_torch_tensor(array) else array
        if shown.ctypes.data == self._addresses.get(leaf.path) or not self.memory.may_show(shown):
            return array
        return array.clone() if is_torch_tensor(array) else array.copy()

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
        write_in_order(self.device, [self.memory], work, reads)

    def verify(self) -> None:
        """Raise `StructureError` unless every leaf lies where it lay when the store was made."""
        if moved := self._elsewhere():
            raise StructureError(moved, MOVED)

    def copy(self) -> Self:
        """A copy, in memory of its own on the same device."""
        other = self.zeros(self.layout, self.device, self.size)
        other.parts = self.parts
        with using(reads=[self.memory]) as own:
            other._put([(leaf, self.homes[leaf.path]) for leaf in self.layout.homes], own)
        return other


def _memory_of(buffer: Any) -> Memory:
    return Memory(bytes_of(buffer)) if len(buffer) else Memory.heap(0)


def _elsewhere(
    leaves: Mapping[str, Any], addresses: Mapping[str, int], moved: Callable[[], list[Difference]]
) -> list[Difference]:
    """What lies elsewhere than when a store was made."""
    fix = "make a new store of it"
    return [
        Difference(path, f"address {was:#x}", f"address {leaves[path].data_ptr():#x}", fix)
        for path, was in addresses.items()
        if was != leaves[path].data_ptr()
    ] + moved()


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
