"""Stores on a device of torch: one buffer of torch's, and leaves that are torch views of it.

```
buffer    | bias | gap | kernel |        a tensor of bytes, on a card or in host memory
leaves      bias         kernel          tensors over the same bytes, of the leaves' shapes and dtypes
```

torch writes what it owns. So verbs move the bytes where they are, as those of a store on the host, and JAX is lent
views by DLPack. The layout, the indices and the bits are those of a store on the host.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from flatstore.checks import whole
from flatstore.extras import require
from flatstore.layout import Array, Layout, Leaf, is_torch_tensor, spec_of
from flatstore.memory import MOVED, Access, LentError, Memory, refuse_jax_at_the_end, using, write
from flatstore.memory.readers_and_writers import released
from flatstore.store.assigning import checked_leaves
from flatstore.store.jax_store import OnDevice
from flatstore.store.jax_store import on_device as on_device_of_jax
from flatstore.store.moves import Moves
from flatstore.store.parts import Parts
from flatstore.store.placement import Placement, placement_of_population, placement_of_store
from flatstore.threads import Leaving, add_notes, moment, uninterrupted
from flatstore.trees import Difference, StructureError, by_path, first_of, listing

ALIGN = 256
"""Bytes: the buffer starts at a multiple, as torch's own allocations on a card do."""

_dlpack: Any = jax.dlpack


class OnTorch(OnDevice):
    """What `TorchStore` and `TorchPopulation` have in common."""

    __slots__ = ("_buffer", "_moved", "cache", "part_of", "parts")  # pyright: ignore[reportIncompatibleVariableOverride]

    _buffer: Any

    moves_on_host: ClassVar[Moves]
    """What the verbs do in host memory; set by the room that knows it."""

    moves_on_card: ClassVar[Moves]
    """What the verbs do elsewhere; set by the room that knows it."""

    cache: dict[Any, Any]
    """What was planned for these leaves; for this package's own modules."""

    part_of: tuple[TorchPopulation, int] | None
    """The population, and the number, of a member."""

    @classmethod
    def zeros(cls, layout: Layout, device: Any, size: int | None = None) -> Self:
        """New bytes of zeros on a device of torch; of `size` members where they train."""
        torch = require("torch", "torch")
        placement = placement_of_store(layout) if size is None else placement_of_population(layout, size, "leaf")
        try:
            raw = torch.zeros(placement.nbytes + ALIGN, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise MemoryError(
                f"expected {placement.nbytes:,} bytes on {device}, got {error}; fix: plan a smaller model"
            ) from error
        start = -raw.data_ptr() % ALIGN
        buffer = raw[start : start + placement.nbytes]
        return cls.over(layout, _leaves_in(buffer, layout, placement, size), buffer, size)

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
        on_host = buffer is not None and self.device.type == "cpu" and len(buffer) > 0
        self.memory = Memory(buffer.numpy()) if on_host else Memory.heap(1)
        self._addresses = self._found()
        return self

    def _found(self) -> dict[str, int]:
        leaves: dict[str, Any] = self._leaves
        return {path: tensor.data_ptr() for path, tensor in leaves.items() if tensor.numel()}

    @property
    def whole(self) -> Layout:
        """The layout to whose indices the noise belongs: its own, or that of the model that it has parts of."""
        return self.layout if self.parts is None else self.parts.whole

    @property
    def moves(self) -> Moves:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the verbs do with it."""
        return self.moves_on_host if self.device.type == "cpu" else self.moves_on_card

    breeding_on_host: ClassVar[Any]
    """What `ga.step` does in host memory; set by the room that knows it."""

    breeding_on_card: ClassVar[Any]
    """What `ga.step` does elsewhere; set by the room that knows it."""

    @property
    def breeding(self) -> Any:
        """What `ga.step` does with a population."""
        return self.breeding_on_host if self.device.type == "cpu" else self.breeding_on_card

    @property
    def buffer(self) -> Any:
        """All bytes, padding included: a 1-D uint8 tensor, a view. A member has its population's."""
        return self._buffer

    def __getitem__(self, path: Any) -> Any:
        """The tensor of a leaf: a view, the same object each time. Raises `KeyError`."""
        return super().__getitem__(path)

    @property
    def homes(self) -> dict[str, Any]:
        """The tensors by the path of their home; for this package's own modules."""
        leaves: dict[str, Any] = self._leaves
        return leaves

    def to_vector(self) -> Array:
        """A packed copy of the parameters on the host, in index order; a population has a row per member."""
        with using(reads=[self.memory]):
            parts = [as_array(self.homes[leaf.path].cpu()) for leaf in self.layout.homes]
        leading = () if self.size is None else (self.size,)
        rows = [
            np.broadcast_to(x.reshape((*x.shape[: x.ndim - len(leaf.shape)], leaf.size)), (*leading, leaf.size))
            for leaf, x in zip(self.layout.homes, parts, strict=True)
        ]
        return np.concatenate(rows, -1)

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
        named = by_path(values) if not hasattr(values, "shape") or is_torch_tensor(values) else {}
        if named and all(is_torch_tensor(x) and x.device.type != "cpu" for x in named.values()):
            self._put(self._checked_tensors(named))
            return
        leading = () if self.size is None else (self.size,)
        self._put({leaf.path: array for leaf, array in checked_leaves(self.layout, values, leading)})

    def _checked_tensors(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """The homes among tensors elsewhere, which NumPy cannot read. Raises `StructureError`."""
        differences: list[Difference] = []
        for path, leaf in self.layout.by_path.items():
            if path not in named:
                differences.append(Difference(path, str(leaf.spec), "nothing", "add this leaf"))
        for path, tensor in named.items():
            before = self._shape(self.layout.by_path[path])[: -len(self.layout.by_path[path].shape) or None]
            spec = spec_of(tensor, path)
            assert spec is not None
            leading = before if self.size is not None and self.layout.by_path[path].trainable else ()
            differences += [found for found in [self.layout.difference(path, spec, "same_kind", leading)] if found]
        if differences:
            raise StructureError(differences)
        return {leaf.path: named[leaf.path] for leaf in self.layout.homes}

    def _put(self, arrays: Mapping[str, Any]) -> None:
        torch = require("torch", "torch")

        def put() -> None:
            with torch.no_grad():
                for path, array in arrays.items():
                    given = array if is_torch_tensor(array) else as_tensor(array, self.layout.by_path[path].dtype)
                    self.homes[path].copy_(given)

        self.write(put)

    def write(self, work: Any) -> None:
        """Do work that writes the leaves, uninterrupted, as the only writer.

        Raises `StructureError` as `verify` does, if the leaves are not this store's own.
        """
        if self._buffer is None:
            self.verify()
        write([self.memory], work)

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
            other._put(self._leaves)
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
        return self._buffer[first : first + stops[-1] - starts[0]].view(_dtype(leaves[0]))


class TorchPopulation(OnTorch):
    """Many models on a device of torch, stacked leaf by leaf: `Population.from_tree(tree, n, device="cuda")`."""

    __slots__ = ()

    def __len__(self) -> int:
        """The number of members."""
        return self.size or 0

    def __getitem__(self, key: Any) -> Any:
        """A member (int), or a leaf of all members (path): views."""
        if isinstance(key, (str, tuple)):
            return super().__getitem__(key)
        if not isinstance(i := whole(key), int):
            raise TypeError(
                f"expected a member's number or a path, got {type(key).__name__}; fix: use pop[0] or pop[path]"
            )
        size = len(self)
        if not -size <= i < size:
            raise IndexError(f"expected a member in 0 .. {size - 1}, got {i}; fix: index below len(pop)")
        leaves: dict[str, Any] = self._leaves
        of_member = {
            leaf.path: leaves[leaf.path][i % size] if leaf.trainable else leaves[leaf.path]
            for leaf in self.layout.homes
        }
        member = TorchStore.over(self.layout, of_member)
        member.memory, member.part_of = self.memory, (self, i % size)
        return member

    def members(self) -> Iterator[TorchStore]:
        """The members, as views."""
        return (self[i] for i in range(len(self)))

    @property
    def axes(self) -> Any:
        """The tree of `in_dims` for `torch.vmap`: 0 where a leaf has the axis of the members, None where it has not."""
        return self.layout.unflatten([0 if leaf.trainable else None for leaf in self.layout.leaves], riders=False)


class LentTensors:
    """A context in which the leaves of a store of torch are read, and not written. See `OnTorch.lend`."""

    def __init__(self, store: OnTorch, to_jax: bool, patience: float) -> None:
        self._store, self._to_jax, self._patience = store, to_jax, patience
        self._access: Access | None = None
        self._arrays: dict[str, jax.Array] = {}

    __exit__ = Leaving(lambda lent: lent._access is None)

    def __enter__(self) -> Any:
        """Begin the lend and return the tree: until the exit, nothing writes the leaves through the store."""
        if self._access is not None:
            raise RuntimeError("expected a lend that was not entered before; fix: call lend() again")
        store = self._store
        store.verify()
        self._access = access = Access(lends=[store.memory])
        self._since = moment()
        try:
            access.begin()
            if not self._to_jax:
                return store.tree
            refuse_jax_at_the_end()
            exported, self._arrays = _imported(store.homes)
            for use in access.uses:
                use.exports = list(exported.items())
            leaves = store.layout.leaves
            return store.layout.unflatten([self._arrays[leaf.tied or leaf.path] for leaf in leaves])
        except BaseException:
            access.over = True
            uninterrupted(lambda: self.leave(None))
            raise

    def leave(self, error: BaseException | None) -> None:
        """Delete the arrays, and end the access."""
        if self._access is None:
            return
        for array in self._arrays.values():
            array.delete()
        self._arrays = {}
        self._access.end()

    def left(self, error: BaseException | None) -> None:
        """Wait until the last computation that reads the arrays has finished, on the device, too."""
        held = released(self._access, self._patience) if self._access else []
        if self._to_jax and self._store.device.type == "cuda":
            require("torch", "torch").cuda.synchronize(self._store.device)
        if not held:
            return
        message = (
            f"expected all lent leaves back, got {len(held)} still read after {self._patience} s: {first_of(held)}; "
            "fix: drop the views taken in the block, or raise patience= for a longer computation. The store stays lent "
            "until they are gone"
        )
        if error is None:
            raise LentError(message)
        add_notes(error, self._since, message)


class _Exported:
    """The bytes of a leaf as a storage of their own. It tells, as a weak reference does, whether somebody holds them.

    The storage of the store's own tensors would not do: whoever makes or drops views of them changes its use count.
    """

    def __init__(self, tensor: Any) -> None:
        torch = require("torch", "torch")
        dlpack: Any = torch.utils.dlpack
        self._torch, self._like = torch, tensor
        self._bytes = dlpack.from_dlpack(dlpack.to_dlpack(tensor.detach().reshape(-1).view(torch.uint8)))
        self._storage = self._bytes.untyped_storage()
        self._before = self._count()

    def fresh_view(self) -> Any:
        """A new tensor over the bytes: JAX takes one that was exported before for the same array."""
        return self._bytes.view(self._like.dtype).view(self._like.shape)

    def _count(self) -> int:
        return self._torch._C._storage_Use_Count(self._storage._cdata)

    def __call__(self) -> _Exported | None:
        """Return something as long as an export is held."""
        return self if self._count() > self._before else None


def _imported(leaves: Mapping[str, Any]) -> tuple[dict[str, _Exported], dict[str, jax.Array]]:
    """JAX arrays over the bytes of tensors. Raises `BufferError` that names every leaf that JAX would have to copy."""
    exported: dict[str, _Exported] = {}
    arrays: dict[str, jax.Array] = {}
    obstacles: list[Difference] = []
    jnp: Any = jax.numpy
    for path, tensor in leaves.items():
        if not tensor.numel():
            arrays[path] = jnp.zeros(tuple(tensor.shape), _numpy_dtype(tensor))
            continue
        exported[path] = _Exported(tensor)
        try:
            arrays[path] = _dlpack.from_dlpack(exported[path].fresh_view(), copy=False)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:  # what either library raises
            obstacles.append(Difference(path, "a view", str(error).partition("\n")[0], "copy the leaf, or lend others"))
            continue
        if arrays[path].unsafe_buffer_pointer() != tensor.data_ptr():
            obstacles.append(Difference(path, "a view", "a copy that JAX made", "plan the layout with align=64"))
    if obstacles:
        for array in arrays.values():
            array.delete()
        raise BufferError(listing(obstacles, "that JAX cannot view without a copy"))
    return exported, arrays


def _leaves_in(buffer: Any, layout: Layout, placement: Placement, size: int | None) -> dict[str, Any]:
    """The homes of a layout as views of a buffer."""
    leaves: dict[str, Any] = {}
    for leaf in layout.homes:
        shape = (size, *leaf.shape) if size is not None and leaf.trainable else leaf.shape
        start = placement.places[leaf.path].offset
        flat = buffer[start : start + math.prod(shape) * leaf.dtype.itemsize]
        leaves[leaf.path] = flat.view(_dtype(leaf)).view(shape)
    return leaves


def _dtype(leaf: Leaf) -> Any:
    """The dtype of torch for a leaf. Raises `ValueError` where torch has none."""
    dtype = getattr(require("torch", "torch"), leaf.dtype.name, None)
    if dtype is None:
        raise ValueError(
            f"{leaf.path!r}: expected a dtype that torch has, got {leaf.dtype.name}; fix: convert the leaf"
        )
    return dtype


def _numpy_dtype(tensor: Any) -> np.dtype[Any]:
    spec = spec_of(tensor, "")
    assert spec is not None
    return spec.dtype


def as_array(tensor: Any) -> Array:
    """A tensor in host memory as a NumPy array, bfloat16 and float8 included: a view."""
    torch, dtype = require("torch", "torch"), _numpy_dtype(tensor)
    if hasattr(np, dtype.name):
        return tensor.detach().numpy()
    return tensor.detach().view({1: torch.uint8, 2: torch.int16}[tensor.itemsize]).numpy().view(dtype)


def as_tensor(array: Any, dtype: np.dtype[Any]) -> Any:
    """An array, converted to a dtype, as a tensor in host memory: a copy."""
    torch, copied = require("torch", "torch"), np.array(array, dtype, order="C")
    plain = copied if hasattr(np, dtype.name) else copied.view(f"u{dtype.itemsize}")
    return torch.from_numpy(plain).view(getattr(torch, dtype.name))


def on_device(layout: Layout, tree: Any, device: Any, size: int | None = None) -> Any:
    """A store, or a population of so many copies, of a tree on a device of JAX or torch: copies leaf by leaf."""
    is_of_torch = isinstance(device, str) or type(device).__module__ == "torch"
    return (_on_torch if is_of_torch else on_device_of_jax)(layout, tree, device, size)


def _on_torch(layout: Layout, tree: Any, device: Any, size: int | None = None) -> Any:
    if size is None:
        store = TorchStore.zeros(layout, device)
        store.assign(tree)
        return store
    pop = TorchPopulation.zeros(layout, device, size)
    model = TorchStore.over(layout, {leaf.path: _one(pop, leaf) for leaf in layout.homes})
    model.memory = pop.memory
    model.assign(tree)
    for leaf in layout.homes:
        if leaf.trainable:
            pop[leaf.path][1:] = pop[leaf.path][0]
    return pop


def _one(pop: TorchPopulation, leaf: Leaf) -> Any:
    return pop[leaf.path][0] if leaf.trainable else pop[leaf.path]
