"""Mutation in JAX, gene by gene: the bits of the compiled loops, but where a function is the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from flatstore.ga.in_jit.crossing import drawn, from_one, result_of
from flatstore.ga.mutation import Mutate, Mutation, Reset, Sparse, distances, reset_values
from flatstore.ga.operators import finite
from flatstore.kernels.cpu import SEGMENT
from flatstore.kernels.xla import product
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import MUTATION, SPARSE, Noise, Normal, in_jax, spans
from flatstore.threads import rounded_to_nearest

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_U = np.uint32

LEAST = 2.0**-100
"""The least noise on a gene: XLA on CPU takes numbers below 2 ** -126 for zero, and nothing near it may be added."""


@dataclass(frozen=True, eq=False)
class Change:
    """A mutation of the genes of one leaf, in the dtype that is computed with."""

    each: Noise | Mutate | Reset
    """What is done to a gene."""
    scale: Any
    """The strength in the leaf; for noise in parts of its draws."""
    table: Array
    """What a drawn number stands for; empty if for itself."""
    kind: int
    width: int
    rate: float | None
    """The fraction of the genes that are changed; None for all."""

    def made(self, gene: Any, draw: Any) -> Any:
        """The new genes, by their draws."""
        if isinstance(self.each, Reset):
            return draw
        if isinstance(self.each, Mutate):
            return result_of(self.each.function, gene, self.scale, draw)
        return gene + product(jnp.full_like(draw, self.scale), draw)

    def value(self, number: Any) -> Any:
        """What a function is called with for a number that is drawn."""
        return jnp.asarray(self.table)[number] if self.table.size else number


@lru_cache(maxsize=256)
@rounded_to_nearest
def change_of(mutation: Mutation | None, layout: Layout, leaf: Leaf, real: Any) -> Change | None:
    """What is done to the genes of a leaf, computed with in `real`; None if nothing is.

    Raises `ValueError` for scales or values that do not fit the layout or the dtype, and for noise that is too small.
    """
    rate = mutation.rate if isinstance(mutation, (Sparse, Reset)) else None
    each = mutation.noise if isinstance(mutation, Sparse) else mutation
    if each is None:
        return None
    kind, width, parts, scaled = MUTATION, 16, 1.0, None
    if isinstance(each, Reset):
        table = finite(reset_values(each), real, f"values of {each}")
    elif isinstance(each, Mutate):
        table, width, scaled = each.table_in(real), each.bits, Normal(each.scale)
        finite(spans(layout, scaled)[1], real, "scales")
    else:
        table, kind, width, parts, scaled = (each.whole + 0.5).astype(real), each.kind, each.width, each.parts, each
        finite(spans(layout, each)[1] * each.largest, real, f"draws of {each}")
    scale = 1.0 if scaled is None else scaled.scale_of(leaf.path)
    if scale == 0:
        return None
    if isinstance(each, Noise) and scale / parts / 2 < LEAST:
        raise ValueError(
            f"{leaf.path!r}: expected noise of {LEAST:.3g} or more on each gene inside jit, got a scale of {scale:g}; "
            "fix: pass a larger scale, or 0"
        )
    return Change(each, real(scale / parts), table, kind if rate is None else SPARSE, width, rate)


def changed(change: Change | None, keys: Any, genes: Any, first: in_jax.Words, index: in_jax.Words, zero: Any) -> Any:
    """The children's genes after mutation, shape (children, genes); `first` is the index of the first, scalars."""
    if change is None:
        return genes
    if change.rate is not None:
        return _some(change, change.rate, keys, genes, first, zero)
    if change.width == 0:
        return change.made(genes, jnp.zeros(genes.shape, _U))
    noise = change.each
    if isinstance(noise, Noise):

        def draw(key: Any) -> Any:
            return in_jax.whole(noise, (key[0], key[1]), index)

        whole = _jax.vmap(draw)(keys)
        return change.made(genes, whole.astype(genes.dtype) + genes.dtype.type(0.5))
    return change.made(genes, change.value(drawn(change.kind, change.width, keys, index)))


def _some(change: Change, rate: float, keys: Any, genes: Any, first: in_jax.Words, zero: Any) -> Any:
    """Change a fraction of the genes: in each segment of the index jump from one to the next."""
    size = genes.shape[1]
    thresholds, _, _ = distances(rate)
    below = jnp.asarray(thresholds[thresholds < 1 << 32].astype(_U))
    count = size // SEGMENT + 2
    past = (first[0] & _U(SEGMENT - 1)).astype(np.int32)
    segment = from_one((first[0] >> _U(8) | first[1] << _U(24), first[1] >> _U(8)), count)
    begins = _lax.iota(np.int32, count) * SEGMENT - past
    mask = _U((1 << change.width) - 1)

    def child(key: Any, row: Any) -> Any:
        def jump(at: Any, row: Any, distance: Any, number: Any) -> tuple[Any, Any]:
            at = at + 1 + jnp.searchsorted(below, distance, side="right").astype(np.int32)
            inside = (at < begins + SEGMENT) & (at >= 0) & (at < size)
            place = jnp.clip(at, 0, max(size - 1, 0))
            new = change.made(row[place], change.value(number & mask))
            return at, row.at[jnp.where(inside, at, size)].set(new, mode="drop")

        def block(state: Any) -> Any:
            sub, at, row = state
            counter = (*segment, jnp.full(count, _U(change.kind)), jnp.full(count, sub))
            one, two, three, four = in_jax.philox4x32(counter, (key[0], key[1]))
            at, row = jump(at, row, one, two)
            at, row = jump(at, row, three, four)
            return sub + _U(1), at, row

        def goes_on(state: Any) -> Any:
            return jnp.any(state[1] < begins + SEGMENT - 1)

        return _lax.while_loop(goes_on, block, (zero, begins - 1, row))[2]

    return _jax.vmap(child)(keys, genes)
