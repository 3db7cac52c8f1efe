"""The rules of the optimisers on a device: leaf by leaf and part by part, in the places of the store and its states."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from flatstore.kernels.cpu import STORAGE
from flatstore.kernels.xla import Double, Single, cast, dithered, held, jitted, loaded, with_64_bits
from flatstore.layout import Array, Layout, Leaf
from flatstore.noise import ROUNDING, in_jax
from flatstore.threads import rounded_to_nearest

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_U = np.uint32

AT_ONCE, AT_ONCE_ON_DEVICE = 1 << 16, 1 << 22
"""Parameters that are moved together: few enough for a cache, or enough to keep an accelerator busy."""


@rounded_to_nearest
def numbers_for(layout: Layout, settings: Sequence[float]) -> dict[str, Array]:
    """The settings of a rule in each dtype that is computed with."""
    reals = {STORAGE[leaf.dtype.name][1] for leaf in layout.homes if leaf.trainable and leaf.size}
    return {np.dtype(real).name: np.array(settings, real) for real in reals}


@lru_cache(maxsize=32)
def optimising(layout: Layout, rule: Any, states: int) -> Any:
    """The jitted function that moves a store and the states of a rule along a gradient: all but that are donated.

    It takes the homes of the store and of its states, those of the gradient, the settings and the keys.
    """
    names = [leaf.path for leaf in layout.homes if leaf.trainable and leaf.size]
    rule = getattr(rule, "py_func", rule)

    def optimise(homes: tuple[Any, ...], gradient: Any, settings: Any, keys: Any) -> tuple[Any, ...]:
        moved = [dict(x) for x in homes]
        before: list[Any] = []  # one leaf after the other, in the same memory
        for path in names:
            zero = in_jax.opaque_zero(keys[0, 0], *before)
            own = [x[path] for x in homes]
            new = _moved(rule, own, gradient[path], settings, keys, layout.by_path[path], states, zero)
            for x, array in zip(moved, new, strict=True):
                x[path] = array
            before[:] = [new[0].reshape(-1)[0]]
        return tuple(moved)

    return jitted(optimise, donate_argnums=0)


def _moved(
    rule: Any, own: Sequence[Any], gradient: Any, settings: Any, keys: Any, leaf: Leaf, states: int, zero: Any
) -> list[Any]:
    """A leaf of the store and of its states after a step."""
    flat = [held(x.reshape(-1), zero) for x in own]
    slope = gradient.reshape(-1)
    size = min(leaf.size, AT_ONCE if _jax.default_backend() == "cpu" else AT_ONCE_ON_DEVICE)
    real = np.dtype(STORAGE[leaf.dtype.name][1])
    number: Any = Double if real == np.float64 else Single

    def part(i: Any, flat: list[Any]) -> list[Any]:
        # The last part begins earlier, so that it ends where the leaf does: what was moved before stays.
        first = jnp.minimum(i * size, leaf.size - size)
        old = [cast(_lax.dynamic_slice(x, (first,), (size,)), leaf.dtype) for x in flat]
        inputs = [loaded(x, zero) for x in (old[0], _lax.dynamic_slice(slope, (first,), (size,)), *old[1:])]
        with with_64_bits(True):
            x, g, *state = [number.of(x) for x in inputs]
            constants = [number.of(settings[real.name][k]) for k in range(len(settings[real.name]))]
            new_x, *new = rule(x, g, state[0], state[-1], tuple(constants))
            arrays = [y.array() for y in (new_x, *new[:states])]
        position = first.astype(_U) + _lax.iota(_U, size)
        index = in_jax.plus(tuple(map(jnp.asarray, in_jax.as_words(leaf.index))), (position + zero, _U(0)))
        words = [in_jax.numbers(ROUNDING, 32, (key[0], key[1]), index) for key in keys]
        fresh = position >= (i * size).astype(_U)
        made = [dithered(y, leaf.dtype, word) for y, word in zip(arrays, words, strict=False)]
        return [
            _lax.dynamic_update_slice(whole, cast(jnp.where(fresh, new, was), whole.dtype), (first,))
            for whole, new, was in zip(flat, made, old, strict=True)
        ]

    moved = _lax.fori_loop(0, -(-leaf.size // size), part, flat)
    return [cast(x, leaf.dtype).reshape(y.shape) for x, y in zip(moved, own, strict=True)]
