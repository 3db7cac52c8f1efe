"""What rounding loses of a 16-bit leaf that moves on a device, in arrays whose sizes are known before it moves.

A leaf has tiles of 2,048 parameters. First it is looked at, without a write: how many parameters of each tile would
not be given back by taking the change back. So many have room in the log of each tile; the few tiles that lose more are
kept whole. The log says how far a parameter is from what taking back gives, as that of the host does
(`kernels/cpu/undo_log.py`), or, where that is far, which one it was.

```
near      (tiles, room), 16 bits    place in the tile, 11 bits | how far, 5 bits; 0 for none
far       (tiles, room), 32 bits    place in the tile, 16 bits | the parameter as it was; all ones for none
whole     (n, 2,048), 16 bits       tiles as they were
```
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from flatstore.es.in_jit import weighted_change
from flatstore.es.on_device.looking import bits_of, reduced
from flatstore.es.on_device.tiles import TILE, found, in_tiles, places_in, spread, whole_tiles
from flatstore.es.weights import WeightedSeeds
from flatstore.kernels.xla import added, dithered, jitted, loaded, rounded
from flatstore.layout import Array
from flatstore.noise import Noise, in_jax

jnp: Any = jax.numpy
_jax: Any = jax
_lax: Any = jax.lax
_U, _H = np.uint32, np.uint16

AT_ONCE, AT_ONCE_ON_DEVICE = 1 << 16, 1 << 22
"""Parameters whose weighted noise is summed together."""

_ROOMS = [0, *sorted(x << i for x in (4, 6) for i in range(9))]
_FAR, _NONE = 32, _U(0xFFFFFFFF)


class Seeded(NamedTuple):
    """The noise of a seed, so many times: a change, as `WeightedSeeds` are."""

    key: Array
    """The two words of the seed."""
    times: Any
    """float32."""


Change = Seeded | WeightedSeeds


class Kind(NamedTuple):
    """What the jitted functions for a leaf depend on, besides their arguments."""

    noise: Noise
    scale: float
    dtype: str


class Room(NamedTuple):
    """The sizes of a log."""

    near: int
    far: int
    whole: int


class LeafLog(NamedTuple):
    """The log of a leaf."""

    near: Any
    far: Any
    whole: Any
    numbers: Any
    """Those of the tiles that are kept whole; beyond the last tile for none."""
    checksum: Any
    """Two numbers, uint32, that depend on each parameter after the move, and on its place."""

    @property
    def nbytes(self) -> int:
        """The bytes that it holds."""
        return sum(int(x.nbytes) for x in self)


class Survey(NamedTuple):
    """What is known of a leaf before it moves."""

    near: Array
    """How many parameters of each tile are lost, and near, shape (tiles,)."""
    far: Array
    """How many are lost, and far."""
    largest: float
    """The largest magnitude after the move, before it is rounded."""


def survey(kind: Kind, x: Any, index: Any, change: Change) -> Survey:
    """Look at what a move would lose."""
    near, far, largest = _surveying(kind)(x, index, change)
    return Survey(
        np.asarray(near).reshape(-1), np.asarray(far).reshape(-1), float(np.asarray(largest).view(np.float32))
    )


def room_for(seen: Survey) -> tuple[Room, Array]:
    """The smallest room for the log of a leaf, and the numbers of the tiles that are kept whole."""
    far = _room(seen.far, 4)
    near = _room(np.where(seen.far > far, TILE, seen.near), 2)
    numbers = np.flatnonzero((seen.near > near) | (seen.far > far)).astype(np.int32)
    # Not compiled again for each number of them: a power of two, the rest beyond the last tile.
    whole = 1 << (len(numbers) - 1).bit_length() if len(numbers) else 0
    return Room(near, far, whole), np.pad(numbers, (0, whole - len(numbers)), constant_values=len(seen.near))


def _room(counts: Array, width: int) -> int:
    """The room for each tile with which all of the log, at so many bytes for each parameter, takes the fewest bytes."""
    taken = [len(counts) * room * width + int((counts > room).sum()) * 2 * TILE for room in _ROOMS]
    return _ROOMS[int(np.argmin(taken))]


def moved(kind: Kind, room: Room, x: Any, index: Any, change: Change, numbers: Array) -> tuple[Any, LeafLog]:
    """A leaf moved, which is donated, and what takes it back."""
    x, near, far, whole = _moving(kind, room)(x, index, change, numbers)
    return x, LeafLog(near, far, whole, _jax.device_put(numbers, x.device), checksum(x))


def restored(kind: Kind, x: Any, index: Any, change: Change, log: LeafLog) -> Any:
    """A leaf as it was before it was moved; it is donated."""
    return _restoring(kind)(x, index, change, log)


def added_again(kind: Kind, x: Any, index: Any, change: Change) -> Any:
    """A leaf moved as it was before, without a log; it is donated."""
    return _moving(kind, None)(x, index, change, np.zeros(0, np.int32))[0]


def checksum(x: Any) -> Any:
    """Two numbers that depend on each parameter of a leaf, and on its place."""
    return _checking()(x)


@lru_cache(maxsize=1)
def _checking() -> Any:
    def parts(x: Any, places: Any) -> tuple[Any, Any]:
        mixed = (bits_of(x).astype(_U) ^ places * _U(0x9E3779B1)) * _U(0x85EBCA77)
        mixed = (mixed ^ mixed >> _U(15)) * _U(0xC2B2AE3D)
        return mixed, mixed ^ mixed >> _U(16)

    def both(one: Any, other: Any) -> tuple[Any, Any]:
        return one[0] + other[0], one[1] + other[1]

    def check(x: Any) -> Any:
        return jnp.stack(reduced(x, parts, (_U(0), _U(0)), both))

    return jitted(check)


@lru_cache(maxsize=64)
def _surveying(kind: Kind) -> Any:
    def look(x: Any, index: Any, change: Any) -> Any:
        flat = x.reshape(-1)
        _, back, sums = _ends(kind, flat, _lax.iota(_U, flat.size), index, change)
        near, far = _lost(bits_of(flat), back)
        numbers = near.astype(np.int32), far.astype(np.int32), sums & _U(0x7FFFFFFF)

        def both(one: Any, other: Any) -> Any:
            return one[0] + other[0], one[1] + other[1], _lax.max(one[2], other[2])

        zeros = np.int32(0), np.int32(0), _U(0)
        near, far, largest = _lax.reduce(tuple(map(in_tiles, numbers)), zeros, both, (1,))
        return near, far, largest.max()

    return jitted(look)


@lru_cache(maxsize=64)
def _moving(kind: Kind, room: Room | None) -> Any:
    def move(x: Any, index: Any, change: Any, numbers: Any) -> Any:
        flat, log = x.reshape(-1), ()
        if room is not None:
            _, back, _ = _ends(kind, flat, _lax.iota(_U, flat.size), index, change)
            places = [found(bits, n) for bits, n in zip(_bits_of_lost(bits_of(flat), back), room[:2], strict=True)]
            (near, _), (_, far) = (_entries(kind, flat, place, index, change) for place in places)
            log = near, far, bits_of(flat.at[places_in(numbers)].get(mode="fill", fill_value=0))
        # Written when all of the log is read: otherwise XLA copies the leaf.
        after = [part.sum(dtype=_U) for part in log]
        there, _, _ = _ends(kind, flat, _lax.iota(_U, flat.size), index, change, *after)
        return _lax.bitcast_convert_type(there, x.dtype).reshape(x.shape), *log

    return jitted(move, donate_argnums=0)


@lru_cache(maxsize=64)
def _restoring(kind: Kind) -> Any:
    def restore(x: Any, index: Any, change: Any, log: LeafLog) -> Any:
        flat = x.reshape(-1)
        (back,) = _over_parts(kind, flat, _lax.iota(_U, flat.size), index, change, _taken_back)
        place = jnp.where(log.near == 0, TILE, (log.near >> _H(5)).astype(np.int32))
        lost, distance = spread(place, log.near & _H(31), flat.size)
        distance = distance.astype(np.int32)
        steps = jnp.where(lost, (distance >> 1) ^ -(distance & 1), 0)
        back = _ordered(_wrapped(_ordered(back.astype(np.int32)) + steps)) & 0xFFFF
        place = jnp.where(log.far == _NONE, TILE, (log.far >> _U(16)).astype(np.int32))
        lost, bits = spread(place, log.far.astype(_H), flat.size)
        back = jnp.where(lost, bits, back.astype(_H))
        if log.numbers.size:
            back = jnp.where(*whole_tiles(log.numbers, log.whole, flat.size), back)
        return _lax.bitcast_convert_type(back, x.dtype).reshape(x.shape)

    return jitted(restore, donate_argnums=0)


def _over_parts(
    kind: Kind, x: Any, positions: Any, index: Any, change: Any, function: Any, *after: Any
) -> tuple[Any, ...]:
    """What `function(parameters, what is added, random words, zero)` makes of parameters at these positions of a leaf.

    It is computed when the numbers `after` are known. Sums of the noise of many seeds are taken part by part; the noise
    of one is made where it is used.
    """
    zero = in_jax.opaque_zero(change.key[0], *after)
    if isinstance(change, Seeded):
        places = in_jax.plus((index[0], index[1]), (positions + zero, _U(0)))
        steps = in_jax.steps(kind.noise, kind.scale, (change.key[0], change.key[1]), places)
        return function(x, change.times * (steps.astype(np.float32) * np.float32(kind.noise.step)), None, zero)
    size = max(1, min(x.size, AT_ONCE if _jax.default_backend() == "cpu" else AT_ONCE_ON_DEVICE))

    def one(given: Any) -> tuple[Any, ...]:
        bits, positions = given
        places = in_jax.plus((index[0], index[1]), (positions + zero, _U(0)))
        delta, word, _ = weighted_change(kind.noise, change, kind.scale, places, zero, np.dtype(np.float32))
        return function(_lax.bitcast_convert_type(bits, x.dtype), delta, word, zero)

    given = [jnp.pad(y.reshape(-1), (0, -y.size % size)).reshape(-1, size) for y in (bits_of(x), positions)]
    return tuple(y.reshape(-1)[: x.size].reshape(x.shape) for y in _lax.map(one, given))


def _ends(kind: Kind, x: Any, positions: Any, index: Any, change: Any, *after: Any) -> tuple[Any, ...]:
    """The bits of parameters that are moved, of what taking back gives then, and of what they are before rounding."""

    def ends(x: Any, delta: Any, word: Any, zero: Any) -> tuple[Any, Any, Any]:
        sums = added(loaded(x, zero), delta)
        there = rounded(sums, x.dtype) if word is None else dithered(sums, x.dtype, word)
        return bits_of(there), *_taken_back(there, delta, word, zero), bits_of(sums)

    return _over_parts(kind, x, positions, index, change, ends, *after)


def _taken_back(x: Any, delta: Any, word: Any, zero: Any) -> tuple[Any]:
    """The bits of what taking a change back gives of parameters that were moved."""
    real = added(loaded(x, zero), -delta)
    return (bits_of(rounded(real, x.dtype) if word is None else dithered(real, x.dtype, ~word)),)


def _entries(kind: Kind, flat: Any, place: Any, index: Any, change: Any) -> tuple[Any, Any]:
    """The entries of a log, near and far, for these places of each tile."""
    tile = _lax.broadcasted_iota(np.int32, place.shape, 0)
    at = jnp.minimum(tile * TILE + place, flat.size - 1)
    x = flat[at]
    _, back, _ = _ends(kind, x, at.astype(_U), index, change)
    bits = bits_of(x).astype(np.int32)
    near = jnp.where(place < TILE, place << 5 | _distance(bits, back.astype(np.int32)) & 31, 0)
    far = jnp.where(place < TILE, (place << 16 | bits).astype(_U), _NONE)
    return near.astype(_H), far


def _distance(bits: Any, back: Any) -> Any:
    """How far parameters are from what taking back gives: 0, 1, 2, 3, 4 for 0, -1, 1, -2, 2."""
    steps = _wrapped(_ordered(bits) - _ordered(back))
    return (steps << 1) ^ (steps >> 31)


def _lost(bits: Any, back: Any) -> tuple[Any, Any]:
    """Whether parameters are lost, and near; whether they are lost, and far."""
    distance = _distance(bits.astype(np.int32), back.astype(np.int32))
    return (distance > 0) & (distance < _FAR), distance >= _FAR


def _bits_of_lost(bits: Any, back: Any) -> Any:
    """A bit for each parameter that is lost and near, and for each that is lost and far: words of a tile."""
    words = [in_tiles(x.astype(_U)).reshape(-1, TILE // 32, 32) << _lax.iota(_U, 32) for x in _lost(bits, back)]

    def both(one: Any, other: Any) -> Any:
        return one[0] | other[0], one[1] | other[1]

    return _lax.reduce(tuple(words), (_U(0), _U(0)), both, (2,))


def _wrapped(x: Any) -> Any:
    """The low 16 bits as a signed number."""
    return (x << 16) >> 16


def _ordered(bits: Any) -> Any:
    """The place of a 16-bit float, given by its bits, among all of them; and its low 16 bits from the place."""
    signed = _wrapped(bits)
    return signed ^ ((signed >> 15) & 0x7FFF)
