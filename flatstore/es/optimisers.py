"""Optimisers: rules that move a store along gradients, in place, with a state in stores of the same layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flatstore.checks import real
from flatstore.es.groups import (
    WIDTH,
    on_host,
    random_words,
    refuse_not_finite,
    tasks_of,
    trainable_groups,
    trainable_leaves,
    zeros_beside,
)
from flatstore.es.sampling import refuse_other_layouts
from flatstore.kernels.cpu import adam, momentum, optimiser_loop
from flatstore.layout import Array
from flatstore.memory import reading, write
from flatstore.noise import seeds
from flatstore.store import AnyStore, moves_of
from flatstore.threads import Task, rounded_to_nearest, run_tasks


class Optimiser(Protocol):
    """What moves a store along gradients: `Adam`, `Momentum`, or your own."""

    store: Any
    """The store that it moves."""

    def step(self, gradient: AnyStore, rate: float) -> None:
        """Move the store up along `gradient`, in place."""
        ...


class Compiled:
    """An optimiser whose rule is compiled: the store and the states of the rule are moved together."""

    def __init__(self, store: AnyStore, states: tuple[str, ...], **settings: float) -> None:
        for name, value in settings.items():
            below_one = name.startswith("beta")
            if not (0 <= real(value) < 1 if below_one else 0 < real(value) < math.inf):
                raise ValueError(
                    f"expected {f'0 <= {name} < 1' if below_one else f'0 < {name} < inf'}, got {value}; "
                    f"fix: leave {name}= out, for the default"
                )
        if not isinstance(store, AnyStore):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"expected a Store to move, got {type(store).__name__}; fix: Store.from_tree(tree), or a member, pop[i]"
            )
        self.store = store
        """The store that it moves."""
        self.count = 0
        """The number of steps so far."""
        self.states: dict[str, Any] = {name: zeros_beside(store) for name in states}
        """The stores that it keeps beside it, by name."""
        self.settings: dict[str, float] = {name: real(value) for name, value in settings.items()}
        """The numbers that it was made with, by name."""
        self._states = list(self.states.values())
        trainable_leaves(store, "optimise", "leave it out of trainable=")

    def _step(self, rule: Any, gradient: AnyStore, rate: float, *settings: float) -> None:
        """Move along a gradient by a rule that takes these settings, of which the first is made of the rate."""
        refuse_other_layouts("the gradient", gradient, self.store)
        if not math.isfinite(settings[0]):
            raise ValueError(f"expected a finite rate, got {rate!r}; fix: pass a number, such as 0.01")
        keys, count = seeds(self.count, 3), self.count + 1  # keys for the rounding of 16-bit leaves
        kind = moves_of(self.store)
        optimise = optimise_on_host if kind is None else kind.optimise
        together = self.store, gradient, *self._states
        optimise(rule, together, settings, keys, lambda: setattr(self, "count", count))


def optimise_on_host(
    rule: Any, stores: Sequence[Any], settings: Sequence[float], keys: Array, then: Callable[[], object]
) -> None:
    """Move a store along a gradient by a compiled rule, and call `then`; `stores` are these two, and its states."""
    store, gradient, *states = [on_host(store) for store in stores]
    together = store, gradient, states[0], states[-1]
    check = gradient.cached("trainable", lambda: trainable_groups([gradient]))
    groups = gradient.cached(together, lambda: trainable_groups(together))

    def move(task: Task, words: Array, note: Any) -> None:
        group, start, stop = task
        raws = tuple(store.raw(group.raw.dtype) for store in together)
        constants = tuple([group.real(x) for x in settings])
        loop = optimiser_loop(rule, len(states), group.dtype)
        loop(start, stop, WIDTH, group.pieces, raws, constants, keys, words, note)

    def move_all() -> None:
        refuse_not_finite(gradient, check, "numbers in a gradient", "correct the computation that makes it")
        run_tasks(tasks_of(groups), move, lambda: random_words(32, 3, WIDTH), finish=Exception)
        then()

    with reading(gradient.memory) as own:
        write([x.memory for x in (store, *states)], move_all, own)


class Adam(Compiled):
    """The Adam optimiser, ascending: its two moments are stores of the same layout and dtypes.

    >>> import numpy as np, flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(2, "f4")})
    >>> Adam(store).step(fs.Store.from_tree({"w": np.array([5, -0.2], "f4")}), 0.01)
    >>> store["w"].round(4).tolist()
    [0.009999999776482582, -0.009999999776482582]

    A step is one pass. 16-bit leaves are computed in float32 and then rounded at random; float16 gradients that stay
    above 255 have infinite squares, and their parameters stop moving. To continue a run, restore the store, `mean` and
    `square` (by `assign`) and `count`. The moments of a store on a device are on it, too, and so is its gradient.

    Source: Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2015. Raises `ValueError` for settings out of
    range, and for trainable leaves of a dtype that cannot be computed with.
    """

    beta1: float
    beta2: float
    epsilon: float

    def __init__(self, store: AnyStore, *, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> None:
        super().__init__(store, ("mean", "square"), beta1=beta1, beta2=beta2, epsilon=epsilon)
        self.beta1, self.beta2, self.epsilon = real(beta1), real(beta2), real(epsilon)

    @property
    def mean(self) -> Any:
        """The running mean of the gradients."""
        return self._states[0]

    @property
    def square(self) -> Any:
        """The running mean of their squares."""
        return self._states[1]

    def step(self, gradient: AnyStore, rate: float) -> None:
        """Move the store up along `gradient`, in place.

        Raises `StructureError` for a gradient of another layout, `ValueError` for a gradient or a rate that is not
        finite, `LentError` while the store is lent; in all these cases nothing is written or counted. Ctrl-C is held
        back until the step is done.
        """
        settings = _adam_settings(real(rate), self.beta1, self.beta2, self.epsilon, self.count + 1)
        self._step(adam, gradient, rate, *settings)


class Momentum(Compiled):
    """Gradient ascent with momentum: the velocity, `beta * velocity + gradient`, is a store of the same layout.

    >>> import numpy as np, flatstore as fs
    >>> store, gradient = (fs.Store.from_tree({"w": np.full(1, x, "f4")}) for x in (0, 1))
    >>> momentum = Momentum(store, beta=0.5)
    >>> for _ in range(3):
    ...     momentum.step(gradient, 1.0)
    >>> store["w"].tolist()
    [4.25]

    Everything else is as in `Adam`. Source: Polyak, *Some methods of speeding up the convergence of iteration methods*,
    1964.
    """

    def __init__(self, store: AnyStore, *, beta: float = 0.9) -> None:
        super().__init__(store, ("velocity",), beta=beta)
        self.beta: float = real(beta)

    @property
    def velocity(self) -> Any:
        """The sum of the gradients of all steps, each weighted by `beta` to the power of its age."""
        return self._states[0]

    def step(self, gradient: AnyStore, rate: float) -> None:
        """Move the store up along `gradient`, in place. Raises the same errors as `Adam.step`."""
        self._step(momentum, gradient, rate, real(rate), self.beta)


@rounded_to_nearest
def _adam_settings(rate: float, beta1: float, beta2: float, epsilon: float, count: int) -> tuple[float, ...]:
    """What the rule takes in the step of this number, from 1 on."""
    unbias1, unbias2 = (1 / (1 - _power(beta, count)) for beta in (beta1, beta2))
    return rate * unbias1, unbias2, epsilon, beta1, 1 - beta1, beta2, 1 - beta2


def _power(base: float, exponent: int) -> float:
    """`base ** exponent` by products: the same bits on every machine."""
    result = 1.0
    while exponent:
        result *= base if exponent & 1 else 1.0
        base, exponent = base * base, exponent // 2
    return result
