"""torch modules on a card: their tensors become views of one buffer there, or stay where they are.

The buffer of a card is taken at once, and not as it is filled. So that there is never a second copy of the module, its
tensors wait in host memory, leaf by leaf, while the buffer takes their place:

```
card    | weight |  bias |       |                     |  buffer: weight | bias |
host                       ->    | weight | bias |  ->
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatstore.extras import require
from flatstore.layout import Layout
from flatstore.store import TorchStore, write_in_order
from flatstore.trees import by_path


def is_on_card(device: Any) -> bool:
    """Whether memory of a device is not the host's."""
    return device.type != "cpu"


def device_of(tensors: Mapping[str, Any]) -> Any:
    """The device of the tensors, which are all on one."""
    return next(iter(tensors.values())).device


def adopted(tree: Mapping[str, Any], layout: Layout) -> TorchStore:
    """A new store on the card that the tensors of a module become views of, with their values."""
    tensors = by_path(tree)
    names = _names(layout)
    device = device_of(tensors)
    _refuse_fixed(tensors)
    try:
        for home, paths in names.items():
            waiting = tensors[home].data.cpu()
            for path in paths:
                tensors[path].data = waiting
        _give_back(device)
        store = TorchStore.zeros(layout, device)
        write_in_order(device, [store.memory], lambda: _move_in(tensors, names, store))
    except BaseException:
        for home, paths in names.items():
            back = tensors[home].data.to(device, copy=True)
            for path in paths:
                tensors[path].data = back
        raise
    return store


def moved_into(tree: Mapping[str, Any], store: TorchStore) -> None:
    """Make the tensors views of a store that there was before, with their values."""
    tensors, names = by_path(tree), _names(store.layout)
    _refuse_fixed(tensors)
    write_in_order(store.device, [store.memory], lambda: _move_in(tensors, names, store))


def _move_in(tensors: Mapping[str, Any], names: Mapping[str, list[str]], store: TorchStore) -> None:
    for home, paths in names.items():
        view = store.homes[home]
        view.copy_(tensors[home].data)
        for path in paths:
            tensors[path].data = view.detach()


def _refuse_fixed(tensors: Mapping[str, Any]) -> None:
    """Have who refuses other data refuse now, before anything is written."""
    for tensor in tensors.values():
        tensor.data = tensor.data


def _names(layout: Layout) -> dict[str, list[str]]:
    """All paths of each home."""
    names: dict[str, list[str]] = {}
    for leaf in layout.leaves:
        names.setdefault(leaf.tied or leaf.path, []).append(leaf.path)
    return names


def _give_back(device: Any) -> None:
    """Give memory that is not used any more back to the card, so that it can be had in one piece."""
    if device.type == "cuda":
        require("torch", "torch").cuda.empty_cache()
