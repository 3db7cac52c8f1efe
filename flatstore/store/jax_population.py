"""Populations on a device of JAX: the members stacked leaf by leaf, in `jax.Array`s that verbs donate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from flatstore.checks import whole
from flatstore.layout import Layout
from flatstore.store.assigning import checked_leaves
from flatstore.store.jax_store import JaxStore, OnDevice
from flatstore.store.lent_trees import LentTree
from flatstore.store.moves import Breeding
from flatstore.store.placement import members_at_once

_lax: Any = jax.lax


class JaxPopulation(OnDevice):
    """Many models on a device of JAX, stacked leaf by leaf: what `Population.from_tree(tree, n, device=...)` makes."""

    __slots__ = ()

    order: ClassVar[str] = "leaf"
    """The members' copies of a leaf lie side by side."""

    breeding: ClassVar[Breeding]
    """What `ga.step` does; set by the room that knows it."""

    def __len__(self) -> int:
        """The number of members."""
        return self.size or 0

    def chunks(self, at_most: int | None = None) -> Iterator[Chunk]:
        """Consecutive members, at most so many, to be lent and evaluated: a copy of them, unless they are all.

        None: as many as a population on the host has in a chunk. Raises `ValueError` unless `at_most` is 1 or more.
        """
        size = len(self)
        step = members_at_once(self.layout, size, at_most)
        return (Chunk(self, start, min(start + step, size)) for start in range(0, size, step))

    @property
    def axes(self) -> Any:
        """The tree of `in_axes` for `jax.vmap`: 0 where a leaf has the axis of the members, None where it is shared."""
        return self.layout.unflatten([0 if leaf.trainable else None for leaf in self.layout.leaves], riders=False)


class Chunk:
    """Some members of a population, to be lent: a copy of them, unless they are all."""

    def __init__(self, pop: JaxPopulation, start: int, stop: int) -> None:
        self._pop, self._start = pop, start
        self.size = stop - start

    def lend(self) -> LentTree:
        """A context that gives the tree of these members."""
        return LentTree(self._pop.memory, self._tree)

    def _tree(self) -> Any:
        pop = self._pop
        if self.size == pop.size:
            return pop.tree
        homes = {
            leaf.path: _lax.dynamic_slice_in_dim(pop[leaf.path], self._start, self.size)
            if leaf.trainable
            else pop[leaf.path]
            for leaf in pop.layout.homes
        }
        return pop.layout.unflatten([homes[leaf.tied or leaf.path] for leaf in pop.layout.leaves])


def on_device(layout: Layout, tree: Any, device: Any, size: int | None = None) -> Any:
    """A store, or a population of so many copies, of a tree on a device: copies leaf by leaf."""
    if size is None:
        store = JaxStore.zeros(layout, device)
        store.assign(tree)
        return store
    if not whole(size) >= 1:
        raise ValueError(f"expected at least one member, got size {size!r}; fix: pass a size of 1 or more")
    pop = JaxPopulation.zeros(layout, device, size)
    for leaf, array in checked_leaves(layout, tree):
        pop[leaf.path] = np.broadcast_to(array, (size, *leaf.shape)) if leaf.trainable else array
    return pop
