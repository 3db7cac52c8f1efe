"""Bounds in JAX: children's genes brought back as the compiled loop does it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from flatstore.ga.bounds import Bounds, limits
from flatstore.kernels.cpu import CLIP, UNBOUNDED
from flatstore.kernels.xla import constant
from flatstore.layout import Layout, Leaf

jnp: Any = jax.numpy
_lax: Any = jax.lax
_enable_x64: Any = jax.enable_x64


def bounded(bounds: Bounds | None, layout: Layout, leaf: Leaf, genes: Any, zero: Any) -> Any:
    """The genes of a leaf between its bounds; NaN compares as inside, and stays."""
    outside, ranges, lows, highs = limits(bounds, layout, leaf.dtype.name)
    at = int(np.searchsorted(ranges[:, 1], leaf.index, side="right"))
    if outside == UNBOUNDED or at == len(ranges) or ranges[at, 0] > leaf.index:
        return genes
    low, high = (constant(bound, zero) for bound in (lows[at], highs[at]))
    if outside == CLIP:
        genes = jnp.where(genes < low, low, genes)
        return jnp.where(genes > high, high, genes)
    once = jnp.where(genes < low, low + (low - genes), genes)
    once = jnp.where(genes > high, high - (genes - high), once)
    beyond = (once < low) | (once > high)
    return jnp.where(beyond, _reflected(genes, np.float64(lows[at]), np.float64(highs[at]), zero), once)


def _reflected(genes: Any, lowest: Any, highest: Any, zero: Any) -> Any:
    """Genes outside of their bounds, reflected at them in turn until they are between them: in float64."""
    with _enable_x64(True):
        low, high, width = (constant(number, zero) for number in (lowest, highest, highest - lowest))
        wide = _lax.convert_element_type(genes, np.float64)
        below = wide < low
        past = jnp.where(below, low - wide, wide - high)
        if lowest == highest:
            place = jnp.where(below, low, high)
        else:
            turn = _lax.rem(past, jnp.broadcast_to(2 * width, past.shape))
            back = jnp.where(turn <= width, turn, width - (turn - width))
            place = jnp.where(below, jnp.minimum(low + back, high), jnp.maximum(high - back, low))
            place = jnp.where(jnp.isinf(past), jnp.where(below, low, high), place)
        return _lax.convert_element_type(place, genes.dtype)
