"""`ga.step` of a population of torch on a card: kernels in Triton, a block of genes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flatstore.evaluation import as_fitness, refuse_all_nan
from flatstore.extras import require
from flatstore.ga.breeding import check_elite, check_operators, parents_of
from flatstore.ga.generation import Operators
from flatstore.ga.on_torch.operators import Crossing, LeafChange, change_of, crossing_of
from flatstore.kernels.cpu import STORAGE, refuse_other_dtypes
from flatstore.kernels.triton import Planned
from flatstore.layout import Array, Leaf
from flatstore.store import TorchPopulation

TILE = 1024
"""Genes of a child that a program makes."""

SCRATCH = 32 << 20
"""Bytes of the parents' genes of a block, or 1 % of a population if that is more."""

WARPS = 2
"""Warps of a program."""

CHILDREN = 65535
"""Children that a launch makes: the second number of a program is no larger."""


class CardStep(NamedTuple):
    """A generation of a population on a card that is chosen, but not yet born."""

    pop: TorchPopulation
    operators: Operators
    slots: Array
    """The members that the children replace, ascending."""
    chosen: Array
    """The two parents of each child, shape (2, children)."""
    keys: Array
    """The seed of each child."""
    parents: Array
    """For each slot the two members that it comes from, shape (size, 2)."""
    kept: Array
    """Which slots keep their members, shape (size,), bool."""

    def run(self, then: Callable[[], object] = bool) -> None:
        """Write the children over the members that they replace, and call `then`: uninterrupted."""
        leaves = _trained(self.pop)
        _, mutate, bounds = self.operators
        changes = [(leaf, change_of(mutate, bounds, self.pop.layout, leaf)) for leaf in leaves]
        crossing = crossing_of(self.operators.crossover, self.pop.layout, self.keys)

        def replace() -> None:
            with require("torch", "torch").no_grad():
                generation = _Generation(self, crossing)
                blocks = [block for leaf, change in changes for block in generation.blocks(leaf, change)]
                for block in blocks:
                    block.replace()
            then()

        self.pop.write(replace)


class CardBreeding:
    """The breeding of a population of torch on a card."""

    def check(self, pop: Any, mutate: Any, crossover: Any, bounds: Any) -> None:
        """Raise unless operators suit the leaves of a population."""
        check_operators(mutate, max, crossover, bounds)
        refuse_other_dtypes(_trained(pop), "evolve")
        for leaf in _trained(pop):
            change_of(mutate, bounds, pop.layout, leaf)
        crossing_of(crossover, pop.layout, np.zeros(1, np.uint64))

    def plan(self, pop: Any, fitness: Any, **how: Any) -> CardStep:
        """Plan what `ga.step` does; it accepts the same arguments."""
        if how["left"] is not None:
            raise ValueError(
                f"left: expected None for a population on a device, which is never half made, got {how['left']!r}; "
                "fix: leave it out"
            )
        scores = as_fitness(fitness, pop.size)
        refuse_all_nan(scores)
        operators = Operators(how["crossover"], how["mutate"], how["bounds"])
        check_operators(how["mutate"], how["select"], how["crossover"], how["bounds"])
        check_elite(pop.size, how["elite"])
        self.check(pop, how["mutate"], how["crossover"], how["bounds"])
        slots, chosen, keys = parents_of(scores, how["seed"], how["select"], how["elite"])
        parents: Array = np.repeat(np.arange(len(scores))[:, None], 2, axis=1)
        parents[slots] = chosen.T
        kept = np.ones(len(scores), bool)
        kept[slots] = False
        return CardStep(pop, operators, slots, chosen, keys, parents, kept)


TorchPopulation.breeding_on_card = CardBreeding()


class _Generation:
    """What the leaves of a generation have in common: who begets whom, on the card, and scratch for their genes."""

    def __init__(self, step: CardStep, crossing: Crossing) -> None:
        self._torch = require("torch", "torch")
        self._kernel = require("flatstore.kernels.triton.generation", "triton").replace
        self._kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
        self._pop, self._crossing = step.pop, crossing
        parents, places = np.unique(step.chosen, return_inverse=True)
        places = places.reshape(2, -1)
        self._parents = self._on_card(parents.astype(np.int64))
        self._family = [self._on_card(x.astype(np.int64)) for x in (places[0], places[1], step.slots)]
        self._children = len(step.slots)
        words = np.stack([step.keys & np.uint64(0xFFFFFFFF), step.keys >> np.uint64(32)], 1).astype(np.int64)
        self._keys = self._on_card(words)
        self._cuts = self._on_card(crossing.cuts)
        self._tables: dict[Any, Any] = {}
        nbytes = sum(leaf.nbytes for leaf in _trained(step.pop)) * len(step.pop)
        self._room = max(SCRATCH, nbytes // 100) * 3 // 4
        self._scratch = self._torch.empty(min(self._room, nbytes), dtype=self._torch.uint8, device=self._pop.device)

    def _on_card(self, array: Array) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._pop.device)

    def _table(self, name: Any, array: Array) -> Any:
        """A table on the card, made once, and where it begins."""
        if name not in self._tables:
            values = self._on_card(array if array.size else np.zeros(1, array.dtype))
            self._tables[name] = values, self._on_card(np.array([values.data_ptr()]))
        return self._tables[name]

    def blocks(self, leaf: Leaf, change: LeafChange) -> Iterator[_Block]:
        """The blocks of the genes of a leaf. All that it takes to replace them is there, and compiled."""
        pop, crossing = self._pop, self._crossing
        members: Any = pop.homes[leaf.path].view(len(pop), leaf.size)
        real, itemsize, rows = STORAGE[leaf.dtype.name][1], leaf.dtype.itemsize, len(self._parents)
        width = min(leaf.size, max(1, self._room // (rows * itemsize)))
        if TILE <= width < leaf.size:
            width = width // TILE * TILE
        scratch = self._scratch[: rows * width * itemsize].view(members.dtype)
        _, places = self._table(("places", real), crossing.places.astype(real))
        _, table = self._table((change.name, real), change.table)
        thresholds, _ = self._table(("thresholds", change.name), change.thresholds)
        settings = self._on_card(np.array([change.scale, change.low, change.high], np.float64))
        address, of_mother = self._on_card(np.array([scratch.data_ptr()])), self._on_card(crossing.of_mother(leaf))
        tables = of_mother, self._cuts, places, table, thresholds
        constants = {
            "cross": crossing.way(leaf),
            "points": crossing.cuts.shape[1],
            "mutate": change.way,
            "kind": change.kind,
            "width": change.width,
            "outside": change.outside,
            "dtype": self._kinds[leaf.dtype.name],
            "tile": TILE,
            "num_warps": WARPS,
            "enable_fp_fusion": False,
        }

        blocks = [(begin, min(begin + width, leaf.size)) for begin in range(0, leaf.size, width)]
        ends = leaf.index + np.array(blocks)
        same = np.full((len(blocks), 3), (leaf.index, leaf.size, members.data_ptr()))
        all_numbers = self._on_card(np.column_stack([ends, ends[:, 0] // TILE * TILE, same]))
        for (begin, end), (first, last), numbers in zip(blocks, ends.tolist(), all_numbers, strict=True):
            tiles = -(-last // TILE) - first // TILE
            starts = first * itemsize, (end - begin) * itemsize, leaf.nbytes, scratch.data_ptr(), members.data_ptr()
            own = constants | {"aligned": not any(x % 16 for x in starts)}
            launches: list[Planned] = []
            for since in range(0, self._children, CHILDREN):
                grid = tiles, min(CHILDREN, self._children - since)
                given = address, numbers, settings, *self._family, self._keys, *tables, since
                launches.append(Planned(self._kernel, grid, given, own).compiled())
            copied = scratch[: rows * (end - begin)].view(rows, end - begin)
            yield _Block(members[:, begin:end], self._parents, copied, launches)


class _Block(NamedTuple):
    """Some genes of a leaf."""

    genes: Any
    """Those of all members: a view."""
    parents: Any
    """The members that become parents."""
    scratch: Any
    """Where their genes are while children are written over them."""
    launches: Sequence[Planned]

    def replace(self) -> None:
        """Write the children's genes."""
        require("torch", "torch").index_select(self.genes, 0, self.parents, out=self.scratch)
        for launch in self.launches:
            launch()


def _trained(pop: Any) -> list[Leaf]:
    return [leaf for leaf in pop.layout.homes if leaf.trainable and leaf.size]
