"""What stores and populations have in common: a view of each leaf, made once and handed out from then on.

A *placement* says where the leaves lie: the byte at which each starts, and how far apart the members of a population
are. A store has no members; the member of a population is a store whose placement is the population's:

```
placement   dense/bias -> Place(offset=0, step=8)          step None: one for all members
member 3    dense/bias  = 2 float32 at byte 0 + 3 * 8
stacked     dense/bias  = (P, 2) float32 at byte 0, rows 8 bytes apart
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Self

import jax
import numpy as np

from flatstore.layout import Array, Layout, Leaf, describe, memory_map
from flatstore.memory import GuardedView, Memory, settle
from flatstore.store.addresses import Placed
from flatstore.store.placement import Placement
from flatstore.trees import Glob, Subtree, as_path, matcher, path_of, refuse_idle_glob


class _HandedOut:
    """The views handed out so far, of one type: ordinary arrays, or the guarded views that are given during a lend."""

    __slots__ = ("combined", "tree", "view_type", "views")

    def __init__(self, view_type: type[Array]) -> None:
        self.view_type = view_type
        self.views: dict[str, Array] = {}  # by path
        self.combined: dict[str, Array] = {}  # views of several leaves, by name
        self.tree: Any = None


class Views(Placed, Subtree):
    """What `Store` and `Population` have in common: a layout placed in a memory, and a view for each path."""

    __slots__ = ("_alias", "_guarded", "_plain", "_segment")

    _plain: _HandedOut
    _guarded: _HandedOut | None
    _alias: tuple[tuple[str, ...] | None, list[jax.Array], Any] | None
    _segment: str | None

    @classmethod
    def _over(cls, layout: Layout, mem: Memory, placement: Placement, first: int = 0, count: int | None = None) -> Self:
        self = super()._over(layout, mem, placement, first, count)
        self._plain = _HandedOut(np.ndarray)
        self._guarded = None
        self._alias = self._segment = None
        return self

    @classmethod
    def _wrap(cls, buffer: Any, layout: Layout, placement: Placement, align: int, count: int | None = None) -> Self:
        mem = Memory.wrap(buffer, placement.nbytes, max(align, *(leaf.dtype.itemsize for leaf in layout.homes)))
        end = 0
        for start, nbytes in sorted(placement.blocks):
            if mem.bytes[end:start].any():
                raise ValueError(
                    f"expected zeros between the leaves, got other values in bytes {end} .. {start - 1}; "
                    "fix: zero the buffer before you fill it, or plan the layout with align=1"
                )
            end = start + nbytes
        return cls._over(layout, mem, placement, 0, count)

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"expected a named constructor, got {name}(); fix: call {name}.from_tree, .zeros or .wrap")

    # -- reading

    @property
    def tree(self) -> Any:
        """The tree, in the user's own node types: every numeric leaf is a view. The same object each time.

        You may change it, and the library never reads it: a leaf that you replace in it is no longer in the buffer,
        which `verify` reports. During a lend it is another tree, of read-only views that DLPack does not export.
        """
        handed = self._handed_out()
        tree = handed.tree
        if tree is None:
            made = self.layout.unflatten([self._view(handed, leaf) for leaf in self.layout.leaves])
            if handed.tree is None:  # the nodes are made by code of the user's, which may have asked for the tree
                handed.tree = made
            tree = handed.tree
        return tree

    def leaf_view(self, path: Any) -> Array:
        """The view of a leaf, by path or tuple of keys: what `[path]` gives. Read-only during a lend."""
        handed = self._handed_out()
        try:
            return handed.views[path]
        except (KeyError, TypeError):
            return self._view(handed, self.layout.leaf(path))

    def select(self, globs: Glob) -> dict[str, Array]:
        """A dict {path: view} of the leaves that match; '*' also matches '/'. Raises `ValueError` if none does.

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
        """All bytes of the memory, padding included: a 1-D uint8 view. A member or a node gives the whole's.

        Raises `ValueError` if the leaves do not lie in one buffer: those of a module adopted with `move=False`.
        """
        self._refuse_apart("use the views store[path], or store.copy().buffer, which copies")
        return self._combined_view("buffer", lambda: self._memory.bytes[:])

    def _refuse_apart(self, fix: str) -> None:
        """Raise `ValueError` if the leaves lie where others keep them, and other bytes between them."""
        if self._placement.order == "spans":
            raise ValueError(
                "expected leaves in one buffer, got a store whose leaves lie where their owner keeps them, with bytes "
                f"of others between them; fix: {fix}"
            )

    def modules(self) -> Iterator[tuple[str, Self]]:
        """(path, the same kind of object over that node) for every node that has numeric leaves, the root first.

        Views: the node's `tree` is the user's own node type. Its paths, indices and layout are its own. Raises
        `ValueError` for parts of a model (`fs.adopt_parts`), whose indices are those of the whole.

        >>> import flatstore as fs
        >>> store = fs.Store.from_tree({"a": {"kernel": np.full((2, 2), 2.0), "bias": np.ones(2)}})
        >>> {path: float(np.linalg.norm(node["kernel"])) for path, node in store.modules() if "kernel" in node}
        {'a': 4.0}
        """
        if self.parts is not None:
            raise ValueError(
                "expected a whole model, whose nodes have indices of their own, got parts of one; "
                "fix: use select() or the views store[path]"
            )
        for keys, rows, layout in self.layout.nodes():
            places = {new.path: self._placement.places[old.path] for new, old in zip(layout.leaves, rows, strict=True)}
            placement = self._placement._replace(places=places)
            node_views = self._over(layout, self._memory, placement, self._first, self._count)
            node_views._whole = self._whole
            yield path_of(keys), node_views

    def __contains__(self, path: object) -> bool:
        """Whether a leaf has this path."""
        return isinstance(path, (str, tuple)) and as_path(path) in self.layout.by_path  # pyright: ignore[reportUnknownArgumentType]

    def __subtree__(self, path: str) -> Any:
        """The tree of views that stands in for this store when it is a leaf of another tree.

        Raises `TypeError` for a population.
        """
        if self._count is not None:
            raise TypeError(
                f"{path and f'{path!r}: '}expected a tree or one model, got a {type(self).__name__}, "
                "whose leaves are those of many; fix: pass a member, as population[0], or all of them stacked, "
                "population.tree"
            )
        return self.layout.unflatten([self.leaf_view(leaf.path) for leaf in self.layout.leaves])

    # -- views

    def _handed_out(self) -> _HandedOut:
        """The views that are handed out now: guarded ones while the memory is lent."""
        if self._memory.lends:
            if self._memory.is_lent():
                if self._guarded is None:
                    self._guarded = _HandedOut(GuardedView)
                return self._guarded
            settle(self._memory)
        return self._plain

    def _view(self, handed: _HandedOut, leaf: Leaf) -> Array:
        """The view of a leaf, made at its first use: one for each type, and the same for all names of tied leaves."""
        views, home = handed.views, leaf.tied or leaf.path
        view = views.get(home)
        if view is None:
            closed = self._memory.is_read_only or self._is_shared(leaf)
            is_private = self._memory.is_read_only and self._memory.segment is not None  # pages of what is attached
            guarded = closed and not is_private
            view = self._new_view(leaf, not closed).view(GuardedView if guarded else handed.view_type)
            if not closed:
                self._memory.watch(view)
            view = views.setdefault(home, view)  # the first that is made is the one that everybody gets
        return views.setdefault(leaf.path, view)

    def _combined_view(self, name: str, make: Callable[[], Array]) -> Array:
        """The one view of several leaves together, made at its first use."""
        handed = self._handed_out()
        view = handed.combined.get(name)
        if view is None:
            closed = self._memory.is_read_only
            view = make().view(GuardedView if closed else handed.view_type)
            if closed:
                view.flags.writeable = False
            else:
                self._memory.watch(view)
            view = handed.combined.setdefault(name, view)
        return view

    def __copy__(self) -> NoReturn:
        raise TypeError("expected copy() to be called, got copy.copy(); fix: call store.copy()")

    def __deepcopy__(self, memo: Any) -> Any:
        """The same as `copy()`."""
        return self.copy()

    def _describe(self, title: str) -> str:
        lent = " (lent)" if self._memory.is_lent() else ""
        if self._placement.order == "spans":
            first = self._memory.start
            return f"{title}, where others keep it{lent}\n" + describe(
                self.layout.leaves, lambda leaf: hex(first + self.start_of(leaf))
            )
        return title + lent + "\n" + describe(self.layout.leaves, self.start_of)

    def _repr_html_(self) -> str:
        """The memory map of the layout, in a notebook."""
        return memory_map(repr(self).partition("\n")[0], self.layout.leaves, self.layout.nbytes)

    def copy(self) -> Any:
        """A copy in memory of its own."""
        raise NotImplementedError

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"expected something that pickles, got a {type(self).__name__}, which is memory; "
            "fix: pickle its layout and its to_vector(), or call fs.save"
        )
