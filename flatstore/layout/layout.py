"""Where every parameter lives: the table of leaves that a buffer and a tree have in common.

    >>> layout = Layout.from_tree({"dense": {"kernel": np.zeros((2, 2), "f4"), "bias": np.zeros(2, "f4")}}, align=16)
    >>> [(leaf.path, leaf.shape, leaf.offset, leaf.index) for leaf in layout.leaves]
    [('dense/bias', (2,), 0, 0), ('dense/kernel', (2, 2), 16, 2)]
    >>> layout.size, layout.nbytes, layout.padding
    (6, 32, 8)

Two orders meet here. The *index* of a parameter is its packed position in JAX's pytree order over all numeric leaves;
nothing ever changes it. The *offset* of a leaf is where the bytes lie: trainable leaves first, grouped by dtype, each
start aligned. Sizes and indices count elements; offsets, padding and nbytes count bytes.

```
index   0        2                        leaves in JAX's order, packed
        | bias   | kernel        |
bytes   0        8       16      32
        | bias   | gap   | kernel        |
```
"""

from __future__ import annotations

import difflib
import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.layout.html import memory_map
from flatstore.layout.leaf import Leaf, describe, place, validate
from flatstore.layout.numeric_values import Spec, spec_of
from flatstore.layout.options import Dims, Trainable
from flatstore.layout.placeholders import stand_ins
from flatstore.layout.planning import rows_of
from flatstore.layout.ties import Tied
from flatstore.trees import (
    Difference,
    KeyPath,
    StructureError,
    Subtree,
    as_path,
    by_path,
    count,
    flatten,
    path_of,
    unflatten,
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Layout(Subtree):
    """Where every leaf lives. A frozen, hashable value with no array in it.

    Make one with `Layout.from_tree`. Two layouts are equal when their tables are: paths, shapes, dtypes, offsets,
    dims, trainable, ties. What the nodes of the tree are, and what rides along, does not count.
    """

    leaves: tuple[Leaf, ...]
    """A row per name, in JAX's pytree order; a tied leaf has one home and several rows."""
    align: int
    """Every leaf starts at a multiple of this many bytes (and of its own item size)."""
    treedef: Any
    """JAX's definition of the whole tree."""
    riders: tuple[tuple[int, Any], ...] = ()
    """What rides along: (position among all leaves of the tree, the object)."""
    by_path: Mapping[str, Leaf] = field(init=False)
    """The rows by path."""
    homes: tuple[Leaf, ...] = field(init=False)
    """The rows that own memory, in the order of their index."""
    size: int = field(init=False)
    """The number of parameters, in elements: each home once, padding not counted."""
    nbytes: int = field(init=False)
    """The bytes of the buffer, padding included."""
    padding: int = field(init=False)
    """The bytes of the buffer that are not data."""
    digest: str = field(init=False)
    """A hash of the table, the same in every process: equal digests mean interchangeable buffers."""

    def __post_init__(self) -> None:
        """Work out what follows from the table, once."""
        validate(self.leaves, self.align)
        homes = tuple(leaf for leaf in self.leaves if leaf.tied is None)
        nbytes = max((leaf.offset + leaf.nbytes for leaf in homes), default=0)
        names = {dtype: dtype.name for dtype in {leaf.dtype for leaf in self.leaves}}
        rows = [(x.path, x.shape, names[x.dtype], x.offset, x.trainable, x.tied, x.dims) for x in self.leaves]
        derived = {
            "by_path": MappingProxyType({leaf.path: leaf for leaf in self.leaves}),
            "homes": homes,
            "size": sum(leaf.size for leaf in homes),
            "nbytes": nbytes,
            "padding": nbytes - sum(leaf.nbytes for leaf in homes),
            "digest": hashlib.sha256(repr(rows).encode()).hexdigest(),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_tree(
        cls, tree: Any, *, align: int = 64, trainable: Trainable = None, dims: Dims = None, tied: Tied = None
    ) -> Layout:
        """The layout of a pytree of arrays or shapes (`jax.eval_shape`). Nothing is copied or allocated.

        Args:
            tree: any pytree that JAX can flatten, with at least one numeric leaf. A `Store` in it counts as its tree,
                whose leaves train, and name their axes, as they do there unless `trainable` or `dims` say otherwise.
            align: bytes; a power of two. 64 lets JAX view every leaf; 1 packs.
            trainable: globs, or `f(path, leaf, parent_node) -> bool`; by default floating and complex leaves.
            dims: names of axes by glob, {'*/kernel': ('in', 'out')}; the first glob that matches counts.
            tied: True, False, or {path: home's path}; by default arrays are tied where they are the same memory,
                and a repeated `jax.Array` is an error.

        Raises:
            ValueError: no numeric leaf, clashing paths, a glob that matches nothing, leaves that overlap in part.
            TypeError: an array that holds no numbers or is masked; an object that holds some and is neither an array
                nor a node; a torch module, a `Population`, a `Layout`.
        """
        if isinstance(tree, Subtree) and not isinstance(tree, Layout):
            fix = "pass {0}.tree; for a copy {0}.copy(), for its layout {0}.layout".format(type(tree).__name__.lower())
            raise TypeError(f"expected a tree of arrays, got a {type(tree).__name__}, which has a layout; fix: {fix}")
        rows, _, riders, treedef = rows_of(tree, trainable, dims, tied)
        if not rows:
            raise ValueError(f"expected a tree with at least one numeric leaf, got {treedef}; fix: pass the parameters")
        return cls(place(rows, align), align, treedef, riders)

    @classmethod
    def of_node(cls, flat: Sequence[Any], depth: int, align: int, treedef: Any) -> Layout:
        """The layout of one node of a tree, placed anew: its rows with the first `depth` keys taken off.

        `flat` holds all leaves of the node; those that are not rows ride along.
        """
        homes: dict[str, str] = {}
        inner: list[Leaf] = []
        for row in (x for x in flat if isinstance(x, Leaf)):
            keys = row.key_path[depth:]
            path, home = path_of(keys), row.tied or row.path
            inner.append(Leaf(path, keys, row.shape, row.dtype, row.trainable, homes.get(home), row.dims))
            homes.setdefault(home, path)
        riders = tuple((i, x) for i, x in enumerate(flat) if not isinstance(x, Leaf))
        return cls(place(inner, align), align, treedef, riders)

    def nodes(self) -> Iterator[tuple[KeyPath, list[Leaf], Layout]]:
        """(key path, rows, layout of its own) of every node that has numeric leaves, parents before children.

        The nodes themselves are not made, so that no constructor runs.
        """
        waiting = [(0, self.treedef, self._by_position(self.leaves, dict(self.riders)))]
        while waiting:
            depth, treedef, flat = waiting.pop()
            rows = [x for x in flat if isinstance(x, Leaf)]
            below: list[tuple[int, Any, list[Any]]] = []
            start = 0
            for child in treedef.children():
                below.append((depth + 1, child, flat[start : (start := start + child.num_leaves)]))
            if rows and below:
                yield rows[0].key_path[:depth], rows, Layout.of_node(flat, depth, self.align, treedef)
                waiting += reversed(below)

    def locate(self, index: int) -> tuple[str, tuple[int, ...]]:
        """The path, and the position inside that leaf, of parameter number `index`.

            >>> Layout.from_tree({"a": np.zeros(3), "b": np.zeros((2, 2))}).locate(5)
            ('b', (1, 0))

        Raises `IndexError` outside of 0 .. size - 1.
        """
        if not 0 <= whole(index) < self.size:
            raise IndexError(
                f"expected an index in 0 .. {self.size - 1}, got {index}; "
                "fix: pass an index below layout.size; it counts single numbers, not leaves"
            )
        leaf = self.homes[bisect_right(self.homes, index, key=lambda home: home.index + home.size)]
        return leaf.path, tuple(map(int, np.unravel_index(index - leaf.index, leaf.shape)))

    def index_of(self, path: str, position: Sequence[int] = ()) -> int:
        """The number of the parameter at `position` of the leaf at `path`: the inverse of `locate`.

        Raises `KeyError` for an unknown path, `IndexError` for a position outside of the leaf.
        """
        leaf = self.leaf(path)
        if len(position) != leaf.ndim or not all(0 <= whole(i) < n for i, n in zip(position, leaf.shape, strict=True)):
            raise IndexError(
                f"{leaf.path!r}: expected a position in shape {leaf.shape}, got {tuple(position)}; fix: count from 0"
            )
        return leaf.index + int(np.ravel_multi_index(tuple(position), leaf.shape or (1,)) if position else 0)

    def leaf(self, path: Any) -> Leaf:
        """The row of a path (a string, or a tuple of keys). Raises `KeyError` with the paths that come near."""
        name = as_path(path)
        try:
            return self.by_path[name]
        except KeyError:
            raise KeyError(self.unknown(name)) from None

    def unknown(self, path: str) -> str:
        """The message of the error for a path that is not that of a leaf, with paths that come near."""
        some = list(self.by_path)[:1000]
        near = difflib.get_close_matches(path, some, n=3) or some[:3]
        below = [other for other in self.by_path if other.startswith(f"{path}/")]
        if below:
            return f"expected the path of a leaf, got the node {path!r}; fix: name a leaf below it, like {below[0]!r}"
        return f"expected a path of the layout, got {path!r}; fix: pass one of {len(self.leaves)} paths, like {near}"

    def unflatten(self, values: Iterable[Any], *, riders: bool = True) -> Any:
        """The tree with `values`, one for each row of `leaves`, and with what rides along (or None). No copy.

        Raises `ValueError` unless there is one value for each row, `TypeError` with the path of a node whose
        constructor does not accept them.
        """
        values = list(values)
        if len(values) != len(self.leaves):
            raise ValueError(
                f"expected {len(self.leaves)} values, one for each row, got {len(values)}; "
                "fix: pass one value for each entry of layout.leaves, in that order"
            )
        aside = {i: rider if riders else None for i, rider in self.riders}
        return unflatten(
            self.treedef,
            self._by_position(values, aside),
            lambda: self._by_position([leaf.key_path for leaf in self.leaves], dict.fromkeys(aside)),
        )

    def _by_position(self, values: Iterable[Any], riders: Mapping[int, Any]) -> list[Any]:
        rows = iter(values)
        return [riders[i] if i in riders else next(rows) for i in range(len(riders) + len(self.leaves))]

    def __subtree__(self, path: str) -> Any:
        """Raises `TypeError`: a layout has no arrays."""
        raise TypeError(
            f"{path and f'{path!r}: '}expected arrays or shapes, got a Layout, which has none; "
            "fix: pass store.tree, or add the layout under a path of its own with replan(add={path: layout})"
        )

    def check(self, tree: Any, casting: Any = "no") -> None:
        """Raise `StructureError` with every leaf in which `tree` differs from this layout.

        `casting` is NumPy's word for which dtypes may stand in for a leaf's own: 'no', 'same_kind', …
        """
        self.check_leaves(by_path(tree).items(), casting)

    def check_leaves(self, leaves: Iterable[tuple[str, Any]], casting: Any = "no") -> None:
        """`check` for (path, leaf) pairs."""
        got = {path: spec for path, value in leaves if (spec := spec_of(value, path)) is not None}
        differences = [
            Difference(path, str(leaf.spec), "nothing", "add this leaf")
            for path, leaf in self.by_path.items()
            if path not in got
        ]
        differences += filter(None, (self.difference(path, spec, casting) for path, spec in got.items()))
        if differences:
            raise StructureError(differences)

    def difference(self, path: str, spec: Spec, casting: Any = "no", before: tuple[int, ...] = ()) -> Difference | None:
        """The difference between a leaf and the row at `path`, or None; `before` are sizes of axes before the row's."""
        leaf = self.by_path.get(path)
        if leaf is None:
            return Difference(path, "nothing", str(spec), "remove this leaf, or rename it to a path of the layout")
        expected = Spec(before + leaf.shape, leaf.dtype)
        if spec.shape != expected.shape:
            return Difference(path, str(expected), str(spec), "give it the expected shape")
        if not np.can_cast(spec.dtype, leaf.dtype, casting):
            return Difference(path, str(expected), str(spec), f"convert it with .astype({leaf.dtype.name!r})")
        return None

    def __reduce__(self) -> Any:
        """Pickles where the tree's own nodes and what rides along do."""
        return _unpickled, (self.unflatten(stand_ins(self.leaves)), self.leaves, self.align, self.riders)

    def __eq__(self, other: object) -> bool:
        """Whether both tables are the same."""
        return self is other or (isinstance(other, Layout) and self.digest == other.digest)

    def __hash__(self) -> int:
        """A hash that agrees with equality."""
        return hash(self.digest)

    @property
    def summary(self) -> str:
        """How many leaves, parameters and bytes, in words."""
        return (
            f"{count(len(self.leaves), 'leaf', 'leaves')}, {count(self.size, 'parameter')}, "
            f"{count(self.nbytes, 'byte')} ({self.padding:,} of padding, align={self.align})"
        )

    def __repr__(self) -> str:
        """The leaves with their places."""
        return f"Layout: {self.summary}\n{describe(self.leaves, lambda leaf: leaf.offset)}"

    def _repr_html_(self) -> str:
        """The memory map, in a notebook."""
        return memory_map(f"Layout: {self.summary}", self.leaves, self.nbytes)


def _unpickled(tree: Any, leaves: tuple[Leaf, ...], align: int, riders: tuple[tuple[int, Any], ...]) -> Layout:
    return Layout(leaves, align, flatten(tree)[1], riders)
