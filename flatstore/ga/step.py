"""One generation of a genetic algorithm, in place, by blocks of columns.

Each gene of a child depends on the same gene of its parents and on nothing else. So a block of columns of all members
is taken into scratch, the children's are written back over it, and on to the next:

```
           genes ->
members    | block 0 | block 1 | block 2 |        scratch: a copy of one block
   |       |  done   | <-> now |         |
```

This is the readable version, in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.arrays import Array
from flatstore.ga.crossover import Uniform
from flatstore.ga.select import Tournament, best_first
from flatstore.noise import Noise, Seed, seeds
from flatstore.population import Population

SCRATCH = 1 << 18
"""Genes in a block of columns, and in a block of children; with the temporaries it stays well below 32 MiB."""


def step(
    pop: Population,
    fitness: Any,
    *,
    seed: Seed,
    mutate: Noise,
    select: Any = Tournament(),  # noqa: B008 (a frozen value)
    crossover: Any = Uniform(),  # noqa: B008 (a frozen value)
    elite: int = 1,
) -> tuple[Array, Array]:
    """Replace the population by its next generation, in its own memory.

    The `elite` best members keep their slots to the bit; every other slot takes a child of two selected parents,
    crossed over and mutated. Child i draws as if it had seed number i of `fs.seeds(seed, pop.size)`.

    Args:
        pop: the population; its shared leaves do not change.
        fitness: a number per member, maximised; NaN is worst.
        seed: an integer or several, like (run, generation).
        mutate: noise that is added to each gene of a child.
        select: `(fitness, n, seed) -> n indices`, called once for both parents of all children.
        crossover: `(a, b, keys, start) -> children`, on blocks of genes.
        elite: how many members are kept, in elements.

    Returns:
        parents: shape (size, 2), for each slot the two members that it came from (itself twice, if kept).
        kept: shape (size,), bool: which slots need no new evaluation.

    Raises:
        ValueError: fitness of another length or all NaN, elite out of range, indices out of range.
        LentError: while the population is lent. Nothing is written in either case.
    """
    scores = check_fitness(fitness, pop.size)
    if not 0 <= elite < pop.size:
        raise ValueError(f"expected elite in 0 .. {pop.size - 1}, got {elite}; fix: leave a slot for a child")
    mutate.check(pop.layout)
    keys = seeds(seed, pop.size + 1)
    children = np.sort(best_first(scores)[elite:])
    chosen = np.asarray(select(scores, 2 * len(children), int(keys[-1])))
    if (
        chosen.shape != (2 * len(children),)
        or chosen.dtype.kind not in "iu"
        or chosen.min() < 0
        or chosen.max() >= pop.size
    ):
        raise ValueError(
            f"expected {2 * len(children)} indices of members from select, got {chosen.dtype} of shape {chosen.shape}; "
            f"fix: return that many integers in 0 .. {pop.size - 1}"
        )
    mothers, fathers = chosen.reshape(2, -1)
    rows = max(1, min(len(children), SCRATCH // 128))
    width = max(1, SCRATCH // pop.size)
    done: list[str] = []
    with pop.memory.writing():
        try:
            for leaf in (leaf for leaf in pop.layout.homes if leaf.trainable):
                columns = pop.columns(leaf)
                for start in range(0, leaf.size, width):
                    stop = min(start + width, leaf.size)
                    block, first = columns[:, start:stop].copy(), leaf.index + start
                    for row in range(0, len(children), rows):
                        part = slice(row, row + rows)
                        slots = children[part]
                        born = crossover(block[mothers[part]], block[fathers[part]], keys[slots], first)
                        if mutate.scale_of(leaf.path):
                            born = born + mutate.delta(leaf, keys[slots], start, stop)
                        columns[slots, start:stop] = born
                done.append(leaf.path)
        except BaseException as error:
            error.add_note(
                f"the generation is half made: the leaves {done} are the children's; "
                "fix: a step depends on its arguments alone, so restore the population and step it again"
            )
            raise
    parents = np.repeat(np.arange(pop.size)[:, None], 2, axis=1)
    parents[children] = np.stack([mothers, fathers], axis=1)
    kept = np.ones(pop.size, bool)
    kept[children] = False
    return parents, kept


def check_fitness(fitness: Any, size: int) -> Array:
    """Fitness as float64, shape (size,). Raises `ValueError` for another shape, or if every number is NaN."""
    scores = np.asarray(fitness, np.float64)
    if scores.shape != (size,):
        raise ValueError(f"expected fitness of shape ({size},), got {scores.shape}; fix: a number per member")
    if np.isnan(scores).all():
        raise ValueError("expected fitness with a number in it, got only NaN; fix: look at the evaluation")
    return scores
