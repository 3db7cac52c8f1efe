"""torch: a module whose parameters and buffers are views of a store.

torch writes what it trains, so that a module is not lent, as to JAX, but *adopted*: its Parameter objects stay the
same, and their data move into the store. Optimisers, `state_dict` and tied weights go on as before:

```
module.weight (Parameter) -- .data --> torch.Tensor --> store["weight"], the same bytes
optimiser -------'
```

flatstore cannot prevent torch from writing. While the store is lent, and between a forward pass and its backward pass,
do not write the parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from ctypes import pythonapi
from typing import Any

import numpy as np

from flatstore.extras import require
from flatstore.interop import torch_cards
from flatstore.interop.torch_obstacles import read_tensors
from flatstore.interop.torch_spans import in_place
from flatstore.layout import Array, Layout, as_numpy
from flatstore.memory import memories_of, reading, write
from flatstore.store import Store, TorchStore
from flatstore.trees import Difference, StructureError, by_path, listing

HELD_AT_MOST = 16 << 20
"""Bytes that are freed, leaf by leaf, before the system is asked to take them back: that takes a millisecond."""

UNLIKE = "of the module unlike the store"


def adopt(module: Any, store: Any = None, *, align: int = 64, move: bool = True) -> Store | Any:
    """Make the parameters and buffers of a torch module views of one store, and return it: copies them, once.

    The paths are torch's names ('0.weight'), parameters first, then buffers; `store.tree` is an ordered dict like
    `module.state_dict()`, but also has the buffers that torch does not save. Tied weights have one home; the present
    value of `requires_grad` says what trains. Every Parameter stays the same object: an optimiser that was made before
    writes the store.

    With `store`, for instance one that the module had before, the values are copied into it and it is returned:
    tensors that had left it are views of it again. Its layout must be the module's. A new store is filled leaf by leaf,
    and the old memory of each is given back as it goes: there is never a second copy of the module. (Of a checkpoint
    that is mapped from its file, the pages stay until the last leaf has moved; the system may take them at any time.)

    With `move=False` nothing is copied: the store is made over the tensors where they are, and no address changes, so
    that what holds addresses (captured graphs, an engine's kernels) goes on. Such a store has no `flat` and no
    `buffer`, since its leaves do not lie together; everything else works, with the same bits. Where a tensor lies
    elsewhere later, verbs refuse the store, and `store.verify()` names the tensor.

    A module on a card gives a `TorchStore`: one buffer there, with the same indices and bits, which Triton's kernels
    move. Its tensors wait in host memory while the buffer takes their place, so that the card never holds two copies.

    The elements of a leaf lie in C order, one after the other, so a module in `torch.channels_last` is refused: its
    strides would be lost without a word. For each tensor that is refused, the message says how to convert it.

    >>> import torch
    >>> module = torch.nn.Linear(2, 1)
    >>> store = adopt(module)
    >>> store["weight"][:] = 3
    >>> module.weight.tolist(), list(store)
    ([[3.0, 3.0]], ['weight', 'bias'])

    Args:
        module: a `torch.nn.Module` in host memory, or on one card.
        store: None for a new one in new memory; or a store of the same device, which is written.
        align: bytes, as for `Layout.from_tree`, if the store is new.
        move: False to leave the tensors where they are.

    Returns a `Store`, or a `TorchStore` for a module on a card.

    Raises `ValueError` that names every tensor that cannot be a view (on another device than the first, sparse,
    quantised, lazy, not contiguous, memory shared in part), `StructureError` for a module unlike `store`, `LentError`
    if that one is lent, `TypeError` if it is not a module, and whatever a tensor that refuses other data raises. In all
    these cases the module and the store are left as they were.
    """
    tree = tree_of(module)
    layout = _layout(tree, align if store is None else _checked(store).layout.align)
    if not move:
        if store is not None:
            raise ValueError(
                "expected a store to move the module into, or move=False, got both; "
                "fix: adopt(module, move=False) makes a new store"
            )
        return in_place(module, by_path(tree), layout, by_path(tree))
    elsewhere = torch_cards.is_on_card(torch_cards.device_of(by_path(tree)))
    if store is None:
        if elsewhere:
            return torch_cards.adopted(tree, layout)
        made = Store.zeros(layout)
        with reading(*memories_of(by_path(tree).values())):  # it may have been adopted before
            write([made.memory], lambda: _move_one_by_one(tree, layout, made))
        return made
    else:
        pairs = _pairs(_leaves_in_words(store.layout), _leaves_in_words(layout))
        unlike = [Difference(*pair, "adopt(module) makes a new store") for pair in pairs if pair[1] != pair[2]]
        if unlike:
            raise StructureError(unlike, UNLIKE)
        if isinstance(store, TorchStore):
            torch_cards.moved_into(tree, store)
            return store
    write(store.memory.parts, lambda: _move_in(tree, layout, store))
    return store


def _move_one_by_one(tree: OrderedDict[str, Any], layout: Layout, store: Store) -> None:
    """Make the tensors views of a new store, with their values. The memory of each is free before the next is moved."""
    tensors = by_path(tree)
    names: dict[str, list[str]] = {}
    for leaf in layout.leaves:
        names.setdefault(leaf.tied or leaf.path, []).append(leaf.path)
    for tensor in tensors.values():
        tensor.data = tensor.data  # who refuses other data refuses now
    trim, held = getattr(pythonapi, "malloc_trim", None), 0  # the C library's, where it has one
    moved: list[Any] = []
    try:
        for home, paths in names.items():
            view = store.leaf_view(home)
            view[...] = as_numpy(tensors[home], home)
            for path in paths:
                moved.append(tensors[path])
                tensors[path].data = from_numpy(view)
            held += view.nbytes
            if trim and held >= HELD_AT_MOST:  # what is freed between others' memory stays with the process otherwise
                trim(0)
                held = 0
    except BaseException:
        for tensor in moved:
            tensor.data = tensor.data.clone()
        raise


def _move_in(tree: OrderedDict[str, Any], layout: Layout, store: Store) -> None:
    """Make the tensors views of the store, with their values; all of them, or none."""
    views = {path: store.leaf_view(path) for path in layout.by_path}
    shared = [path for path, view in views.items() if not view.flags.writeable]
    if shared:
        fix = "adopt(module, member.copy())"
        raise StructureError(
            [Difference(path, "a leaf of its own", "one that all members share", fix) for path in shared],
            "that torch must not write",
        )
    tensors = by_path(tree)
    arrays = {leaf.path: as_numpy(tensors[leaf.path], leaf.path) for leaf in layout.homes}
    with ExitStack() as back:  # if one refuses, those before it go back; the store comes last
        for path, tensor in tensors.items():
            back.callback(setattr, tensor, "data", tensor.data)
            tensor.data = from_numpy(views[path])
        store.assign({leaf.path: arrays[leaf.tied or leaf.path] for leaf in layout.leaves})
        back.pop_all()


def verify(module: Any, store: Store | TorchStore) -> None:
    """Check that the parameters and buffers of an adopted module are still views of `store`, as when it was adopted.

    Raises `StructureError` that names each one that left (`module.half()`, `param.data = …`), or was removed, added,
    frozen, unfrozen, tied or untied. If they have only left, `adopt(module, store)` brings them back; otherwise
    `adopt(module)` makes a new store.

    >>> import torch
    >>> module = torch.nn.Linear(2, 1)
    >>> store = adopt(module)
    >>> module.bias.data = torch.zeros(1)
    >>> verify(module, store)
    Traceback (most recent call last):
    flatstore.StructureError: 1 leaf of the module not in the store any more:
      'bias': expected a view of float32[1], got float32[1] elsewhere; fix: adopt(module, store) brings it back
    """
    tensors = by_path(tree_of(module))
    layout = _checked(store).layout
    obstacles, tied = read_tensors(tensors)
    in_store = _leaves_in_words(layout)
    in_module = {path: _in_words(_kind(x), x.requires_grad, tied.get(path)) for path, x in tensors.items()}
    fix = "adopt(module, store) brings it back" if in_module == in_store else "adopt(module) makes a new store"
    differences = {difference.path: difference for difference in obstacles}
    for path, was, now in _pairs(in_store, in_module):
        if path in differences:
            continue
        if path in in_store and path in in_module and not _is_at(tensors[path], path, store):
            now = _in_words(f"{_kind(tensors[path])} elsewhere", tensors[path].requires_grad, tied.get(path))
        if was != now:
            differences[path] = Difference(path, f"a view of {was}" if path in in_store else was, now, fix)
    if differences:
        what = "of the module not in the store any more" if in_module == in_store else UNLIKE
        raise StructureError([*differences.values()], what)


def from_numpy(array: Array) -> Any:
    """A torch tensor over the bytes of a NumPy array, bfloat16 and float8 included: a view.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(2, "bfloat16")})
    >>> _ = from_numpy(store["w"]).add_(1)
    >>> store["w"]
    array([1, 1], dtype=bfloat16)

    Raises `ValueError` for an array that is read-only or steps backwards, and for a dtype that torch does not have;
    `TypeError` if it is not an array.
    """
    torch = require("torch", "torch")
    if not isinstance(array, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"expected a NumPy array, got {type(array).__name__}; fix: pass np.asarray(...) of it")
    name = array.dtype.name
    if not array.flags.writeable:
        raise ValueError(
            "expected a writable array, since torch writes read-only ones too, got a read-only one; "
            "fix: wait for the end of the lend, or copy it"
        )
    if any(stride < 0 for stride in array.strides):
        raise ValueError(f"expected strides >= 0, which torch can view, got {array.strides}; fix: copy the array")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"expected a dtype that torch has, got {name}; fix: convert it with .astype(...)")
    # torch reads NumPy's own types only: it takes the others as integers of their width, and is told what they are.
    with torch.inference_mode(False):  # what is made inside of that mode can never be trained
        return torch.from_numpy(array if hasattr(np, name) else array.view(f"u{array.itemsize}")).view(dtype)


def _checked(store: Any) -> Any:
    if not isinstance(store, (Store, TorchStore)):
        raise TypeError(f"expected a Store, got {type(store).__name__}; fix: adopt(module) makes one")
    return store


def tree_of(module: Any) -> OrderedDict[str, Any]:
    """The parameters, then the buffers, by torch's names; a tied one under each of its names."""
    torch = require("torch", "torch")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"expected a torch.nn.Module, got {type(module).__name__}; fix: Store.from_tree takes pytrees of arrays"
        )
    return OrderedDict(
        [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    )


def _layout(tree: OrderedDict[str, Any], align: int) -> Layout:
    """The layout of a module's tensors. Raises `ValueError` that names every one that cannot be a view of a store."""
    tensors = by_path(tree)
    if not tensors:
        raise ValueError("expected a module with parameters or buffers, got one without; fix: adopt the whole model")
    obstacles, tied = read_tensors(tensors)
    if obstacles:
        raise ValueError(listing(obstacles, "of the module that cannot be a view of a store"))
    return Layout.from_tree(tree, align=align, tied=tied, trainable=lambda _path, tensor, _node: tensor.requires_grad)


def _in_words(kind: str, trainable: bool, tied: str | None) -> str:
    return f"{kind}{'' if trainable else ', frozen'}{f', tied to {tied!r}' if tied else ''}"


def _leaves_in_words(layout: Layout) -> dict[str, str]:
    """Each leaf in words: its shape and dtype, whether it trains, and what it is tied to."""
    return {path: _in_words(str(leaf.spec), leaf.trainable, leaf.tied) for path, leaf in layout.by_path.items()}


def _pairs(in_store: Mapping[str, str], in_module: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The triples (path, description in the store, description in the module) of all paths in either."""
    return [(path, in_store.get(path, "nothing"), in_module.get(path, "nothing")) for path in {**in_store, **in_module}]


def _is_at(tensor: Any, path: str, store: Store | TorchStore) -> bool:
    if isinstance(store, TorchStore):
        return bool(not tensor.numel() or tensor.data_ptr() == store[path].data_ptr())
    view = store.leaf_view(path)
    return not view.size or tensor.data_ptr() == view.__array_interface__["data"][0]


def _kind(tensor: Any) -> str:
    torch = require("torch", "torch")
    if torch.nn.parameter.is_lazy(tensor):
        return "a lazy tensor"
    kind = f"{str(tensor.dtype).removeprefix('torch.')}[{','.join(map(str, tensor.shape))}]"
    return kind if tensor.device.type == "cpu" else f"{kind} on {tensor.device}"
