"""The verbs that a store and a population have in common: assign, lend, alias, verify, to_vector."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import setitem
from typing import Any, Self

import jax
import numpy as np

from flatstore.checks import real
from flatstore.layout import Array, Layout, Leaf
from flatstore.memory import (
    MOVED,
    Lend,
    Memory,
    addresses_of,
    at_once,
    check_library,
    import_views,
    memories_of,
    reading,
    using,
)
from flatstore.store.assigning import Pairs, cast, checked_leaf, checked_leaves, is_pairs, same_bits
from flatstore.store.placement import Placement
from flatstore.store.sharing import Shared, text_of
from flatstore.store.verifying import differences_from_views, is_same_view
from flatstore.store.views import Views
from flatstore.threads import noted
from flatstore.trees import Difference, Glob, StructureError, matcher, refuse_idle_glob


class Verbs(Views):
    """What can be done with a store and with a population alike."""

    __slots__ = ()

    def assign(self, values: Any) -> None:
        """Copy `values` in: a tree, a packed vector, a mapping {path: array}, or an iterable of (path, array).

        A tree, vector or mapping must have every leaf; an iterable may have some, which are written one by one, so
        that a model can be made leaf by leaf without a second copy of it. Dtypes may differ within a kind (float64
        into float32). Everything is checked before anything is written; in an iterable, leaf by leaf.

        Raises `StructureError` with every leaf that differs, `LentError` while the buffer is lent.
        """
        if isinstance(values, Views):
            values = {path: values.leaf_view(path) for path in values.layout.by_path}
        if is_pairs(self.layout, values):
            self._assign_each(values)
            return
        with self._written_from(values):
            self._write(checked_leaves(self.layout, values, self._leading))

    def _assign_each(self, values: Any) -> None:
        written: list[str] = []

        def state(error: BaseException) -> Iterator[str]:
            yield f"written before this error: {', '.join(map(repr, written)) or 'nothing'}"

        with noted(state), using(writes=[self._memory]):
            for path, value in values:
                with reading(*memories_in(value)):
                    self._write([checked_leaf(self.layout, path, value, self._leading)], written)

    def __setitem__(self, path: Any, value: Any) -> None:
        """Copy a value of the leaf's shape into the leaf. To broadcast, write through its view: `x[path][...] = 0`."""
        with self._written_from(value):
            self._write([checked_leaf(self.layout, path, value, self._leading)])

    def _written_from(self, values: Any) -> using:
        """A context in which this memory is written, and those of the values are read."""
        return using(reads=memories_in(values), writes=[self._memory])

    def _write(self, pairs: Pairs, written: list[str] | None = None) -> None:
        """Write all of the pairs or nothing, as the only writer; append their paths to `written`."""
        steps: list[Callable[[], object]] = []
        differences: list[Difference] = []
        for leaf, array in pairs:
            view: Any = self._new_view(leaf)
            if self._is_shared(leaf):
                if not same_bits(cast(array, leaf.dtype), view):
                    fix = "write it through the whole population, or make it trainable"
                    differences.append(Difference(leaf.path, "the value that all members share", "another", fix))
                continue
            if self._memory.may_show(array) and not is_same_view(array, view):
                array = array.copy()  # it lies in this memory, and could be overwritten before its turn
            steps.append(partial(setitem, view, ..., array))
        if differences:
            raise StructureError(differences)
        if written is not None:
            steps += [partial(written.append, leaf.path) for leaf, _ in pairs]
        with np.errstate(all="ignore"):  # a warning would be a call in between
            at_once(steps)

    def clear(self) -> None:
        """Make all bytes zero; for this package's own modules, of memory that nobody else has."""
        self._memory.bytes[:] = 0

    def lend(self, library: str = "jax", *, only: Glob | None = None, patience: float = 10.0) -> Lend:
        """A context manager that gives the tree with `jax.Array` leaves over the same bytes: views.

        Meanwhile writes through the store raise, and NumPy views of what is lent are read-only. On exit the arrays are
        deleted, and the exit waits until the last computation that reads them has finished. If something still holds
        them after `patience` seconds (a NumPy or torch view taken inside), it raises `LentError` with the leaves'
        names, and the store stays lent until they are gone.

        Args:
            library: 'jax'.
            only: globs of the leaves to lend (a tied leaf brings its home), such as those that JAX can view; the others
                are None in the tree.
            patience: how long the exit waits, in seconds.

        Entering it raises `BufferError` with every leaf that JAX could not take without a copy.
        """
        check_library(library)
        if not real(patience) >= 0:
            raise ValueError(f"expected patience >= 0 in seconds, got {patience!r}; fix: pass a number such as 10.0")
        rows = self._chosen(only)
        return Lend(
            self._memory,
            lambda: {leaf.path: self._new_view(leaf) for leaf in rows if leaf.tied is None},
            self._tree_of,
            patience,
        )

    def alias(self, library: str = "jax", *, only: Glob | None = None) -> Any:
        """The tree with `jax.Array` leaves over the same bytes, without the checks of `lend`: views.

        They show later writes, which you must order yourself: a computation that reads during a write may see a part
        of it, and JAX may go on using a value that it has read before. The same object each time.
        """
        check_library(library)
        key = None if only is None else tuple([only] if isinstance(only, str) else only)
        cached = self._alias
        if cached is None or cached[0] != key or any(array.is_deleted() for array in cached[1]):
            homes = [leaf for leaf in self._chosen(only) if leaf.tied is None]
            views = {leaf.path: self._new_view(leaf) for leaf in homes}
            _, arrays = import_views(views, addresses_of(views))
            cached = self._alias = (key, list(arrays.values()), self._tree_of(arrays))
        return cached[2]

    def reading(self) -> using:
        """A context in which no verb writes the memory, here or in another process: for those who read NumPy views.

        A lend, and verbs that read, are such contexts by themselves. Raises `LentError` while it is written.
        """
        return reading(self._memory)

    def _chosen(self, only: Glob | None) -> list[Leaf]:
        if only is None:
            return list(self.layout.leaves)
        matches = matcher(only)
        rows = [leaf for leaf in self.layout.leaves if matches(leaf.path)]
        if not rows:
            refuse_idle_glob("only", only, self.layout.by_path)
        chosen = {leaf.path for leaf in rows} | {leaf.tied or leaf.path for leaf in rows}
        return [leaf for leaf in self.layout.leaves if leaf.path in chosen]

    def _tree_of(self, values: Mapping[str, Any]) -> Any:
        return self.layout.unflatten([values.get(leaf.tied or leaf.path) for leaf in self.layout.leaves])

    def verify(self) -> None:
        """Check that every leaf of `tree` still lives in the buffer.

        Raises `StructureError` with each leaf that was replaced (`store.tree["w"] = …`), removed or added; and, of a
        store over memory that others own (`adopt(module, move=False)`), with each that lies elsewhere by now.
        """
        if moved := self._memory.moved():
            raise StructureError(moved, MOVED)
        trees = [handed.tree for handed in (self._plain, self._guarded) if handed and handed.tree is not None]
        differences = [
            difference for tree in trees for difference in differences_from_views(tree, self.layout, self._new_view)
        ]
        if differences:
            raise StructureError(differences, "of the tree not in the buffer any more")

    def to_vector(self) -> Array:
        """A packed copy of the parameters in index order; a population has a row per member.

        Shape (layout.size,) or (members, layout.size). Leaves of several dtypes are promoted as NumPy does. Raises
        `LentError` while another thread writes.
        """
        parts, dtype = self.cached("packed", self._packed)
        with reading(self._memory):
            return np.concatenate(parts, -1, dtype=dtype, casting="unsafe")

    def _packed(self) -> tuple[list[Array], np.dtype[Any]]:
        """Views of all homes, a row per member, in index order; and the dtype to which they are promoted."""
        homes, views = self.layout.homes, list[Array]()
        for leaf in homes:
            view = self._new_view(leaf)
            rows = view.reshape((*view.shape[: view.ndim - len(leaf.shape)], leaf.size))
            views.append(np.broadcast_to(rows, (*self._leading, leaf.size)))  # what all members share
        return views, _common_dtype({leaf.dtype for leaf in homes})

    @property
    def segment(self) -> str | None:
        """The name by which other processes `attach` to it; None if it is not shared, or only a part of what is."""
        return self._segment

    def _copy_to_segment(self, name: str | None, size: int | None, placement: Placement) -> Any:
        """A copy in a new segment."""
        text = text_of(Shared(self.layout, size, None if size is None else placement.order))
        placement = placement._replace(parts=self.parts)
        other = self._in_segment(Memory.shared(name, text, placement.nbytes), self.layout, placement, size)
        with using(writes=[other.memory]):
            return self._copy_to(other)

    @classmethod
    def _in_segment(cls, memory: Memory, layout: Layout, placement: Placement, size: int | None) -> Self:
        """Over the whole of a segment. Raises `ValueError` if that is of another size."""
        if memory.bytes.nbytes != placement.nbytes:
            raise ValueError(
                f"expected a segment of {placement.nbytes:,} bytes, got one of {memory.bytes.nbytes:,}; "
                "fix: share it again, with this flatstore"
            )
        made = cls._over(layout, memory, placement, 0, size)
        made._whole, made._segment = True, memory.segment_name
        return made

    def _copy_to(self, other: Any) -> Any:
        """Copy all leaves into another store or population of this layout, of the same size, and return it."""
        with reading(self._memory):
            for leaf in self.layout.homes:
                other.leaf_view(leaf.path)[...] = self._new_view(leaf)
        return other


def memories_in(values: Any) -> list[Memory]:
    """The memories that are read when the leaves of a tree are: those of its stores, and those that its arrays show."""
    if isinstance(values, np.ndarray):
        return memories_of([values])
    leaves: list[Any] = jax.tree.leaves(values)
    return [leaf.memory for leaf in leaves if isinstance(leaf, Views)] + memories_of(leaves)


def _common_dtype(dtypes: set[np.dtype[Any]]) -> np.dtype[Any]:
    try:
        return np.result_type(*dtypes)
    except TypeError as error:
        raise TypeError(
            f"expected dtypes that NumPy can promote, got {', '.join(sorted(d.name for d in dtypes))}; "
            "fix: read the leaves one by one"
        ) from error
