"""Places in tiles of parameters, of which a few are found, and get values: without a scatter.

XLA on a CPU writes what is scattered one by one. So a tile has a bit for each place, in words, and the bits before a
place say which of the values is its own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_U = np.uint32

TILE = 2048
"""Parameters in a tile."""


def in_tiles(x: Any) -> Any:
    """Numbers in rows, a tile each."""
    return jnp.pad(x, (0, -x.size % TILE)).reshape(-1, TILE)


def found(bits: Any, room: int) -> Any:
    """The places of the first bits of each tile, ascending, so many; `TILE` where there are no more."""
    through = jnp.cumsum(_lax.population_count(bits), 1, dtype=_U)
    nth = jnp.broadcast_to(_lax.iota(_U, room), (len(bits), room))
    word = _jax.vmap(partial(jnp.searchsorted, side="right"))(through, nth)
    at = jnp.minimum(word, TILE // 32 - 1)
    rest = jnp.take_along_axis(bits, at, 1)
    nth = nth - (jnp.take_along_axis(through, at, 1) - _lax.population_count(rest))
    place = word * 32
    for half in (16, 8, 4, 2, 1):  # the nth bit of the word
        count = _lax.population_count(rest & _U((1 << half) - 1))
        is_behind = nth >= count
        nth, rest = jnp.where(is_behind, nth - count, nth), jnp.where(is_behind, rest >> _U(half), rest)
        place += jnp.where(is_behind, half, 0)
    return jnp.where(word < TILE // 32, place, TILE).astype(np.int32)


def spread(place: Any, values: Any, size: int) -> tuple[Any, Any]:
    """Whether there is a value for each of the first `size` parameters, and which. Places are ascending, in tiles."""
    tiles, room = place.shape
    if not room:
        return jnp.zeros(size, bool), jnp.zeros(size, values.dtype)
    word = _lax.broadcasted_iota(np.int32, (tiles, TILE // 32, room), 1)
    bit = jnp.where(place[:, None] >> 5 == word, _U(1) << (place[:, None] & 31).astype(_U), _U(0))

    def both(one: Any, other: Any) -> Any:
        return one[0] | other[0], one[1] + other[1]

    bits, count = _lax.reduce((bit, (bit != 0).astype(_U)), (_U(0), _U(0)), both, (2,))
    before = (jnp.cumsum(count, 1, dtype=_U) - count)[..., None]
    each = _lax.broadcasted_iota(_U, (tiles, TILE // 32, 32), 2)
    rank = before + _lax.population_count(bits[..., None] & ((_U(1) << each) - _U(1)))
    tile = _lax.broadcasted_iota(np.int32, rank.shape, 0)
    found = values[tile, jnp.minimum(rank.astype(np.int32), room - 1)]
    return (bits[..., None] >> each & _U(1)).reshape(-1)[:size] != 0, found.reshape(-1)[:size]


def places_in(numbers: Any) -> Any:
    """The places in the leaf of each parameter of tiles; of the last one, some lie behind it."""
    return numbers[:, None] * TILE + jnp.arange(TILE, dtype=np.int32)


def whole_tiles(numbers: Any, values: Any, size: int) -> tuple[Any, Any]:
    """Whether each of the first `size` parameters is in one of the tiles of ascending numbers, and its value there."""
    tile = _lax.iota(np.int32, -(-size // TILE))
    row = jnp.minimum(jnp.searchsorted(numbers, tile), len(numbers) - 1)
    place = _lax.iota(np.int32, size)
    return (numbers[row] == tile)[place // TILE], values[row[place // TILE], place % TILE]
