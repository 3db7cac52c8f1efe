"""Crossover in JAX, gene by gene: the bits of the compiled loops, but where a function is the user's own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatstore.ga.crossover import Blend, Crossover, Exchange, PerGene, Points, Uniform
from flatstore.ga.in_jit.parentage import Births
from flatstore.kernels.xla import loaded, product
from flatstore.layout import Leaf
from flatstore.noise import CROSSOVER, in_jax

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_U = np.uint32


def crossed(
    crossover: Crossover | None, births: Births, a: Any, b: Any, leaf: Leaf, unit: int, index: in_jax.Words, zero: Any
) -> Any:
    """The children's genes, in the dtype that is computed with, from the parents' as they are stored.

    `a` are the mothers', `b` the fathers', shape (children, genes); `unit` is that of the leaf in `Exchange`.
    """
    if isinstance(crossover, (Blend, PerGene)):
        return _blended(crossover, births, loaded(a, zero), loaded(b, zero), index)
    if isinstance(crossover, Uniform):
        of_mother = drawn(CROSSOVER, 1, births.keys, index) != 0
    elif isinstance(crossover, Points):
        behind = sum(
            (index[1] > high) | ((index[1] == high) & (index[0] >= low))
            for low, high in ((births.cuts[:, j, 0, None], births.cuts[:, j, 1, None]) for j in range(crossover.k))
        )
        of_mother = behind % 2 == 0
    elif isinstance(crossover, Exchange) and unit >= 0:
        low, high = in_jax.as_words(unit)
        of_mother = drawn(CROSSOVER, 1, births.keys, (jnp.full(1, low), jnp.full(1, high))) != 0
    elif crossover is None or isinstance(crossover, Exchange):
        return loaded(a, zero)
    else:
        raise TypeError(
            f"expected a crossover that JAX can trace, got {crossover!r}; fix: ga.PerGene(function), of which the "
            "function is called with JAX arrays"
        )
    return loaded(jnp.where(of_mother, a, b), zero)


def drawn(kind: int, width: int, keys: Any, index: in_jax.Words) -> Any:
    """A number of `width` bits for each child and index, uint32, shape (children, genes)."""

    def draw(key: Any) -> Any:
        return in_jax.numbers(kind, width, (key[0], key[1]), index)

    return _jax.vmap(draw)(keys)


def from_one(first: in_jax.Words, count: int) -> in_jax.Words:
    """So many indices in a row, from one on, whose words are scalars."""
    low, high = (jnp.broadcast_to(word, (count,)) for word in first)
    return in_jax.plus((low, high), (_lax.iota(_U, count), jnp.zeros(count, _U)))


def _blended(crossover: Blend | PerGene, births: Births, a: Any, b: Any, index: in_jax.Words) -> Any:
    own = crossover if isinstance(crossover, PerGene) else crossover.per_gene
    draw = drawn(CROSSOVER, own.bits, births.keys, index) if own.bits else jnp.zeros(a.shape, np.uint32)
    table = own.table_in(a.dtype)
    if table.size:
        draw = jnp.asarray(table)[draw]
    if isinstance(crossover, Blend):
        return a + product(draw, b - a)
    return result_of(own.function, a, b, draw)


def result_of(function: Any, one: Any, other: Any, draw: Any) -> Any:
    """What a function of the user's own makes of arrays, in the dtype of the genes."""
    made: Any = getattr(function, "py_func", function)
    return jnp.broadcast_to(jnp.asarray(made(one, other, draw)), draw.shape).astype(one.dtype)
