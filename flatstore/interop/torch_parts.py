"""A torch module that has parts of a whole model, under other names: fused, sharded, a few of many layers.

An inference engine keeps the queries, keys and values of a layer in one tensor, and each of its processes some rows or
columns of it. What is known there by one name is three leaves of the trained model, with indices of their own:

```
engine, process 1 of 2       whole model                       indices
qkv.weight   rows  0 .. 31   q.weight, at row 32               those of q.weight, from row 32 on
             rows 32 .. 39   k.weight, at row 8                those of k.weight
             rows 40 .. 47   v.weight, at row 8                those of v.weight
```
"""

from __future__ import annotations

import glob
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from flatstore.extras import require
from flatstore.interop.torch import tree_of
from flatstore.interop.torch_obstacles import read_tensors
from flatstore.interop.torch_spans import in_place
from flatstore.layout import Layout, Leaf, place, torch_dtype
from flatstore.store import Parts, Store, TorchStore
from flatstore.surgery import replan
from flatstore.trees import Difference, Glob, StructureError, as_path, matcher, refuse_idle_glob

Tensors = Mapping[str, Any]

UNLIKE = "of the module unlike the whole model"


def adopt_parts(
    module: Any,
    whole: Layout | Store | TorchStore,
    parts: Mapping[str, Any] | None = None,
    *,
    at: Mapping[str, int | tuple[int, ...]] | None = None,
    ignore: Glob = (),
) -> Store | Any:
    """A store over what a torch module has of a whole model, where it is: views, no byte moves.

    Its paths are those of the whole, and so are the indices of its parameters: whoever perturbs it, or moves it, by a
    seed does to each of them what is done to the whole by the same seed, to the bit. Everything else is as for
    `adopt(module, move=False)`. If every leaf is there, and whole, the store has the layout of the whole.

    >>> import torch
    >>> import flatstore as fs
    >>> trained = torch.nn.ModuleDict({"k": torch.nn.Linear(3, 2), "q": torch.nn.Linear(3, 4)})
    >>> engine = torch.nn.ModuleDict({"qk": torch.nn.Linear(3, 6)})
    >>> qk, whole = engine["qk"], fs.adopt(trained)
    >>> rows = {"q": slice(0, 4), "k": slice(4, 6)}
    >>> fused = {f"{n}.{x}": getattr(qk, x)[rows[n]] for n in rows for x in ("weight", "bias")}
    >>> store = adopt_parts(engine, whole, fused)
    >>> store.assign(whole)
    >>> for x in (whole, store):
    ...     fs.es.perturb(x, fs.Normal(0.02), 7, exact=False)
    >>> torch.equal(torch.cat([trained["q"].weight, trained["k"].weight]), qk.weight)
    True

    Args:
        module: a `torch.nn.Module` in host memory, or on one card, where the store is a `TorchStore`.
        whole: the layout of the whole model, or a store of it. It says what trains.
        parts: {path in the whole: a slice of one of the module's tensors}, such as `module.qkv.weight[:32]`, which lies
            in one piece; or None for a leaf that is not there. A path that is not named is that of a tensor of the
            module.
        at: {path: where in the leaf of the whole the part begins}, an integer for each of the first axes, for leaves of
            which the module has a block only.
        ignore: globs of the module's parameters that are not of the model. Buffers that have no path in it are left
            out, and so are the rows that pad a tensor.

    Raises `StructureError` that lists every leaf that is missing, of another shape or dtype, outside of the whole or
    elsewhere than in the module, and every parameter that is no part; `ValueError` for tensors that cannot be views of
    a store, and globs that match nothing; `TypeError` for what is not a module, a layout or tensors.
    """
    whole, tensors = _layout_of(whole), tree_of(module)
    given = {as_path(path): part for path, part in (parts or {}).items()}
    starts = {as_path(path): start if isinstance(start, tuple) else (start,) for path, start in (at or {}).items()}
    blocks, differences = _blocks(whole, tensors, given, starts)
    leaves = {path: block.tensor for path, block in blocks.items()}
    obstacles, ties = read_tensors(leaves)
    stuck = {difference.path for difference in obstacles}
    sound = {path: tensor for path, tensor in leaves.items() if path not in stuck}
    differences += [*obstacles, *_wrong_ties(whole, sound, ties), *_elsewhere(sound, tensors)]
    if not differences:  # else what does not fit would be named twice
        differences += _idle(module, sound, ignore)
    if differences:
        raise StructureError(differences, UNLIKE)
    for path in leaves:  # a home may be there under another of its names
        blocks.setdefault(whole.by_path[path].tied or path, blocks[path])
    leaves = {path: block.tensor for path, block in blocks.items()}
    layout = _restricted(whole, leaves)
    where = (
        None if layout == whole else Parts(whole, {path: blocks[path].at for path in layout.by_path if path in blocks})
    )
    return in_place(module, tensors, layout, leaves, where)


class _Block(NamedTuple):
    """A tensor that is a block of a leaf of the whole, and where in it that begins."""

    tensor: Any
    at: tuple[int, ...]


def _blocks(
    whole: Layout, tensors: Tensors, given: Tensors, starts: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, _Block], list[Difference]]:
    """The block of each leaf of the whole that is there, and what is missing or does not fit."""
    differences = [
        Difference(path, "a path of the whole model", "another", "name a leaf of it")
        for path in dict.fromkeys([*given, *starts])
        if path not in whole.by_path
    ]
    blocks: dict[str, _Block] = {}
    for path, leaf in whole.by_path.items():
        tensor = given[path] if path in given else tensors.get(path)
        if tensor is not None:
            start = starts.get(path, ())
            block = _Block(_detached(tensor, path), (*start, *[0] * (len(leaf.shape) - len(start))))
            unfit = _unfit(leaf, block, path in starts)
            if unfit is None:
                blocks[path] = block
            else:
                differences.append(unfit)
        elif path not in given and leaf.tied is None:
            fix = "name its part in parts=, or None if it is not here"
            differences.append(Difference(path, str(leaf.spec), "nothing", fix))
    return blocks, differences


def _layout_of(whole: Any) -> Layout:
    if isinstance(whole, (Store, TorchStore)):
        if whole.parts is not None:
            raise TypeError("expected a whole model, got a store of parts of one; fix: pass its layout, store.whole")
        return whole.layout
    if not isinstance(whole, Layout):
        raise TypeError(
            f"expected the layout of the whole model, got {type(whole).__name__}; fix: pass store.layout, or "
            "fs.Layout.from_tree(tree)"
        )
    return whole


def _detached(value: Any, path: str) -> Any:
    torch = require("torch", "torch")
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{path!r}: expected a slice of a tensor of the module, got {type(value).__name__}; "
            "fix: pass one, as in module.qkv.weight[:32], or None for a leaf that is not there"
        )
    return value.detach()


def _unfit(leaf: Leaf, block: _Block, is_placed: bool) -> Difference | None:
    """What keeps a tensor from being a block of a leaf, or None."""
    dtype, shape = torch_dtype(block.tensor), tuple(block.tensor.shape)
    name = str(block.tensor.dtype).removeprefix("torch.") if dtype is None else dtype.name
    got = f"{name}[{','.join(map(str, shape))}]"
    if dtype != leaf.dtype:
        return Difference(leaf.path, str(leaf.spec), got, f"plan the whole in {name}")
    if len(shape) != len(leaf.shape) or (not is_placed and shape != leaf.shape):
        fix = "pass the slice that is this leaf in parts=, and where in it a block begins in at="
        return Difference(leaf.path, str(leaf.spec), got, fix)
    inside = len(block.at) == len(shape)
    for a, size, end in zip(block.at, shape, leaf.shape, strict=False):
        inside = inside and 0 <= a <= a + size <= end
    if not inside:
        return Difference(leaf.path, f"a block of {leaf.spec}", f"{got} at {block.at}", "pass where it begins in at=")
    return None


def _wrong_ties(whole: Layout, leaves: Tensors, ties: Mapping[str, str]) -> Iterable[Difference]:
    """Leaves that are tied in the module and not in the whole, or the other way round."""

    def home(path: str) -> str:
        return whole.by_path[path].tied or path

    for path, other in ties.items():
        if home(path) != home(other):
            yield Difference(path, "memory of its own", f"that of {other!r}", "pass each leaf its own slice")
    first: dict[str, str] = {}
    for path in leaves:
        other = first.setdefault(home(path), path)
        if ties.get(path, path) != ties.get(other, other):
            fix = f"pass the same slice for both, or plan the whole with tied=False: it is another name of {other!r}"
            yield Difference(path, f"the memory of {other!r}", "memory of its own", fix)


class _Ranges:
    """Which of some tensors the bytes of another one belong to."""

    def __init__(self, tensors: Iterable[Any]) -> None:
        ranges = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in tensors if x.nbytes)
        self.starts = [start for start, _ in ranges]
        self.stops = [*accumulate((stop for _, stop in ranges), max)]

    def hold(self, tensor: Any) -> bool:
        """Whether all bytes of a tensor are within one of them, or within neighbours."""
        at = bisect_right(self.starts, tensor.data_ptr()) - 1
        return at >= 0 and tensor.data_ptr() + tensor.nbytes <= self.stops[at]

    def meet(self, tensor: Any) -> bool:
        """Whether one of them begins in a tensor, or reaches into it."""
        at = bisect_left(self.starts, tensor.data_ptr() + tensor.nbytes) - 1
        return at >= 0 and self.stops[at] > tensor.data_ptr()


def _elsewhere(leaves: Tensors, tensors: Tensors) -> Iterable[Difference]:
    """Leaves that do not lie in any tensor of the module."""
    stuck = {difference.path for difference in read_tensors(tensors)[0]}
    own = _Ranges(tensor for name, tensor in tensors.items() if name not in stuck)
    for path, leaf in leaves.items():
        if leaf.nbytes and not own.hold(leaf):
            fix = "pass a slice of one, as in module.qkv.weight[:32], not a copy"
            yield Difference(path, "memory of a tensor of the module", "memory elsewhere", fix)


def _idle(module: Any, leaves: Tensors, ignore: Glob) -> Iterable[Difference]:
    """Parameters of the module in which no leaf lies, and which are not to be ignored."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    if ignore:
        refuse_idle_glob("ignore", ignore, parameters, "parameter")
    is_ignored, parts = matcher(ignore), _Ranges(leaves.values())
    for name, tensor in parameters.items():
        if not is_ignored(name) and (tensor.is_meta or (tensor.nbytes and not parts.meet(tensor))):
            fix = "name the leaves of the whole that it holds in parts=, or its own name in ignore="
            yield Difference(name, "a part of the whole model", "a parameter that is none", fix)


def _restricted(whole: Layout, leaves: Tensors) -> Layout:
    """The layout of the whole, with those leaves alone that are there, in the shapes that they have."""
    names = {path for path, leaf in whole.by_path.items() if (leaf.tied or path) in leaves}
    drop = [glob.escape(path) for path in whole.by_path if path not in names]
    layout = replan(whole, drop=drop) if drop else whole
    shapes = {path: tuple(leaves[layout.by_path[path].tied or path].shape) for path in layout.by_path}
    if all(leaf.shape == shapes[leaf.path] for leaf in layout.leaves):
        return layout
    rows = [replace(leaf, shape=shapes[leaf.path]) for leaf in layout.leaves]
    return Layout(place(rows, layout.align), layout.align, layout.treedef, layout.riders)
