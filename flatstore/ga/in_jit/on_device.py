"""Generations of a population on a device: `stepped`, to which its leaves are donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flatstore.evaluation import as_fitness
from flatstore.ga.breeding import check_operators
from flatstore.ga.in_jit.parentage import Births, births
from flatstore.ga.in_jit.stepping import stepped
from flatstore.kernels.xla import jitted
from flatstore.layout import Array, Layout
from flatstore.store import JaxPopulation, Step
from flatstore.trees import by_path


class JaxBreeding:
    """The breeding of a `JaxPopulation`."""

    def check(self, pop: Any, mutate: Any, crossover: Any, bounds: Any) -> None:
        """Raise unless operators suit the leaves of a population."""
        born = births(pop.layout, np.zeros(pop.size), seed=0, crossover=crossover, elite=0)
        _generation(pop.layout, *map(_Named, (mutate, crossover, bounds))).eval_shape(pop.homes, born)

    def plan(self, pop: Any, fitness: Any, **how: Any) -> Step:
        """Plan what `ga.step` does."""
        if how["left"] is not None:
            raise ValueError(
                "left: expected None for a population on a device, which is never half made; fix: leave it out"
            )
        check_operators(how["mutate"], how["select"], how["crossover"], how["bounds"])
        scores = as_fitness(fitness, pop.size)
        names = ("seed", "select", "crossover", "elite")
        born = births(pop.layout, scores, **{name: how[name] for name in names})
        parents: Array = np.repeat(np.arange(len(scores))[:, None], 2, axis=1)
        parents[born.slots] = np.stack([born.mothers, born.fathers], 1)
        kept = np.ones(len(scores), bool)
        kept[born.slots] = False
        operators = tuple(_Named(how[name]) for name in ("mutate", "crossover", "bounds"))
        return _Planned(parents, kept, pop, _generation(pop.layout, *operators), born)


JaxPopulation.breeding = JaxBreeding()


class _Planned(NamedTuple):
    """A generation that is chosen, but not yet born."""

    parents: Array
    kept: Array
    pop: JaxPopulation
    generation: Any
    born: Births

    def run(self, then: Callable[[], object] = bool) -> None:
        """Write the children over the members that they replace, and call `then`: uninterrupted."""

        def replace() -> None:
            self.pop.replace(self.generation, self.born)
            then()

        self.pop.write(replace)


class _Named:
    """An operator as a key: by its value or, if that has no hash, by its identity."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator
        try:
            self.key: Any = operator, hash(operator)
        except TypeError:
            self.key = id(operator), 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.key == other.key

    def __hash__(self) -> int:
        return self.key[1]


@lru_cache(maxsize=16)
def _generation(layout: Layout, mutate: _Named, crossover: _Named, bounds: _Named) -> Any:
    how = {"mutate": mutate.operator, "crossover": crossover.operator, "bounds": bounds.operator}

    def generation(homes: Any, born: Any) -> Any:
        tree = layout.unflatten([homes[leaf.tied or leaf.path] for leaf in layout.leaves])
        made = by_path(stepped(tree, born, layout=layout, **how))
        return {path: made[path] for path in homes}

    return jitted(generation, donate_argnums=0)
