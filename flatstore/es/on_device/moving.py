"""What the verbs of `es` do with a store on a device: jitted functions to which its leaves are donated.

The bits are those of the host, for the functions are `es.virtual`, `es.snapped` and `es.updated`. What has to be known
of the parameters first, whether they are on the grid and below the bound, is computed on the device too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.groups import IN_NOISE, IN_WEIGHTS, NO_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.in_jit import snapped, updated, virtual
from flatstore.es.perturbing import key_of
from flatstore.es.sampling import refuse_other_layouts
from flatstore.es.weights import weighted_seeds, words
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.layout import Layout, Leaf
from flatstore.memory import using
from flatstore.noise import Noise, as_keys
from flatstore.store import JaxPopulation, JaxStore, OnDevice
from flatstore.trees import by_path

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_Homes = Mapping[str, Any]

AT_ONCE = 1 << 16
"""Parameters that are looked at together: XLA keeps what it computes on the way."""


class JaxMoves:
    """The moves of a `JaxStore`."""

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        if not isinstance(store, JaxStore):
            raise TypeError(
                f"expected a JaxStore to move, got {type(store).__name__}; fix: Store.from_tree(tree, device=…)"
            )
        if not isinstance(noise, Noise):
            raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: pass one, such as fs.Normal(0.02)")
        noise.check_grid(store.layout)
        refuse_other_dtypes(_noisy(store.layout, noise), "add noise to", NO_NOISE)

    def snap(self, store: Any, noise: Any) -> None:
        """Round the parameters to the grid."""
        self.check(store, noise)

        def move() -> None:
            _refuse_not_finite(store)
            for leaf, largest in _largest(store, noise):
                if largest >= noise.bound - noise.grid(leaf.dtype) / 2:
                    raise past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
            store.replace(_snapping(store.layout, noise))

        store.write(move)

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> None:
        """Add the noise of a seed, `sign` times."""
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
        self.check(store, noise)
        _refuse_logs(store, noise, exact, undo is not None)
        key, function = words(key_of(seed))[0], _perturbing(store.layout, noise)

        def move() -> None:
            store.replace(function, key, np.float32(sign))

        if exact:
            store.write(lambda: _below_the_bound(store, noise, abs(sign), "a larger bound= of the noise", move))
        else:
            store.write(lambda: (_refuse_not_finite(store), move()))

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> None:
        """Add the weighted noise of many seeds."""
        self.check(store, noise)
        sign, exact, perturbed = how["sign"], how["exact"], how["perturbed"]
        weighted = weighted_seeds(noise, seeds, weights)
        check_sign(sign, IN_WEIGHTS)
        if how["undo"] is not None or how["keep"]:
            _refuse_logs(store, noise, True, True)
        if sign < 0 or perturbed:
            _refuse_logs(store, noise, exact, False)
        function, times = _updating(store.layout, noise, sign, exact), abs(perturbed) + float(np.abs(weights).sum())

        def move() -> None:
            if perturbed:
                store.replace(_perturbing(store.layout, noise), weighted.seeds[0], np.float32(-perturbed))
            store.replace(function, weighted)

        def move_if_finite() -> None:
            _refuse_not_finite(store)
            if exact:
                _below_the_bound(store, noise, times, "smaller weights, or a larger bound=", move)
            else:
                move()

        store.write(move_if_finite)

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Write the store plus noise into a store, or into the members of a population."""
        self.check(store, noise)
        if not isinstance(out, (JaxStore, JaxPopulation)):
            raise TypeError(f"expected to sample into a device, got {type(out).__name__}; fix: zeros of the same kind")
        refuse_other_layouts("out", out, store)
        check_sign(sign, IN_NOISE)
        members = 1 if out.size is None else out.size
        keys = words(as_keys(seeds if np.ndim(seeds) else [seeds]))
        expected = members // 2 if antithetic else members
        if len(keys) != expected or (antithetic and members % 2):
            raise ValueError(
                f"expected {expected} seeds for {members} members{' in pairs' if antithetic else ''}, got {len(keys)}; "
                f"fix: fs.seeds(seed, {expected})"
            )
        centre = store.copy() if out is store else store

        def fill() -> None:
            _refuse_not_finite(centre)
            for member in range(members):
                key, times = keys[member // 2 if antithetic else member], -sign if antithetic and member % 2 else sign
                out.replace(
                    _sampling(out.layout, noise, out.size), centre.homes, key, np.float32(times), np.int32(member)
                )

        with using(reads=[] if out is store else [store.memory]):
            out.write(fill)


OnDevice.moves = JaxMoves()


def _noisy(layout: Layout, noise: Noise) -> list[Leaf]:
    return [leaf for leaf in layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def _has_16_bits(layout: Layout, noise: Noise) -> bool:
    return any(leaf.dtype.itemsize == 2 for leaf in _noisy(layout, noise))


def _on_a_grid(layout: Layout, noise: Noise) -> list[Leaf]:
    return [leaf for leaf in _noisy(layout, noise) if leaf.dtype.itemsize > 2]


def _refuse_logs(store: OnDevice, noise: Noise, exact: bool, is_log: bool) -> None:
    if is_log or (exact and _has_16_bits(store.layout, noise)):
        raise ValueError(
            "expected float32 leaves to take back to the bit on a device, got 16-bit leaves, whose logs are kept on "
            "the host alone; fix: pass exact=False, es.sample into a second store, or use a store on the host"
        )


def _over(layout: Layout, homes: _Homes, function: Callable[[Any], Any]) -> dict[str, Any]:
    """What a function makes of the tree of some homes, home by home."""
    made = by_path(function(layout.unflatten([homes[leaf.tied or leaf.path] for leaf in layout.leaves])))
    return {path: made[path] for path in homes}


def _jitted(function: Callable[..., Any]) -> Any:
    return _jax.jit(function, donate_argnums=0)


@_jitted
def _put_back(homes: Any, before: Any) -> Any:
    return dict(homes) | {path: _lax.dynamic_update_slice(homes[path], x, (0,) * x.ndim) for path, x in before.items()}


@lru_cache(maxsize=32)
def _perturbing(layout: Layout, noise: Noise) -> Any:
    def move(homes: Any, key: Any, sign: Any) -> Any:
        return _over(layout, homes, lambda tree: virtual(tree, noise, key, sign=sign, layout=layout))

    return _jitted(move)


@lru_cache(maxsize=32)
def _updating(layout: Layout, noise: Noise, sign: int, exact: bool) -> Any:
    def move(homes: Any, weighted: Any) -> Any:
        return _over(layout, homes, lambda tree: updated(tree, noise, weighted, sign=sign, exact=exact, layout=layout))

    return _jitted(move)


@lru_cache(maxsize=32)
def _snapping(layout: Layout, noise: Noise) -> Any:
    def move(homes: Any) -> Any:
        names = [leaf.path for leaf in _on_a_grid(layout, noise)]
        return dict(homes) | {path: snapped(homes[path], noise, layout=layout, within=path) for path in names}

    return _jitted(move)


@lru_cache(maxsize=32)
def _sampling(layout: Layout, noise: Noise, size: int | None) -> Any:
    def fill(out: Any, homes: Any, key: Any, sign: Any, member: Any) -> Any:
        made = _over(layout, homes, lambda tree: virtual(tree, noise, key, sign=sign, layout=layout))
        trains = {leaf.path for leaf in layout.homes if leaf.trainable}
        return {
            path: x if path not in trains else made[path] if size is None else x.at[member].set(made[path])
            for path, x in out.items()
        }

    return _jax.jit(fill, donate_argnums=0, keep_unused=True)


@lru_cache(maxsize=32)
def _looking(layout: Layout, noise: Noise) -> Any:
    """The jitted function that tells of each leaf with a grid whether it is on it, below the bound, and its largest."""
    names = [leaf.path for leaf in _on_a_grid(layout, noise)]

    def look(homes: Any) -> Any:
        return {path: _seen(homes[path], noise) for path in names}

    return _jax.jit(look)


def _seen(x: Any, noise: Noise) -> tuple[Any, Any]:
    """Whether all parameters of a leaf are on the grid and below the bound, and the largest magnitude: part by part."""
    flat, size = x.reshape(-1), min(x.size, AT_ONCE)

    def look(i: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        part = _lax.dynamic_slice(flat, (jnp.minimum(i * size, x.size - size),), (size,))
        largest = jnp.max(jnp.abs(part))
        grid = part.dtype.type(noise.grid(part.dtype))
        multiple = jnp.rint(part / grid) * grid
        multiple = jnp.where(multiple == 0, part.dtype.type(0), multiple)
        good = jnp.all(_bits(multiple) == _bits(part)) & (largest < noise.bound)
        return state[0] & good, jnp.maximum(state[1], largest)

    return _lax.fori_loop(0, -(-x.size // size), look, (jnp.asarray(True), jnp.zeros((), x.dtype)))


def _bits(x: Any) -> Any:
    return _lax.bitcast_convert_type(x, np.dtype(f"u{x.dtype.itemsize}"))


@lru_cache(maxsize=32)
def _finite(layout: Layout) -> Any:
    names = [leaf.path for leaf in layout.homes if leaf.trainable and leaf.size]

    def look(homes: Any) -> Any:
        return {path: jnp.isfinite(homes[path]).all() for path in names}

    return _jax.jit(look)


def _largest(store: OnDevice, noise: Noise) -> list[tuple[Leaf, float]]:
    found = _looking(store.layout, noise)(store.homes)
    return [(leaf, float(found[leaf.path][1])) for leaf in _on_a_grid(store.layout, noise)]


def _refuse_not_finite(store: OnDevice) -> None:
    for path, good in _finite(store.layout)(store.homes).items():
        if not good:
            raise ValueError(f"{path!r}: expected finite parameters, got others; fix: go back to the last good ones")


def _below_the_bound(store: OnDevice, noise: Noise, times: float, fix: str, move: Callable[[], None]) -> None:
    """Add noise so many times, at most, to leaves on the grid. Raises `ValueError` if any reaches the bound.

    Past the bound sums are rounded, and noise that is subtracted does not lead back. So where a leaf may come there, a
    copy of the leaves is kept until it is known.
    """
    found = _looking(store.layout, noise)(store.homes)
    _refuse_off_grid(store, noise, found)

    def may_reach(path: str) -> bool:
        most = noise.largest * noise.scale_of(path) + noise.step
        return float(found[path][1]) + times * most + noise.step >= noise.bound

    is_near = any(map(may_reach, found))
    before = {leaf.path: jnp.copy(store.homes[leaf.path]) for leaf in _noisy(store.layout, noise) if is_near}
    move()
    for path, (good, largest) in _looking(store.layout, noise)(store.homes).items() if is_near else ():
        if not good:
            store.replace(_put_back, before)
            raise past_the_bound(noise, path, float(largest), f"pass {fix}", " after the move")


def _refuse_off_grid(store: OnDevice, noise: Noise, found: _Homes) -> None:
    """Raise `ValueError` for leaves that are off the grid or reach the bound, by what was found of them."""
    for path, (good, largest) in found.items():
        if not good:
            if float(largest) >= noise.bound:
                raise past_the_bound(noise, path, float(largest), "pass a larger bound= of the noise")
            _refuse_not_finite(store)
            raise ValueError(
                f"{path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {float(largest):.6g}; fix: es.snap(store, noise) once"
            )
