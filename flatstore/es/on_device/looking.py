"""What has to be known of the leaves on a device before they move: whether they are finite, on the grid, and how large.

All of it is known before anything is written, so that nothing has to be taken back. What leaves will be after a move is
computed only if their largest parameter and the largest change could reach the bound together. JAX never changes an
array: what is known of it stays true, and what is known of a leaf before an exact move says something of it afterwards.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.groups import NO_NOISE, trainable_leaves
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.kernels.xla import jitted
from flatstore.layout import Layout, Leaf
from flatstore.noise import Noise
from flatstore.store import OnDevice

jnp: Any = jax.numpy
_lax: Any = jax.lax
_Homes = Mapping[str, Any]

ROW = 1 << 14
"""Parameters that are looked at together; XLA on a CPU goes over such rows with several threads."""

LARGER_BOUND = "pass a larger bound= of the noise"


def noisy(layout: Layout, noise: Noise) -> list[Leaf]:
    """The leaves that noise is added to."""
    return [leaf for leaf in layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def of_16_bits(layout: Layout, noise: Noise) -> list[Leaf]:
    """Those of them that have no grid."""
    return [leaf for leaf in noisy(layout, noise) if leaf.dtype.itemsize == 2]


def on_a_grid(layout: Layout, noise: Noise) -> list[Leaf]:
    """Those of them that have one."""
    return [leaf for leaf in noisy(layout, noise) if leaf.dtype.itemsize > 2]


def check_dtypes(layout: Layout, noise: Noise) -> None:
    """Raise `ValueError` unless noise can be added to the leaves."""
    noise.check_grid(layout)
    refuse_other_dtypes(noisy(layout, noise), "add noise to", NO_NOISE)


LAST_GOOD = "go back to the last good ones"


def refuse_not_finite(
    store: OnDevice, noise: Noise | None = None, name: str = "parameters", fix: str = LAST_GOOD
) -> None:
    """Raise `ValueError` for leaves that hold NaN or an infinity: those that noise is added to, or all that train."""
    leaves = trainable_leaves(store) if noise is None else noisy(store.layout, noise)
    for leaf, (_, largest) in zip(leaves, _look(store, leaves, None), strict=True):
        if not np.isfinite(largest):
            raise _not_finite(store, leaf, name, fix)


class Known(NamedTuple):
    """What is known of an array, for ever: JAX does not change it."""

    array: Any
    """A weak reference to it."""
    grid: float
    """What its numbers are multiples of."""
    most: float
    """Their magnitudes are not larger."""


def largest_on_grid(store: OnDevice, noise: Noise, fix: str = LARGER_BOUND, *, again: bool = False) -> dict[str, float]:
    """The largest magnitude of each leaf with a grid, or what it is not above, unless it is to be looked at `again`.

    Raises `ValueError` for leaves off the grid, or that reach the bound.
    """
    leaves = on_a_grid(store.layout, noise)
    found = {leaf.path: known.most for leaf in leaves if not again and (known := _known(store, noise, leaf))}
    unknown = [leaf for leaf in leaves if leaf.path not in found]
    for leaf, (is_off, largest) in zip(unknown, _look(store, unknown, noise), strict=True):
        if not np.isfinite(largest):
            raise _not_finite(store, leaf)
        if largest >= noise.bound:
            raise past_the_bound(noise, leaf.path, largest, fix)
        if is_off:
            raise ValueError(
                f"{leaf.path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {largest:.6g}; fix: es.snap(store, noise) once"
            )
        found[leaf.path] = largest
    remember(store, noise, found)
    return found


def _known(store: OnDevice, noise: Noise, leaf: Leaf) -> Known | None:
    known: Known | None = store.known.get(leaf.path)
    is_good = known and known.array() is store.homes[leaf.path] and known.grid == noise.grid(leaf.dtype)
    return known if known and is_good and known.most < noise.bound else None


def remember(store: OnDevice, noise: Noise, most: Mapping[str, float]) -> None:
    """Keep in mind that leaves are on the grid, and not above these magnitudes."""
    for path, x in most.items():
        array = store.homes[path]
        store.known[path] = Known(weakref.ref(array), noise.grid(array.dtype), x)


def largest_to_snap(store: OnDevice, noise: Noise) -> list[tuple[Leaf, float]]:
    """The leaves with a grid, and the largest magnitude of each. Raises `ValueError` for those that are not finite."""
    leaves = on_a_grid(store.layout, noise)
    found = [(leaf, largest) for leaf, (_, largest) in zip(leaves, _look(store, leaves, None), strict=True)]
    for leaf, largest in found:
        if not np.isfinite(largest):
            raise _not_finite(store, leaf)
    return found


def refuse_past_the_bound(
    store: OnDevice,
    noise: Noise,
    largest: Mapping[str, float],
    times: float,
    moved: Callable[[tuple[str, ...]], Any],
    fix: str = LARGER_BOUND,
) -> dict[str, float]:
    """What leaves will not be above, moved by up to `times` the largest draw. Raises `ValueError` if it is the bound.

    `moved(paths)` computes the largest magnitudes of these leaves after the move; it is called for those that might be.
    """
    after = {path: x + times * _most(noise, path) + noise.step for path, x in largest.items()}
    if any(x >= noise.bound for x in after.values()):
        exact = largest_on_grid(store, noise, fix, again=True)
        after = {path: x + times * _most(noise, path) + noise.step for path, x in exact.items()}
    near = tuple(path for path, x in after.items() if x >= noise.bound)
    for path, bits in moved(near).items() if near else ():
        after[path] = _number(bits, store.layout.by_path[path])
        if not after[path] < noise.bound:
            raise past_the_bound(noise, path, after[path], fix, " after the move")
    return after


def _most(noise: Noise, path: str) -> float:
    """The most that a draw adds to a parameter of a leaf."""
    ends = np.array([noise.whole.min(), noise.whole.max()])
    return float(np.abs(noise.factor(noise.scale_of(path)).steps(ends)).max()) * noise.step


def largest_of(x: Any) -> Any:
    """The bits of the largest magnitude of an array, in an unsigned integer: inside `jit`, NaN is the largest."""
    return _seen(x, None)[1]


def _look(store: OnDevice, leaves: list[Leaf], noise: Noise | None) -> list[tuple[bool, float]]:
    """Of each leaf whether it is off the grid, if there is noise, and its largest magnitude."""
    if not leaves:
        return []
    found = _looking(store.layout, tuple(leaf.path for leaf in leaves), noise)(store.homes)
    return [(bool(off), _number(largest, leaf)) for leaf, (off, largest) in zip(leaves, found, strict=True)]


def _number(bits: Any, leaf: Leaf) -> float:
    return float(np.asarray(bits).view(leaf.dtype))


@lru_cache(maxsize=32)
def _looking(layout: Layout, paths: tuple[str, ...], noise: Noise | None) -> Any:
    def look(homes: Any) -> Any:
        return [_seen(homes[path], noise) for path in paths]

    return jitted(look)


def _seen(x: Any, noise: Noise | None) -> tuple[Any, Any]:
    """What is off the grid, as bits, and the bits of the largest magnitude."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}").type
    magnitude = unsigned(np.iinfo(unsigned).max >> 1)

    def parts(x: Any, _: Any) -> tuple[Any, Any]:
        bits = bits_of(x)
        if noise is None:
            return jnp.zeros_like(bits), bits & magnitude
        grid = x.dtype.type(noise.grid(x.dtype))
        multiple = jnp.rint(x / grid) * grid
        return bits_of(jnp.where(multiple == 0, x.dtype.type(0), multiple)) ^ bits, bits & magnitude

    def both(one: Any, other: Any) -> tuple[Any, Any]:
        return one[0] | other[0], _lax.max(one[1], other[1])

    return reduced(x, parts, (unsigned(0), unsigned(0)), both)


def reduced(x: Any, parts: Callable[[Any, Any], Any], zeros: Any, both: Callable[[Any, Any], Any]) -> Any:
    """What several numbers for each parameter, `parts(parameters, their places)`, come to by `both`."""
    # One reduction of all, in rows: XLA does not write down what goes into it, as it would for one of a single number.
    flat = x.reshape(-1)
    whole = flat.size // ROW * ROW
    places = _lax.iota(np.uint32, flat.size)
    rows = parts(flat[:whole].reshape(-1, ROW), places[:whole].reshape(-1, ROW))
    return both(
        _lax.reduce(_lax.reduce(rows, zeros, both, (1,)), zeros, both, (0,)),
        _lax.reduce(parts(flat[whole:], places[whole:]), zeros, both, (0,)),
    )


def bits_of(x: Any) -> Any:
    """The bits of numbers, in unsigned integers."""
    return _lax.bitcast_convert_type(x, np.dtype(f"u{x.dtype.itemsize}"))


def _not_finite(store: OnDevice, leaf: Leaf, name: str = "parameters", fix: str = LAST_GOOD) -> ValueError:
    values = np.array(store[leaf.path]).reshape(-1)
    at = int(np.isfinite(values).argmin())
    return ValueError(f"{leaf.path!r}: expected finite {name}, got {values[at]} at {at} of {leaf.size:,}; fix: {fix}")
