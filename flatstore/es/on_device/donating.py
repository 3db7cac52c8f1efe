"""The jitted functions to which the leaves of a store on a device are donated, and those that look before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax

from flatstore.es.in_jit import snapped, updated, updated_on_grid, virtual
from flatstore.es.on_device.looking import largest_of, of_16_bits, on_a_grid
from flatstore.kernels.xla import cast, held, is_held_as_bits, jitted
from flatstore.layout import Layout
from flatstore.noise import Noise, in_jax
from flatstore.trees import by_path

_lax: Any = jax.lax
_Homes = Mapping[str, Any]


def _over(layout: Layout, homes: _Homes, function: Callable[[Any], Any]) -> dict[str, Any]:
    """What a function makes of the tree of some homes, home by home."""
    made = by_path(function(layout.unflatten([homes[leaf.tied or leaf.path] for leaf in layout.leaves])))
    return {path: made[path] for path in homes}


@lru_cache(maxsize=32)
def perturbing(layout: Layout, noise: Noise, on_grid: bool) -> Any:
    """The jitted function that adds noise to all leaves, or to those alone that have a grid."""
    left = {leaf.path for leaf in of_16_bits(layout, noise)} if on_grid else set[str]()

    def move(homes: Any, key: Any, sign: Any) -> Any:
        made = _over(layout, homes, lambda tree: virtual(tree, noise, key, sign=sign, layout=layout))
        return {path: homes[path] if path in left else x for path, x in made.items()}

    return jitted(move, donate_argnums=0)


@lru_cache(maxsize=32)
def updating(layout: Layout, noise: Noise, sign: int, exact: bool, on_grid: bool) -> Any:
    """The jitted function that adds weighted noise to all leaves, or to those alone that have a grid."""

    def move(homes: Any, weighted: Any) -> Any:
        def update(tree: Any) -> Any:
            if on_grid:
                return updated_on_grid(tree, noise, weighted, sign, layout)
            return updated(tree, noise, weighted, sign=sign, exact=exact, layout=layout)

        return _over(layout, homes, update)

    return jitted(move, donate_argnums=0)


@lru_cache(maxsize=32)
def snapping(layout: Layout, noise: Noise) -> Any:
    """The jitted function that rounds leaves to the grid."""

    def move(homes: Any) -> Any:
        names = [leaf.path for leaf in on_a_grid(layout, noise)]
        return dict(homes) | {path: snapped(homes[path], noise, layout=layout, within=path) for path in names}

    return jitted(move, donate_argnums=0)


@lru_cache(maxsize=32)
def sampling(layout: Layout, noise: Noise, size: int | None) -> Any:
    """The jitted function that writes perturbed copies into a store, or into some members of a population."""
    trains = {leaf.path for leaf in layout.homes if leaf.trainable}

    def fill(out: Any, homes: Any, keys: Any, signs: Any, first: Any) -> Any:
        def one(i: Any, filled: Any) -> Any:
            made = _over(layout, homes, lambda tree: virtual(tree, noise, keys[i], sign=signs[i], layout=layout))
            return {
                path: cast(made[path], x.dtype)
                if size is None
                else _lax.dynamic_update_index_in_dim(x, cast(made[path], x.dtype), first + i, 0)
                for path, x in filled.items()
            }

        zero = in_jax.opaque_zero(keys[0, 0])
        filled = {path: held(x, zero) for path, x in out.items() if path in trains}
        filled = one(0, filled) if len(keys) == 1 else _lax.fori_loop(0, len(keys), one, filled)
        return dict(out) | {path: cast(x, out[path].dtype) for path, x in filled.items()}

    return jitted(fill, donate_argnums=0, keep_unused=True)


def members_at_once(layout: Layout, members: int) -> int:
    """How many members are sampled by one call: each by itself, with several threads, unless all of them are copied."""
    copied = any(is_held_as_bits(leaf.dtype) for leaf in layout.homes if leaf.trainable)
    return members if copied else 1


@lru_cache(maxsize=32)
def perturbed_size(layout: Layout, noise: Noise, paths: tuple[str, ...]) -> Any:
    """The jitted function that tells how large some leaves would be, perturbed."""

    def look(homes: Any, key: Any, sign: Any) -> Any:
        made = _over(layout, homes, lambda tree: virtual(tree, noise, key, sign=sign, layout=layout))
        return {path: largest_of(made[path]) for path in paths}

    return jitted(look)


@lru_cache(maxsize=32)
def updated_size(layout: Layout, noise: Noise, sign: int, paths: tuple[str, ...]) -> Any:
    """The jitted function that tells how large some leaves would be, updated."""

    def look(homes: Any, weighted: Any) -> Any:
        made = _over(layout, homes, lambda tree: updated_on_grid(tree, noise, weighted, sign, layout))
        return {path: largest_of(made[path]) for path in paths}

    return jitted(look)
