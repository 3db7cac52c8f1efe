"""A store over a torch module's tensors where they are: no byte is moved, and no address changes.

Others hold those addresses: graphs that were captured on them, an engine's kernels, shared memory. So the store keeps
nothing but them, and looks before each verb whether the module still has its tensors there:

```
owner of the name (a module) -- .weight --> torch.Tensor --> address, the one that the store has?
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flatstore.checks import repeats
from flatstore.interop import torch_cards
from flatstore.layout import Array, Layout, as_numpy
from flatstore.memory import Spans
from flatstore.store import Parts, Store, TorchStore
from flatstore.trees import Difference, listing

_FIX = "adopt(module, store) brings it back there, adopt(module, move=False) makes a store of where it is"


class Home(NamedTuple):
    """Where a module has a tensor, and where that was when its store was made."""

    path: str
    owner: Any
    name: str
    address: int

    def moved(self) -> Difference | None:
        """What is there instead, or None."""
        try:
            address = self._now()
            if address == self.address:
                return None
            got = f"address {address:#x}"
        except (AttributeError, RuntimeError):  # such as that of a tensor without data
            if not repeats(self._now):
                raise
            tensor = getattr(self.owner, self.name, None)
            got = "nothing" if tensor is None else f"a {type(tensor).__name__} without an address"
        return Difference(self.path, f"address {self.address:#x}", got, _FIX)

    def _now(self) -> int:
        return getattr(self.owner, self.name).data_ptr()


def in_place(
    module: Any, tensors: Mapping[str, Any], layout: Layout, leaves: Mapping[str, Any], parts: Parts | None = None
) -> Store | TorchStore:
    """A store over `leaves`, by the paths of the layout, where they are: dense tensors, which lie in those of a module.

    `tensors` are the module's, by torch's names. Raises `ValueError` that names every leaf whose numbers do not start
    at a multiple of their size.
    """
    own = {leaf.path: leaves[leaf.path] for leaf in layout.homes}
    moved = _watch(module, tensors)
    fix = "replace its memory first: param.data = param.data.clone()"
    crooked = [
        Difference(path, f"a start at a multiple of {x.itemsize} bytes", f"address {x.data_ptr():#x}", fix)
        for path, x in own.items()
        if x.nbytes and x.data_ptr() % x.itemsize
    ]
    if crooked:
        raise ValueError(listing(crooked, "of the module that cannot be a view of a store"))
    if own and torch_cards.is_on_card(torch_cards.device_of(own)):
        return TorchStore.over(layout, {path: x.detach() for path, x in own.items()}, parts=parts, moved=moved)
    arrays = {path: as_numpy(x, path) for path, x in own.items()}
    memory = Spans((array.reshape(-1).view(np.uint8) for array in arrays.values()), moved)
    starts = {path: _start(array) - memory.start if array.size else 0 for path, array in arrays.items()}
    return Store.in_place(memory, layout, starts, parts)


def _watch(module: Any, tensors: Mapping[str, Any]) -> Callable[[], list[Difference]]:
    """What tells which of the tensors of a module lie elsewhere by now."""
    owners = dict(module.named_modules(remove_duplicate=False))
    homes: list[Home] = []
    for path, tensor in tensors.items():
        at, _, name = path.rpartition(".")
        if tensor.nbytes:
            homes.append(Home(path, owners[at], name, tensor.data_ptr()))

    return lambda: [difference for home in homes if (difference := home.moved())]


def _start(array: Array) -> int:
    """The address of the first byte."""
    return array.__array_interface__["data"][0]
