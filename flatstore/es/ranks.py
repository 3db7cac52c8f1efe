"""Fitness shaping."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.evaluation import as_fitness, refuse_all_nan
from flatstore.layout import Array
from flatstore.threads import rounded_to_nearest


def centred_ranks(fitness: Any) -> Array:
    """Ranks of a fitness vector, spread over -0.5 (worst) .. 0.5 (best): shape (n,), float64.

    Fitness is maximised; NaN is worst; equals share the mean of their ranks, so that the ranks always sum to zero.

    >>> centred_ranks([3.0, float("nan"), 7.0]).tolist()
    [0.0, -0.5, 0.5]

    Source: Salimans, Ho, Chen, Sidor and Sutskever, *Evolution Strategies as a Scalable Alternative to Reinforcement
    Learning*, 2017. Raises `ValueError` unless `fitness` is a vector of real numbers of which at least one is not NaN.
    """
    scores = as_fitness(fitness)
    refuse_all_nan(scores)
    return _ranks(scores)


@rounded_to_nearest
def _ranks(scores: Array) -> Array:
    # The order is that of the distinct numbers; all NaNs are one more, below them.
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean_rank = last - (count + 1) / 2
    unknown = int(np.isnan(scores).sum())
    if unknown:  # NumPy sorts NaN to the end: move it to the front
        mean_rank = np.append(mean_rank[:-1] + unknown, (unknown - 1) / 2)
    return mean_rank[group] / max(1, len(scores) - 1) - 0.5 * (len(scores) > 1)
