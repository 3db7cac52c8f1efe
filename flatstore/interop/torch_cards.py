"""torch modules on a card: their tensors become views of one buffer there, or stay where they are.

The buffer of a card is taken at once, and not as it is filled. So that there is never a second copy of the module, its
tensors wait in host memory, leaf by leaf, while the buffer takes their place:

```
card    | weight |  bias |       |                     |  buffer: weight | bias |
host                       ->    | weight | bias |  ->
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from flatstore.extras import require
from flatstore.layout import Layout
from flatstore.memory import memories_of, reading
from flatstore.store import TorchStore, write_in_order
from flatstore.trees import Difference, StructureError, by_path


def is_on_card(device: Any) -> bool:
    """Whether memory of a device is not the host's."""
    return device.type != "cpu"


def device_of(tensors: Mapping[str, Any]) -> Any:
    """The device of the tensors, which are all on one."""
    return next(iter(tensors.values())).device


def adopted(tree: Mapping[str, Any], layout: Layout) -> TorchStore:
    """A new store on the card that the tensors of a module become views of, with their values."""
    tensors, made = by_path(tree), list[TorchStore]()
    device = device_of(tensors)
    with reading(*memories_of(tensors.values())):  # it may have been adopted before
        write_in_order(device, [], lambda: made.append(_move_into_a_new_one(tensors, layout, device)))
    return made[0]


def _move_into_a_new_one(tensors: Mapping[str, Any], layout: Layout, device: Any) -> TorchStore:
    names, store, moved = _names(layout), None, dict[str, list[str]]()
    _refuse_fixed(tensors)
    try:
        for home, paths in names.items():
            moved[home] = paths
            _show(tensors, paths, tensors[home].data.cpu())
        _give_back(device)
        store = TorchStore.zeros(layout, device)
        for home, paths in names.items():
            view = store.homes[home]
            view.copy_(tensors[home].data)
            _show(tensors, paths, view)
    except BaseException as error:
        store = None  # its memory makes room for what goes back
        _give_back(device)
        _go_back(tensors, moved, device, error)
        raise
    return store


def _go_back(tensors: Mapping[str, Any], moved: Mapping[str, list[str]], device: Any, error: BaseException) -> None:
    """Give tensors memory of their own on a card again. What finds none there is noted at the error."""
    waiting: list[str] = []
    for home, paths in moved.items():
        try:
            _show(tensors, paths, tensors[home].data.to(device, copy=True))
        except require("torch", "torch").OutOfMemoryError:
            waiting += paths
    if waiting:
        names = ", ".join(map(repr, waiting))
        error.add_note(f"still in host memory: {names}; fix: make room on {device}, then module.to({str(device)!r})")


def moved_into(tree: Mapping[str, Any], store: TorchStore) -> None:
    """Make the tensors views of a store that there was before, with their values: all of them, or none."""
    tensors, layout = by_path(tree), store.layout
    if store.part_of:
        shared = [leaf.path for leaf in layout.leaves if not leaf.trainable]
        refuse_shared(shared)
    _refuse_fixed(tensors)

    def move() -> None:
        values = {leaf.path: tensors[leaf.tied or leaf.path].data for leaf in layout.leaves}
        with ExitStack() as back:  # if one refuses, those before it go back; the store comes last
            for path, tensor in tensors.items():
                back.callback(setattr, tensor, "data", tensor.data)
                _show(tensors, [path], store[path])
            store.assign(values)
            back.pop_all()

    write_in_order(store.device, store.memory.parts, move)


def _show(tensors: Mapping[str, Any], paths: Iterable[str], data: Any) -> None:
    for path in paths:
        tensors[path].data = data.detach()


def refuse_shared(paths: Sequence[str]) -> None:
    """Raise `StructureError` for leaves that all members of a population share, if there are any."""
    if paths:
        what, fix = ("a leaf of its own", "one that all members share"), "adopt(module, member.copy())"
        raise StructureError([Difference(path, *what, fix) for path in paths], "that torch must not write")


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
