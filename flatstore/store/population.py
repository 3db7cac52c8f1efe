"""Population: many models in one buffer.

    >>> layout = Layout.from_tree({"bias": np.zeros(2, "f4"), "kernel": np.zeros((2, 2), "f4")})
    >>> pop = Population.zeros(layout, 3)
    >>> pop[1]["bias"][:] = 7
    >>> pop["bias"]
    array([[0., 0.],
           [7., 7.],
           [0., 0.]], dtype=float32)

The order decides who can read it without a copy. Both are one contiguous buffer:

```
order="leaf"     | bias of 0, 1, 2 | kernel of 0, 1, 2 |     dense stacked leaves: JAX takes them, vmap runs in place
order="member"   | bias 0, kernel 0 | bias 1, kernel 1 | ... `matrix` is exactly (P, N): NumPy, torch, optimisers
```

Leaves that do not train are held once, after the rest, and shared by all members.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, overload

import numpy as np

from flatstore.checks import whole
from flatstore.layout import Array, Dims, Layout, Tied, Trainable
from flatstore.memory import JAX_ALIGN, Memory, reading
from flatstore.store.assigning import checked_leaves
from flatstore.store.in_files import FilePath, handed_in
from flatstore.store.jax_population import JaxPopulation
from flatstore.store.placement import (
    aligned_members,
    members_at_once,
    placement_in_file,
    placement_of_population,
)
from flatstore.store.store import Store
from flatstore.store.torch_population import TorchPopulation, on_device
from flatstore.store.verbs import Verbs, memories_in

PopulationOrder = Literal["leaf", "member"]


class Population(Verbs):
    """One buffer and one layout, `size` times.

    `pop[path]` is a leaf of all members, shape (size, *leaf), or of the leaf alone where it does not train;
    `pop[i]` is member i, a `Store`; `pop[a:b]` a population. All are views.
    """

    __slots__ = ()

    @classmethod
    def zeros(cls, layout: Layout, size: int, *, order: PopulationOrder = "leaf") -> Self:
        """`size` members of zeros in new memory.

        Raises `MemoryError`; `TypeError` unless `layout` is a `Layout`; `ValueError` unless it has trainable leaves (of
        one dtype for order='member') and `size` is positive.
        """
        placement = placement_of_population(layout, size, order)
        return cls._mark_whole(cls._over(layout, Memory.heap(placement.nbytes), placement, 0, size))

    @overload
    @classmethod
    def from_tree(
        cls,
        tree: Any,
        size: int,
        *,
        order: PopulationOrder = "leaf",
        align: int = 64,
        trainable: Trainable = None,
        dims: Dims = None,
        tied: Tied = None,
    ) -> Self: ...
    @overload
    @classmethod
    def from_tree(
        cls, tree: Any, size: int, *, trainable: Trainable = None, dims: Dims = None, tied: Tied = None, device: Any
    ) -> JaxPopulation: ...
    @classmethod
    def from_tree(
        cls,
        tree: Any,
        size: int,
        *,
        order: PopulationOrder = "leaf",
        align: int = 64,
        trainable: Trainable = None,
        dims: Dims = None,
        tied: Tied = None,
        device: Any = None,
    ) -> Any:
        """`size` copies of one model, a pytree of arrays. The keywords are those of `Layout.from_tree`.

        With a `device` of JAX it is a `JaxPopulation`: stacked `jax.Array`s there, one per leaf.
        """
        layout = Layout.from_tree(tree, align=align, trainable=trainable, dims=dims, tied=tied)
        if device is not None:
            if order != "leaf":
                raise ValueError(f"expected order='leaf' on a device, got {order!r}; fix: leave order= out")
            return on_device(layout, tree, device, size)
        pop = cls.zeros(layout, size, order=order)
        with reading(*memories_in(tree)):
            for leaf, array in checked_leaves(layout, tree):
                pop.leaf_view(leaf.path)[...] = array
        return pop

    @classmethod
    def wrap(cls, buffer: Any, layout: Layout, size: int, *, order: PopulationOrder = "leaf") -> Self:
        """A population over memory that you own: views. Accepts the same memory and raises the same as `Store.wrap`."""
        placement = placement_of_population(layout, size, order)
        return cls._mark_whole(cls._wrap(buffer, layout, placement, JAX_ALIGN if order == "leaf" else 1, size))

    @classmethod
    def like(cls, store: Store, size: int) -> Population:
        """`size` members of zeros with the layout and the indices of a store; for this package's own modules."""
        pop = Population.zeros(store.layout, size)
        pop._placement = pop._placement._replace(parts=store.parts)
        return pop

    @classmethod
    def in_file(cls, memory: Memory, layout: Layout, starts: Mapping[str, int], size: int) -> Self:
        """A population over the bytes of a file, in which its leaves start at `starts`; for this package's modules."""
        return cls._mark_whole(cls._over(layout, memory, placement_in_file(layout, starts, size), 0, size))

    @staticmethod
    def create(path: FilePath, layout: Layout, size: int) -> Population:
        """`size` members of zeros over the bytes of a new safetensors file, which may be larger than memory: views.

        The room on the disk is taken. `ga.step` and `ga.evolve` work in the file as they do in memory, with the same
        bits: a generation reads each byte once and writes it once, in pieces: at most 64 MiB at a time for each thread
        and as much again ahead (a page of each member, if that is more). The system writes back as it sees fit. Beside
        the file, in `<path>.generation`, lies a log of about the size of the scratch memory.

        Raises `FileExistsError` for a file that is there, `OSError` for what the disk refuses, `StructureError` for
        leaves that the format cannot hold, and the errors of `zeros`.
        """
        return handed_in[0].create(path, layout, size)

    @staticmethod
    def open(path: FilePath, *, operators: Mapping[str, Any] | None = None, after_restart: bool = False) -> Population:
        """A population over the bytes of its file, to be read and written: views.

        If a process was killed in the middle of a generation there, it is finished, to the bit.

        Args:
            path: what `create` or `fs.save` has written.
            operators: the `mutate=`, `crossover=` or `bounds=` of that generation that are functions of your own: the
                log has those of this package.
            after_restart: whether to finish it although the machine was started again. That is right if it was shut
                down in order. After a power cut the file lacks what the system had not written yet.

        Raises `ValueError` for a file that holds no population, for a log that is damaged or of another file, and for
        operators and a restart as above; `BlockingIOError` if another process is at work on it.
        """
        return handed_in[0].open(path, operators, after_restart)

    @classmethod
    def in_segment(cls, memory: Memory, layout: Layout, size: int, order: str) -> Self:
        """A population over the bytes of a segment; for this package's own modules."""
        return cls._in_segment(memory, layout, placement_of_population(layout, size, order), size)

    @classmethod
    def _mark_whole(cls, pop: Self) -> Self:
        pop._whole = True
        return pop

    @property
    def size(self) -> int:
        """The number of members."""
        return self._leading[0]

    @property
    def order(self) -> str:
        """How the members lie in memory: 'leaf', the copies of a leaf side by side, or 'member', each as a row."""
        return self._placement.order

    def __len__(self) -> int:
        """The number of members."""
        return self._leading[0]

    def __iter__(self) -> Iterator[Store]:
        """The members, as views."""
        return (self[i] for i in range(self.size))

    @overload
    def __getitem__(self, key: int) -> Store: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    @overload
    def __getitem__(self, key: str | tuple[Any, ...]) -> Array: ...
    def __getitem__(self, key: Any) -> Any:
        """A member (int), a population (slice with step 1), or a leaf of all members (path): views."""
        if isinstance(key, (str, tuple)):
            return self.leaf_view(key)
        size = self._count or 0
        if isinstance(key, slice):
            start, stop, step = key.indices(size)
            if step != 1 or stop <= start:
                raise IndexError(
                    f"expected a slice of at least one member with step 1, got {key} of {size} members; "
                    "fix: take the members one by one"
                )
            return self._over(self.layout, self._memory, self._placement, self._first + start, stop - start)
        if not isinstance(i := whole(key), int):
            raise TypeError(
                f"expected a member's number, a slice or a path, got {type(key).__name__}; "
                "fix: use pop[0], pop[0:2] or pop[path]"
            )
        if not -size <= i < size:
            raise IndexError(f"expected a member in 0 .. {size - 1}, got {i}; fix: index below len(pop)")
        return Store._over(self.layout, self._memory, self._placement, self._first + i % size)  # pyright: ignore[reportPrivateUsage]

    def chunks(self, at_most: int | None = None) -> Iterator[Self]:
        """Iterate over consecutive slices of at most `at_most` members that JAX can take: views.

        None: slices of about 32 MiB, or of 1 % of the population if that is more. What is computed from one of them,
        such as the copies that XLA makes of it, is then small beside the population. They depend on the layout and on
        the number of members, on nothing else.

        In order='leaf' each starts where every leaf is aligned: at a multiple of up to 16 members for float32.
        Raises `ValueError` if `at_most` is less than that multiple.
        """
        stride = aligned_members(self.layout) if self.order in ("leaf", "file") else 1
        step = members_at_once(self.layout, self.size, at_most, stride)
        if self._first % stride and (step < self.size or at_most is not None):
            raise ValueError(
                f"expected a population that starts at a multiple of {stride} members, got a slice from {self._first}; "
                "fix: take the chunks of the whole population, or slice it there"
            )
        return (self[start : start + step] for start in range(0, self.size, step))

    @property
    def axes(self) -> Any:
        """The tree of `in_axes` for `jax.vmap`: 0 where a leaf has the axis of the members, None where it is shared.

        Raises `TypeError` with the path of a node whose constructor does not accept these. If all leaves of such a node
        train, vmap takes 0 for the whole of it.
        """
        return self.layout.unflatten([0 if leaf.trainable else None for leaf in self.layout.leaves], riders=False)

    @property
    def matrix(self) -> Array:
        """All trainable parameters, shape (members, parameters), a row per member, packed: a view.

        Raises `ValueError` in order='leaf', which has none.
        """
        if self.order != "member":
            raise ValueError(
                "expected a population in order='member', got order='leaf', whose members do not lie in rows; "
                "fix: use pop.copy(order='member').matrix or pop.to_vector(), which copy"
            )
        homes = sorted(self.layout.homes, key=lambda leaf: (self.start_of(leaf), leaf.size))
        leaves = [leaf for leaf in homes if leaf.trainable]
        starts = [self.start_of(leaf) for leaf in leaves]
        if any(a + leaf.nbytes != b for a, b, leaf in zip(starts, starts[1:], leaves, strict=False)) or not leaves:
            raise ValueError(
                "expected trainable leaves that lie together, got a node without them (none, or some tied to leaves "
                "outside of it); fix: use the whole population's matrix, or to_vector(), which copies"
            )
        dtype, step = leaves[0].dtype, self._placement.places[leaves[0].path].step
        shape, strides = (self.size, sum(leaf.size for leaf in leaves)), (step or 0, dtype.itemsize)
        return self._combined_view("matrix", lambda: np.ndarray(shape, dtype, self._memory.bytes, starts[0], strides))

    def copy(self, *, order: PopulationOrder | None = None) -> Population:
        """A copy: a population with the same members in memory of its own, in the same order or another.

        Raises `LentError` while another thread writes.
        """
        return self._copy_to(Population.zeros(self.layout, self.size, order=order or self._placement.order))  # pyright: ignore[reportArgumentType]

    def share(self, name: str | None = None) -> Population:
        """A copy in memory that other processes of this user attach to; see `Store.share`."""
        placement = placement_of_population(self.layout, self.size, self.order)
        return self._copy_to_segment(name, self.size, placement)

    def __repr__(self) -> str:
        """The leaves with their places."""
        return self._describe(f"Population: {self.size:,} members, order={self.order!r}, of {self.layout.summary}")


AnyPopulation = Population | JaxPopulation | TorchPopulation
"""Many models on the host, or on a device."""
