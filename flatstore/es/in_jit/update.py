"""Updates inside `jit`: the bits of `es.update`, from sums of whole numbers in two words of 32 bits."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from flatstore.es.groups import IN_WEIGHTS, check_sign
from flatstore.es.in_jit.blocks import Block, map_blocks
from flatstore.es.weights import WeightedSeeds
from flatstore.kernels.xla import added, cast, dithered, float_of, held, loaded
from flatstore.layout import Layout
from flatstore.noise import ROUNDING, Noise, in_jax

jnp: Any = jax.numpy
_lax: Any = jax.lax
_U = np.uint32

CHUNK, CHUNK_ON_DEVICE = 1 << 16, 1 << 22
"""Parameters whose sums are held at a time: few enough for a cache, or enough to keep an accelerator busy."""


def updated(
    params: Any,
    noise: Noise,
    weighted: WeightedSeeds,
    *,
    sign: int = 1,
    exact: bool = True,
    layout: Layout | None = None,
    within: str = "",
    at: Any = (),
) -> Any:
    """`params + sum_i weights[i] * noise(seeds[i])`, for use inside `jit`, with the bits of `es.update`.

    The leaves are new arrays, or the donated ones in place; frozen leaves and leaves of scale 0 are the same objects.
    The grid and the bound are not checked here, but by `es.on_grid`. Other weights and seeds do not compile it again,
    as long as their number is the same.

    Temporaries: up to 32 bytes for each of the 65,536 parameters that are summed at a time, 2 MiB, however many leaves,
    parameters and seeds there are; on an accelerator 4 million are summed at a time, in 80 MiB. On a CPU, a bfloat16
    leaf is copied. Each leaf is compiled
    separately, in about a third of a second. Arrays that are split over devices go into `shard_map`, with `at`.

    >>> import jax, flatstore as fs
    >>> noise, weights = fs.Normal(0.02), [0.5, -0.25, 0.125]
    >>> store = fs.Store.from_tree({"w": np.zeros(5, "f4")})
    >>> step = jax.jit(lambda params, weighted: updated(params, noise, weighted))
    >>> with store.lend() as params:
    ...     after = np.asarray(step(params, fs.es.weighted_seeds(noise, fs.seeds(1, 3), weights))["w"])
    >>> fs.es.update(store, noise, fs.seeds(1, 3), weights)
    >>> after.tobytes() == store["w"].tobytes()
    True

    Args:
        params: a tree of arrays, on the grid of the noise.
        noise: `fs.Normal` or `fs.Rademacher`.
        weighted: what `es.weighted_seeds` makes outside of `jit`; passed in as an argument, a pytree of integers.
        sign: 1, or -1 to take an update back, to the bit; not for 16-bit leaves.
        exact: False for a float sum, rounded to the dtype, as in `es.update`.
        layout: where the leaves stand in the index. This and the next two are as in `es.virtual`.
        within: the path of the node of the layout that `params` is.
        at: where in each leaf of the layout the arrays begin.

    Raises `TypeError` unless `weighted` was made by `weighted_seeds`; `ValueError` for a sign out of range, or an array
    of 2**31 parameters or more; and the errors of `es.virtual`.
    """
    return _updated(params, noise, weighted, sign, exact, layout, within, at, False)


def updated_on_grid(params: Any, noise: Noise, weighted: WeightedSeeds, sign: int, layout: Layout) -> Any:
    """What `updated` gives, but for 16-bit leaves, which are the same objects."""
    return _updated(params, noise, weighted, sign, True, layout, "", (), True)


def _updated(
    params: Any,
    noise: Noise,
    weighted: WeightedSeeds,
    sign: int,
    exact: bool,
    layout: Layout | None,
    within: str,
    at: Any,
    grids_alone: bool,
) -> Any:
    _check(weighted)
    check_sign(sign, IN_WEIGHTS)
    before: list[Any] = []  # one leaf after the other, in the same memory

    def move(x: Any, block: Block) -> Any:
        on_grid = exact and x.dtype.itemsize > 2
        if grids_alone and not on_grid:
            return x
        if sign < 0 and not on_grid:
            raise ValueError(
                f"{block.leaf.path!r}: expected a float32 or float64 leaf on a grid to take back to the bit, got "
                f"{block.leaf.spec if exact else 'exact=False'}; fix: keep a copy of the parameters from before"
            )
        if x.size >= 1 << 31:
            raise ValueError(
                f"{block.leaf.path!r}: expected fewer than 2**31 parameters, got {x.size}; "
                "fix: split the leaf, and pass each part with at="
            )
        moved, before[:] = _moved(x, block, noise, weighted, sign, on_grid, in_jax.opaque_zero(*before))
        return moved

    return map_blocks(move, params, noise, layout, within, at)


def _moved(
    x: Any, block: Block, noise: Noise, weighted: WeightedSeeds, sign: int, on_grid: bool, zero: Any
) -> tuple[Any, list[Any]]:
    """One leaf, moved chunk by chunk: the sums of a chunk stay in the cache, and no memory grows with the leaf.

    Also returns a number that is computed once the leaf has been summed, so that the next leaf can wait for it.
    """
    flat, size = held(x.reshape(-1), zero), min(x.size, CHUNK if jax.default_backend() == "cpu" else CHUNK_ON_DEVICE)
    # A float64 grid is 2**29 times as fine as a step.
    finer = round(math.log2(noise.step / noise.grid(x.dtype))) if on_grid else 0
    drop = jnp.maximum(0, jnp.asarray(weighted.point) - finer)

    def chunk(i: Any, state: Any) -> Any:
        flat, _ = state
        start = i * size
        # The last chunk begins earlier, so that it ends where the leaf does: what was moved before stays.
        first = jnp.minimum(start, x.size - size)
        position = first.astype(_U) + zero + _lax.iota(_U, size)
        index = block.indices_of(position)
        old = cast(_lax.dynamic_slice(flat, (first,), (size,)), x.dtype)
        real = loaded(old, zero)
        change, word, last = weighted_change(
            noise, weighted, block.scale(noise), index, zero, real.dtype, drop if on_grid else None
        )
        new = added(real, sign * change)
        new = jnp.where(position >= start.astype(_U), dithered(new, x.dtype, word), old)
        return _lax.dynamic_update_slice(flat, cast(new, flat.dtype), (first,)), last

    flat, last = _lax.fori_loop(0, -(-x.size // size), chunk, (flat, jnp.zeros((), _U)))
    return cast(flat, x.dtype).reshape(x.shape), [last]


def weighted_change(
    noise: Noise,
    weighted: WeightedSeeds,
    scale: float,
    index: in_jax.Words,
    zero: Any,
    real: Any,
    drop: Any = None,
) -> tuple[Any, Any, Any]:
    """What an update adds at each index: rounded at random where so many bits are dropped, for a grid, or as it is.

    Also returns the random words that sums are rounded by, and a number that is known when all is summed.
    """
    total = _weighted_sum(noise, weighted, scale, index, zero)
    last = total[0][0]
    word = in_jax.numbers(ROUNDING, 32, (weighted.key[0], weighted.key[1]), index)
    exponent = round(math.log2(noise.step)) - jnp.asarray(weighted.point)
    if drop is not None:
        # As many random bits as are rounded off: added before the shift, they carry with the right probability.
        random = shifted((word << _U(31) | _U(1 << 30), word >> _U(1)), 63 - drop)
        total, exponent = shifted(in_jax.plus(total, random), drop, signed=True), exponent + drop
    unit = float_of((exponent + 127).astype(_U) << _U(23))
    return as_float(total, real) * unit.astype(real), word, last


def _weighted_sum(noise: Noise, weighted: WeightedSeeds, scale: float, index: in_jax.Words, zero: Any) -> in_jax.Words:
    """The sum of weights times steps, an integer below 2**62 in magnitude, for each index."""

    def one(total: in_jax.Words, term: Any) -> tuple[in_jax.Words, None]:
        seed, weight = term
        # Kept from fusing into both words of the product, which would draw twice.
        step = _lax.optimization_barrier(in_jax.steps(noise, scale, (seed[0], seed[1]), index))
        return in_jax.plus(total, product(jnp.broadcast_to(weight, step.shape), step)), None

    start = jnp.broadcast_to(zero, index[0].shape)
    return _lax.scan(one, (start, start), (weighted.seeds, weighted.whole))[0]


def product(a: Any, b: Any) -> in_jax.Words:
    """The product of two int32 as words of a two's complement."""
    x, y = a.astype(_U), b.astype(_U)
    high = in_jax.high_word(x, y) - jnp.where(a < 0, y, _U(0)) - jnp.where(b < 0, x, _U(0))
    return x * y, high


def shifted(number: in_jax.Words, count: Any, signed: bool = False) -> in_jax.Words:
    """A number shifted right by `count` bits, 0 .. 63; a signed one is rounded down."""
    low, high = number
    near, far = (count & 31).astype(_U), count >= 32
    above = (high.astype(np.int32) >> 31).astype(_U) if signed else jnp.zeros_like(high)
    rest = (high.astype(np.int32) >> near.astype(np.int32)).astype(_U) if signed else high >> near
    # A shift by 32 has no meaning: by 31 and one more.
    return jnp.where(far, rest, low >> near | high << _U(1) << (_U(31) - near)), jnp.where(far, above, rest)


def as_float(number: in_jax.Words, dtype: Any) -> Any:
    """A number in two's complement, rounded to the nearest float32 or float64, ties to even."""
    low, high = number
    if dtype == np.float64:
        return high.astype(np.int32).astype(dtype) * 2.0**32 + low.astype(dtype)
    negative = high.astype(np.int32) < 0
    low, high = jnp.where(negative, ~low + _U(1), low), jnp.where(negative, ~high + (low == 0).astype(_U), high)
    # The 32 leading bits, the last one set if any follow: enough to round to 24 as all of them would.
    zeros = _lax.clz(high) & _U(31)
    below = (low << zeros != 0).astype(_U)
    leading = jnp.where(high == 0, low, high << zeros | low >> _U(1) >> (_U(31) - zeros) | below)
    power = jnp.where(high == 0, _U(127), _U(127 + 32) - zeros) << _U(23)
    magnitude = leading.astype(dtype) * float_of(power)
    return jnp.where(negative, -magnitude, magnitude)


def _check(weighted: Any) -> None:
    """Raise `TypeError` unless this is what `weighted_seeds` makes."""
    if not isinstance(weighted, WeightedSeeds):
        raise TypeError(
            f"expected weighted seeds, got {type(weighted).__name__}; fix: es.weighted_seeds(noise, seeds, weights), "
            "outside of jit"
        )
    n = weighted.whole.shape
    expected = [((*n, 2), np.uint32), (n, np.int32), ((), np.int32), ((2,), np.uint32)]
    if len(n) != 1 or [(x.shape, x.dtype) for x in weighted] != expected:
        raise TypeError(
            f"expected weighted seeds as es.weighted_seeds makes them, got "
            f"{', '.join(f'{x.dtype}{list(x.shape)}' for x in weighted)}; fix: pass them to jit as they are"
        )
