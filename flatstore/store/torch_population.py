"""Populations on a device of torch: a buffer of stacked leaves, and what makes stores and populations there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import jax

from flatstore.checks import whole
from flatstore.layout import Layout, Leaf
from flatstore.store.jax_population import JaxPopulation
from flatstore.store.jax_population import on_device as on_device_of_jax
from flatstore.store.jax_store import JaxStore
from flatstore.store.lent_trees import LentTree
from flatstore.store.moves import Breeding
from flatstore.store.placement import members_at_once
from flatstore.store.torch_store import OnTorch, TorchStore
from flatstore.store.torch_streams import after_verbs
from flatstore.store.torch_tensors import check_device

_jax: Any = jax


class TorchPopulation(OnTorch):
    """Many models on a device of torch, stacked leaf by leaf: `Population.from_tree(tree, n, device="cuda")`."""

    __slots__ = ()

    order: ClassVar[str] = "leaf"
    """The members' copies of a leaf lie side by side."""

    breeding_on_card: ClassVar[Breeding]
    """What `ga.step` does on a card; set by the room that knows it."""

    @property
    def breeding(self) -> Breeding | None:
        """What `ga.step` does with it; None in host memory, where the host's loops go over its bytes."""
        return None if self.device.type == "cpu" else self.breeding_on_card

    @property
    def flat(self) -> Any:
        """Raises `ValueError`: the members are stacked leaf by leaf."""
        raise ValueError(
            f"expected one model, got {self.size} members, stacked leaf by leaf; fix: use pop.to_vector(), or "
            "pop[i].copy().flat, which copy"
        )

    def __len__(self) -> int:
        """The number of members."""
        return self.size or 0

    def __getitem__(self, key: Any) -> Any:
        """A member (int), or a leaf of all members (path): views."""
        if isinstance(key, (str, tuple)):
            return super().__getitem__(key)
        if not isinstance(i := whole(key), int):
            raise TypeError(
                f"expected a member's number or a path, got {type(key).__name__}; fix: use pop[0] or pop[path]"
            )
        size = len(self)
        if not -size <= i < size:
            raise IndexError(f"expected a member in 0 .. {size - 1}, got {i}; fix: index below len(pop)")
        leaves: dict[str, Any] = self.homes
        of_member = {
            leaf.path: leaves[leaf.path][i % size] if leaf.trainable else leaves[leaf.path]
            for leaf in self.layout.homes
        }
        member = TorchStore.over(self.layout, of_member, memory=self.memory)
        member.part_of = self, i % size
        return member

    def chunks(self, at_most: int | None = None) -> Iterator[Chunk]:
        """Consecutive members, at most so many, to be lent and evaluated: views.

        None: as many as a population on the host has in a chunk. Raises `ValueError` unless `at_most` is 1 or more.
        """
        size = len(self)
        step = members_at_once(self.layout, size, at_most)
        return (Chunk(self, start, min(start + step, size)) for start in range(0, size, step))

    def members(self) -> Iterator[TorchStore]:
        """The members, as views."""
        return (self[i] for i in range(len(self)))

    @property
    def axes(self) -> Any:
        """The tree of `in_dims` for `torch.vmap`: 0 where a leaf has the axis of the members, None where it has not."""
        return self.layout.unflatten([0 if leaf.trainable else None for leaf in self.layout.leaves], riders=False)


class Chunk:
    """Some members of a population, to be lent: views."""

    def __init__(self, pop: TorchPopulation, start: int, stop: int) -> None:
        self._pop, self._start = pop, start
        self.size: int = stop - start

    def lend(self) -> LentTree:
        """A context that gives the tree of these members."""
        return LentTree(self._pop.memory, self._tree)

    def _tree(self) -> Any:
        pop, some = self._pop, slice(self._start, self._start + self.size)
        with after_verbs(pop.device):
            homes = {leaf.path: pop[leaf.path][some] if leaf.trainable else pop[leaf.path] for leaf in pop.layout.homes}
        return pop.layout.unflatten([homes[leaf.tied or leaf.path] for leaf in pop.layout.leaves])


def on_device(layout: Layout, tree: Any, device: Any, size: int | None = None) -> Any:
    """A store, or a population of so many copies, of a tree on a device of JAX or torch: copies leaf by leaf."""
    return (_on_torch if _is_of_torch(device) else on_device_of_jax)(layout, tree, device, size)


def zeros_on_device(layout: Layout, device: Any, size: int | None = None) -> Any:
    """A store of zeros on a device of JAX or torch, or a population of so many members."""
    kinds = (TorchStore, TorchPopulation) if _is_of_torch(device) else (JaxStore, JaxPopulation)
    return kinds[size is not None].zeros(layout, device, size)


def _is_of_torch(device: Any) -> bool:
    """Whether a device is one of torch. Raises `TypeError` or `ValueError` for one that is not there."""
    if isinstance(device, str) or type(device).__module__ == "torch":
        check_device(device)
        return True
    if not isinstance(device, _jax.Device):
        raise TypeError(
            f"expected a device of JAX or torch, got {device!r}; fix: pass one, such as jax.devices()[0] or 'cuda'"
        )
    return False


def _on_torch(layout: Layout, tree: Any, device: Any, size: int | None = None) -> Any:
    if size is None:
        store = TorchStore.zeros(layout, device)
        store.assign(tree)
        return store
    pop = TorchPopulation.zeros(layout, device, size)
    model = TorchStore.over(layout, {leaf.path: _one(pop, leaf) for leaf in layout.homes}, memory=pop.memory)
    model.assign(tree)
    for leaf in layout.homes:
        if leaf.trainable:
            pop[leaf.path][1:] = pop[leaf.path][0]
    return pop


def _one(pop: TorchPopulation, leaf: Leaf) -> Any:
    return pop[leaf.path][0] if leaf.trainable else pop[leaf.path]
