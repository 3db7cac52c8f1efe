"""Adam over a store, in place."""

from __future__ import annotations

import numpy as np

from flatstore.es.sample import layouts_differ
from flatstore.store import Store


class Adam:
    """The Adam optimiser, ascending: its two moments are stores of the same layout.

    Source: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2015.
    """

    def __init__(self, store: Store, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        self.store, self.beta1, self.beta2, self.epsilon = store, beta1, beta2, epsilon
        self.mean, self.square = Store.zeros(store.layout), Store.zeros(store.layout)
        self.count = 0

    def step(self, gradient: Store, learning_rate: float) -> None:
        """Move the store up along `gradient`, in place.

        Raises `StructureError` for a gradient of another layout, `LentError` while the store is lent; nothing is
        written or counted then.
        """
        if gradient.layout != self.store.layout:
            raise layouts_differ("the gradient", gradient, self.store)
        flats = zip(*(x.flats.values() for x in (self.store, self.mean, self.square, gradient)), strict=True)
        with self.store.memory.writing():
            self.count += 1
            rate = learning_rate * np.sqrt(1 - self.beta2**self.count) / (1 - self.beta1**self.count)
            for x, mean, square, g in flats:
                mean += (1 - self.beta1) * (g - mean)
                square += (1 - self.beta2) * (g * g - square)
                x += x.dtype.type(rate) * mean / (np.sqrt(square) + self.epsilon)
