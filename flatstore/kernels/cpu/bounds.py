"""Bounds in compiled loops: children's genes, brought back where they stand in scratch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled

UNBOUNDED, CLIP, REFLECT = range(3)
"""What is done with a gene outside of its bounds."""


@compiled
def reflected(gene: float, low: float, high: float) -> float:
    """A gene outside of its bounds, reflected at them in turn until it is between them.

    What is infinitely far away has no such place: it goes to the bound that it is beyond.
    """
    below = gene < low
    past, width = low - gene if below else gene - high, high - low
    if width == 0 or math.isinf(past):
        return low if below else high
    turn = np.fmod(past, 2 * width)
    back = turn if turn <= width else width - (turn - width)
    return min(low + back, high) if below else max(high - back, low)


@compiled
def bring_back(outside: int, low: Any, high: Any, rows: int, out: Any) -> None:
    """Bring the genes of the first rows of `out` between their own bounds; NaN compares as inside, and stays."""
    for row in range(rows):
        if outside == CLIP:
            for i in range(out.shape[1]):
                gene = out[row, i]
                gene = low[i] if gene < low[i] else gene
                out[row, i] = high[i] if gene > high[i] else gene
        else:
            # One reflection is nearly always enough, and its loop becomes vector instructions.
            far = 0
            for i in range(out.shape[1]):
                gene = out[row, i]
                once = low[i] + (low[i] - gene) if gene < low[i] else gene
                once = high[i] - (gene - high[i]) if gene > high[i] else once
                beyond = (once < low[i]) | (once > high[i])
                far += beyond
                out[row, i] = gene if beyond else once
            at = np.uint64(0)
            while far > 0:
                gene = out[row, at]
                if gene < low[at] or gene > high[at]:
                    out[row, at] = reflected(np.float64(gene), np.float64(low[at]), np.float64(high[at]))
                    far -= 1
                at += np.uint64(1)
