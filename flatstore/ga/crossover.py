"""Crossover: how the genes of two parents become those of a child."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatstore.arrays import Array
from flatstore.noise import CROSSOVER, bits


@dataclass(frozen=True)
class Uniform:
    """Each gene comes from either parent with the same probability.

    Source: Syswerda, *Uniform Crossover in Genetic Algorithms*, ICGA 1989.
    """

    def __call__(self, a: Array, b: Array, keys: Array, start: int) -> Array:
        """Children of the parents' blocks `a` and `b`, shape (children, genes), with a seed each in `keys`.

        `start` is the index of the first gene.
        """
        return np.where(bits(CROSSOVER, keys, start, start + a.shape[1]), a, b)
