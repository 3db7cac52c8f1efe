"""The core of views: shape every leaf in one memory, once, and give out the same view from then on.

A *plan* says where the leaves lie: the byte at which each starts, and how far apart the members of a population are.
A store has no members; the member of a population is a store whose plan is the population's:

```
plan      dense/bias -> Place(offset=0, step=8)          step None: one for all members
member 3  dense/bias  = 2 float32 at byte 0 + 3 * 8
stacked   dense/bias  = (P, 2) float32 at byte 0, rows 8 bytes apart
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, Self

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf, describe
from flatstore.memory import Memory, ended, is_lent, lock, settle
from flatstore.store.placement import Plan
from flatstore.trees import Glob, as_path, flatten, matcher, nodes, path_of, refuse_idle_glob


class Views:
    """What `Store` and `Population` have in common: a memory, a layout, and a view for each path."""

    __slots__ = (
        "_alias", "_count", "_first", "_memory", "_plan", "_planned", "_tree", "_views", "_whole", "_wholes", "layout"
    )  # fmt: skip

    layout: Layout
    """Where every parameter of one model lives."""

    _memory: Memory
    _plan: Plan
    _first: int
    _count: int | None
    _views: dict[str, Array]
    _wholes: dict[str, Array]
    _planned: dict[Any, Any]
    _tree: Any
    _alias: tuple[tuple[str, ...] | None, list[jax.Array], Any] | None
    _whole: bool

    @classmethod
    def _over(cls, layout: Layout, mem: Memory, plan: Plan, first: int = 0, count: int | None = None) -> Self:
        self = object.__new__(cls)
        self.layout = layout
        self._memory = mem
        self._plan = plan
        self._first = first
        self._count = count
        self._views = {}
        self._wholes = {}
        self._planned = {}
        self._tree = None
        self._alias = None
        self._whole = False
        return self

    @classmethod
    def _wrap(cls, buffer: Any, layout: Layout, plan: Plan, align: int, count: int | None = None) -> Self:
        mem = Memory.wrap(buffer, plan.nbytes, max(align, *(leaf.dtype.itemsize for leaf in layout.homes)))
        end = 0
        for start, nbytes in sorted(plan.blocks):
            if mem.bytes[end:start].any():
                raise ValueError(
                    f"expected zeros between the leaves, got other values in bytes {end} .. {start - 1}; "
                    "fix: zero the buffer before you fill it, or plan the layout with align=1"
                )
            end = start + nbytes
        return cls._over(layout, mem, plan, 0, count)

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"expected a named constructor, got {name}(); fix: {name}.from_tree, .zeros or .wrap")

    # -- reading

    @property
    def memory(self) -> Memory:
        """The memory behind the views; for this package's own modules."""
        return self._memory

    @property
    def tree(self) -> Any:
        """The tree, in the user's own node types: every numeric leaf is a view. The same object each time.

        It is yours: what you rebind in it is no longer in the buffer (`verify` tells), and nothing here reads it.
        """
        if ended:
            settle()
        tree = self._tree
        if tree is None:
            with lock:
                views = self._views
                self._add(leaf for leaf in self.layout.leaves if leaf.path not in views)
                tree = self._tree = self.layout.unflatten([views[leaf.path] for leaf in self.layout.leaves])
        return tree

    def leaf_view(self, path: Any) -> Array:
        """The view of a leaf, by path or tuple of keys: what `[path]` gives."""
        if ended:
            settle()
        try:
            return self._views[path]
        except (KeyError, TypeError):
            return self._view(self.layout.leaf(path))

    def select(self, globs: Glob) -> dict[str, Array]:
        """{path: view} of the leaves that match; '*' crosses '/'. Raises `ValueError` if none does.

        >>> import flatstore as fs
        >>> store = fs.Store.from_tree({"a": {"kernel": np.ones((2, 2))}, "b": {"kernel": np.ones(3), "bias": 0.0}})
        >>> list(store.select("*/kernel"))
        ['a/kernel', 'b/kernel']
        """
        matches = matcher(globs)
        found = {path: self.leaf_view(path) for path in self.layout.by_path if matches(path)}
        if not found:
            refuse_idle_glob("select", globs, self.layout.by_path)
        return found

    @property
    def buffer(self) -> Array:
        """All bytes of the memory: a 1-D uint8 view, padding included. Of a part (a member, a node), of the whole."""
        return self._shown("buffer", lambda: self._memory.bytes[:])

    def modules(self) -> Iterator[tuple[str, Self]]:
        """(path, the same kind of object over that node) for every node that has numeric leaves, the root first.

        Views: the node's `tree` is the user's own node type. Its paths, indices and layout are its own.

        >>> import flatstore as fs
        >>> store = fs.Store.from_tree({"a": {"kernel": np.full((2, 2), 2.0), "bias": np.ones(2)}})
        >>> {path: float(np.linalg.norm(node["kernel"])) for path, node in store.modules() if "kernel" in node}
        {'a': 4.0}
        """
        skeleton = self.layout.unflatten(self.layout.leaves)
        for keys, node in nodes(skeleton):
            flat, treedef = flatten(node)
            rows = [x for _, x in flat if isinstance(x, Leaf)]
            if rows:
                layout = Layout.of_node(rows, len(keys), self.layout.align, treedef, [x for _, x in flat])
                places = {new.path: self._plan.places[old.path] for new, old in zip(layout.leaves, rows, strict=True)}
                node_views = self._over(
                    layout, self._memory, self._plan._replace(places=places), self._first, self._count
                )
                node_views._whole = self._whole
                yield path_of(keys), node_views

    def __contains__(self, path: object) -> bool:
        """Whether a leaf has this path."""
        return isinstance(path, (str, tuple)) and as_path(path) in self.layout.by_path  # pyright: ignore[reportUnknownArgumentType]

    # -- views

    @property
    def _lead(self) -> tuple[int, ...]:
        return () if self._count is None else (self._count,)

    def _is_shared(self, leaf: Leaf) -> bool:
        """Whether the leaf belongs to a whole population of which this is only a part."""
        return self._plan.order != "store" and not self._whole and self._plan.places[leaf.path].step is None

    def start_of(self, leaf: Leaf) -> int:
        """The first byte of a leaf (of the first member), from the start of the memory."""
        offset, step = self._plan.places[leaf.path]
        return offset if step is None else offset + self._first * step

    def _make(self, leaf: Leaf, writeable: bool) -> Array:
        """A new view of a leaf: one call, no decision but that of the plan."""
        offset, step = self._plan.places[leaf.path]
        if step is None:
            view = np.ndarray(leaf.shape, leaf.dtype, self._memory.bytes, offset)
        else:
            view = np.ndarray(leaf.shape, leaf.dtype, self._memory.bytes, offset + self._first * step)
            if self._count is not None:
                shape, strides = (self._count, *leaf.shape), (step, *view.strides)
                view = np.ndarray(shape, leaf.dtype, self._memory.bytes, offset + self._first * step, strides)
        if not writeable:
            view.flags.writeable = False
        return view

    def _view(self, leaf: Leaf) -> Array:
        """The one view of a leaf, made at its first use."""
        with lock:
            if leaf.path not in self._views:
                self._add([leaf])
            return self._views[leaf.path]

    def _add(self, leaves: Iterable[Leaf]) -> None:
        """Make and cache the views of leaves (under the lock); tied leaves have the same one."""
        views, places = self._views, self._plan.places
        part = self._plan.order != "store" and not self._whole
        new: list[Array] = []
        for leaf in leaves:
            path, home = leaf.path, leaf.tied
            if home is not None and home in views:
                views[path] = views[home]
                continue
            shared = part and places[path].step is None
            view = views[path] = self._make(leaf, not shared)
            if home is not None:
                views[home] = view
            if not shared:
                new.append(view)
        self._memory.watch(new)

    def _shown(self, name: str, make: Callable[[], Array]) -> Array:
        """The one view of something larger than a leaf, made at its first use."""
        with lock:
            settle()
            view = self._wholes.get(name)
            if view is None:
                view = self._wholes[name] = make()
                self._memory.watch([view])
            return view

    def columns(self, leaf: Leaf) -> Array:
        """A home with its own axes in one, shape (members, leaf.size); a store counts as one member.

        A new view, writable even during a lend: for verbs that hold `memory.writing()`.
        """
        step = self._plan.places[leaf.path].step
        shape, strides = (self._count or 1, leaf.size), (step or 0, leaf.dtype.itemsize)
        return np.ndarray(shape, leaf.dtype, self._memory.bytes, self.start_of(leaf), strides)

    def planned(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make()` gave for a key before: for what kernels need to know of this layout in this memory."""
        found = self._planned.get(key)
        if found is None:
            if len(self._planned) >= 16:  # a strength that fades is a new key each generation
                self._planned.clear()
            found = self._planned[key] = make()
        return found

    def runs(self, dtype: str) -> Array:
        """The trainable leaves of a dtype as runs: neighbours in the index that are neighbours in memory.

        Shape (runs, 4), int64, in elements: the first index, the end, the place of the first in the memory, and the
        places from one member to the next. For the compiled kernels.
        """
        return self.planned(dtype, lambda: self._find_runs(dtype))

    def _find_runs(self, dtype: str) -> Array:
        rows: list[list[int]] = []
        for leaf in self.layout.homes:
            if not (leaf.trainable and leaf.size and leaf.dtype.name == dtype):
                continue
            place = self.start_of(leaf) // leaf.dtype.itemsize
            step = (self._plan.places[leaf.path].step or 0) // leaf.dtype.itemsize
            last = rows[-1] if rows else None
            if last and last[1] == leaf.index and last[3] == step and last[2] + last[1] - last[0] == place:
                last[1] += leaf.size
            else:
                rows.append([leaf.index, leaf.index + leaf.size, place, step])
        return np.array(rows, np.int64).reshape(-1, 4)

    def raw(self, dtype: Any) -> Array:
        """The memory as a vector of numbers of a dtype, as far as it goes: what the places of `runs` count in."""
        size = np.dtype(dtype).itemsize
        return self._memory.bytes[: self._memory.bytes.size // size * size].view(dtype)

    def __copy__(self) -> NoReturn:
        raise TypeError("expected copy() to be called, got copy.copy(); fix: store.copy() is the copy")

    def __deepcopy__(self, memo: Any) -> Any:
        """The same as `copy()`."""
        return self.copy()

    def _describe(self, title: str) -> str:
        lent = " (lent)" if is_lent(self._memory) else ""
        return title + lent + "\n" + describe(self.layout.leaves, self.start_of)

    def copy(self) -> Any:
        """A copy in memory of its own."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"expected something that pickles, got a {type(self).__name__}, which is memory; "
            "fix: pickle its layout and its to_vector(), or save it"
        )
