"""`ga.step` of a population on a device: `stepped`, to which its leaves are donated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from flatstore.evaluation import as_fitness
from flatstore.ga.breeding import check_operators
from flatstore.ga.in_jit.parentage import births
from flatstore.ga.in_jit.stepping import stepped
from flatstore.layout import Array, Layout
from flatstore.store import JaxPopulation
from flatstore.trees import by_path

_jax: Any = jax


def step_on_device(pop: Any, fitness: Any, **how: Any) -> tuple[Array, Array]:
    """Replace a population on a device by its next generation. Accepts the same arguments as `ga.step`."""
    if how["left"] is not None:
        raise ValueError(
            "left: expected None for a population on a device, which is never half made; fix: leave it out"
        )
    check_operators(how["mutate"], how["select"], how["crossover"], how["bounds"])
    scores = as_fitness(fitness, pop.size)
    names = ("seed", "select", "crossover", "elite")
    born = births(pop.layout, scores, **{name: how[name] for name in names})
    operators = tuple(_Named(how[name]) for name in ("mutate", "crossover", "bounds"))
    generation = _generation(pop.layout, *operators)
    pop.write(lambda: pop.replace(generation, born))
    parents: Array = np.repeat(np.arange(len(scores))[:, None], 2, axis=1)
    parents[born.slots] = np.stack([born.mothers, born.fathers], 1)
    kept = np.ones(len(scores), bool)
    kept[born.slots] = False
    return parents, kept


JaxPopulation.step = staticmethod(step_on_device)


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

    return _jax.jit(generation, donate_argnums=0)
