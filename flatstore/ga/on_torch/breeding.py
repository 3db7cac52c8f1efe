"""`ga.step` of a population of torch on a card: kernels in Triton, a block of genes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flatstore.evaluation import as_fitness, refuse_all_nan
from flatstore.extras import require
from flatstore.ga.breeding import check_elite, check_operators, parents_of
from flatstore.ga.generation import Operators
from flatstore.ga.on_torch.operators import Crossing, LeafChange, change_of, crossing_of
from flatstore.kernels.cpu import STORAGE, refuse_other_dtypes
from flatstore.layout import Array, Leaf
from flatstore.store import TorchPopulation

TILE = 1024
"""Genes of a child that a program makes."""

SCRATCH = 32 << 20
"""Bytes of the parents' genes of a block, or 1 % of a population if that is more."""

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
                launches = [launch for leaf, change in changes for launch in generation.launches(leaf, change)]
                for launch in launches:
                    launch()
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

    def launches(self, leaf: Leaf, change: LeafChange) -> Iterator[Callable[[], None]]:
        """What replaces the genes of a leaf, block by block. All that it needs is there before it is called."""
        pop, crossing = self._pop, self._crossing
        members: Any = pop.homes[leaf.path].view(len(pop), leaf.size)
        real, itemsize, rows = STORAGE[leaf.dtype.name][1], leaf.dtype.itemsize, len(self._parents)
        width = min(leaf.size, max(1, self._room // (rows * itemsize)))
        if TILE <= width < leaf.size:
            width = width // TILE * TILE
        block = self._scratch[: rows * width * itemsize].view(members.dtype)
        _, places = self._table(("places", real), crossing.places.astype(real))
        _, table = self._table((change.name, real), change.table)
        thresholds, _ = self._table(("thresholds", change.name), change.thresholds)
        settings = self._on_card(np.array([change.scale, change.low, change.high], np.float64))
        addresses = [self._on_card(np.array([x.data_ptr()])) for x in (block, members)]
        of_mother = self._on_card(crossing.of_mother(leaf))
        constants = {
            "cross": crossing.way(leaf),
            "points": crossing.cuts.shape[1],
            "mutate": change.way,
            "kind": change.kind,
            "width": change.width,
            "outside": change.outside,
            "dtype": self._kinds[leaf.dtype.name],
        }

        def replace(begin: int, end: int, tiles: int, numbers: Any) -> None:
            scratch = block[: rows * (end - begin)].view(rows, end - begin)
            self._torch.index_select(members[:, begin:end], 0, self._parents, out=scratch)
            of_block = *addresses[:1], end - begin, addresses[1], numbers, settings
            tables = of_mother, self._cuts, places, table, thresholds
            for since in range(0, self._children, CHILDREN):
                grid = tiles, min(CHILDREN, self._children - since)
                given = *of_block, *self._family, self._keys, *tables, since
                self._kernel[grid](*given, **constants, tile=TILE, enable_fp_fusion=False)

        for begin in range(0, leaf.size, width):
            end = min(begin + width, leaf.size)
            first, last = leaf.index + begin, leaf.index + end
            numbers = np.array([first, last, first // TILE * TILE, leaf.index, leaf.size])
            tiles = -(-last // TILE) - first // TILE
            yield partial(replace, begin, end, tiles, self._on_card(numbers))


def _trained(pop: Any) -> list[Leaf]:
    return [leaf for leaf in pop.layout.homes if leaf.trainable and leaf.size]
