"""Torch's memory lent to JAX by DLPack, and how the end of the last reader is known.

```
leaf  <- a storage of its own over the same bytes <- DLPack capsule <- XLA buffer <- jax.Array
         its use count: does anybody else hold it?
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import jax

from flatstore.extras import require
from flatstore.memory import Access, LentError, refuse_jax_at_the_end, released
from flatstore.store.torch_streams import after_verbs, before_verbs, finish
from flatstore.store.torch_tensors import numpy_dtype_of
from flatstore.threads import Leaving, add_notes, moment, uninterrupted
from flatstore.trees import Difference, first_of, listing

_dlpack: Any = jax.dlpack


class LentTensors:
    """A context in which the leaves of a store of torch are read, and not written. See `OnTorch.lend`."""

    def __init__(self, store: Any, to_jax: bool, patience: float) -> None:
        self._store, self._to_jax, self._patience = store, to_jax, patience
        self._access: Access | None = None
        self._arrays: dict[str, jax.Array] = {}
        self._stream: Any = None  # on which torch reads: the end is left to another thread, which has its own

    __exit__: Leaving = Leaving(lambda lent: lent._access is None)

    def __enter__(self) -> Any:
        """Begin the lend and return the tree: until the exit, nothing writes the leaves through the store."""
        if self._access is not None:
            raise RuntimeError("expected a lend that was not entered before; fix: call lend() again")
        store = self._store
        self._access = access = Access(lends=[store.memory])
        self._since = moment()
        try:
            access.begin()
            with after_verbs(store.device) as stream:
                if not self._to_jax:
                    self._stream = stream
                    return store.tree
                refuse_jax_at_the_end()
                exported, self._arrays = _imported(store.homes)
            homes = store.homes
            access.note([(homes[path].data_ptr(), path, export) for path, export in exported.items()])
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
        before_verbs(self._stream)
        self._access.end()

    def left(self, error: BaseException | None) -> None:
        """Wait until the last computation that reads the arrays has finished, on the device, too."""
        held = released(self._access, self._patience) if self._access else []
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
    """The bytes of a leaf as a storage of their own. It tells, as a weak reference does, whether somebody reads them.

    The storage of the store's own tensors would not do: whoever makes or drops views of them changes its use count.
    JAX lets go of them when it has asked a card for the last computation. So the card is waited for, once for all of
    a lend that were let go of by then.
    """

    def __init__(self, tensor: Any, of_lend: WeakSet[_Exported]) -> None:
        self._is_read, self._of_lend = True, of_lend
        of_lend.add(self)
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
        """Return something as long as an export is read."""
        if self._is_read and self._count() <= self._before:
            free = [export for export in self._of_lend if export._count() <= export._before]
            finish(self._like.device)
            for export in free:
                export._is_read = False
        return self if self._is_read else None


def _imported(leaves: Mapping[str, Any]) -> tuple[dict[str, _Exported], dict[str, jax.Array]]:
    """JAX arrays over the bytes of tensors. Raises `BufferError` that names every leaf that JAX would have to copy."""
    exported: dict[str, _Exported] = {}
    arrays: dict[str, jax.Array] = {}
    of_lend: WeakSet[_Exported] = WeakSet()
    obstacles: list[Difference] = []
    jnp: Any = jax.numpy
    for path, tensor in leaves.items():
        if not tensor.numel():
            arrays[path] = jnp.zeros(tuple(tensor.shape), numpy_dtype_of(tensor))
            continue
        exported[path] = _Exported(tensor, of_lend)
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
