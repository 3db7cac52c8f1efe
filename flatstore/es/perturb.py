"""Perturbing a store in place, and taking it back to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import numpy as np

from flatstore.arrays import Array
from flatstore.es.passes import (
    ROOM,
    TASK,
    WIDTH,
    Item,
    Pass,
    blocks,
    deltas,
    items,
    lines_of,
    moved,
    passes,
    random_words,
    refuse_unknown,
    there_and_back,
)
from flatstore.kernels.moving import perturbation
from flatstore.kernels.threads import Interrupts
from flatstore.noise import Noise, Seed, as_keys, seeds
from flatstore.store import Store


def snap(store: Store, noise: Noise) -> None:
    """Round the parameters that `noise` moves to its grid, in place: to the nearest multiple, minus zero to zero.

    Once, before the first `perturb`, which leaves parameters on the grid; `update` does not. float32 parameters move by
    at most `noise.step / 2`.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.array([0.1, -0.0], "f4")})
    >>> snap(store, fs.Normal(0.02, bound=1.0))
    >>> (store["w"] / fs.Normal(0.02, bound=1.0).grid("f4")).tolist()
    [1677722.0, 0.0]

    Raises `ValueError` for parameters that are not finite or reach the bound, and for 16-bit leaves, which have no
    grid; `LentError` while the store is lent. Nothing is written then.
    """
    todo = passes(store, noise)
    refuse_16_bit(todo)
    views = [(leaf, *store.columns(leaf)) for leaf in moved(store, noise)]
    with store.memory.writing():
        for _, values in views:
            grid = noise.grid(values.dtype)
            for start, stop in blocks(values.size, TASK):
                if not (np.abs(np.rint(values[start:stop] / grid) * grid) < noise.bound).all():
                    raise refused(store, noise, "snap")
        for _, values in views:
            grid = values.dtype.type(noise.grid(values.dtype))
            for start, stop in blocks(values.size, TASK):
                part = values[start:stop]
                part[...] = np.rint(part / grid) * grid + 0  # minus zero plus zero is zero


def perturb(store: Store, noise: Noise, seed: Seed, *, sign: int = 1, exact: bool = True) -> None:
    """Add `sign` times the noise of a seed to the store, in place. The opposite sign takes it back, to the bit.

    On the noise's grid (see `snap`) every sum is exact, so any number of perturbations may be nested and undone in any
    order. Frozen leaves and leaves of scale 0 are not touched. It takes no memory that grows with the store.

    >>> import flatstore as fs
    >>> store, noise = fs.Store.from_tree({"w": np.linspace(-1, 1, 5, dtype="f4")}), fs.Normal(0.02)
    >>> snap(store, noise)
    >>> before = store.flat.tobytes()
    >>> perturb(store, noise, 7)
    >>> perturb(store, noise, 7, sign=-1)
    >>> store.flat.tobytes() == before
    True

    Args:
        store: the parameters, on the grid of the noise.
        noise: `fs.Normal` or `fs.Rademacher`, with the bound that no parameter may reach.
        seed: an integer below 2**64, or several that are hashed to one.
        sign: 1 or -1; 2 or -2 goes from one side of the centre to the other in one pass.
        exact: False for float sums: no grid, no bound, and no exact way back. The only way for 16-bit leaves, whose
            sums are rounded: every there-and-back may leave them elsewhere.

    Raises `ValueError` for parameters off the grid or past the bound, now or afterwards, with the leaf and its largest
    magnitude; for 16-bit leaves, unless `exact=False`; `LentError` while the store is lent. It is as it was then.
    """
    if sign not in (1, -1, 2, -2):
        raise ValueError(f"expected sign 1, -1, 2 or -2, got {sign}; fix: the strength belongs to the noise")
    todo = passes(store, noise)
    if exact:
        refuse_16_bit(todo)
    else:
        refuse_unknown(store, moved(store, noise))
    table = deltas(noise, lines_of(store.layout, noise).scales)
    draw = noise.kind, noise.width, key_of(seed), table
    scratch: dict[tuple[int, str], Any] = {}

    def move(item: Item, end: int, sign: int, bound: float, worker: int) -> int:
        p, start, _ = item
        if (worker, p.dtype) not in scratch:
            scratch[worker, p.dtype] = random_words(noise.width, 1, WIDTH), *number_rows(p.real)
        rows = scratch[worker, p.dtype]
        return perturbation(p.dtype)(start, end, p.raw, p.pieces, draw, p.real(sign), grid_of(p, bound), rows)

    def forth(item: Item, worker: int) -> int:
        return move(item, item[2], sign, noise.bound if exact else 0.0, worker)

    def back(item: Item, end: int, worker: int) -> None:
        move(item, end, -sign, 0.0, worker)

    with store.memory.writing():
        if there_and_back(items(todo, TASK), forth, back):
            raise refused(store, noise, "perturb")


@contextlib.contextmanager
def perturbed(store: Store, noise: Noise, seed: Seed, *, sign: int = 1) -> Generator[Store]:
    """The store, perturbed for the time of a `with` block, and given back to the bit, also after an exception. Nests.

    Takes and raises what `perturb` does; `LentError` at the end if the store is still lent then.
    """
    done = False
    try:
        with Interrupts():  # what is raised by Ctrl-C finds the store perturbed, and so given back
            perturb(store, noise, seed, sign=sign)
            done = True
        yield store
    finally:
        if done:
            perturb(store, noise, seed, sign=-sign)


def key_of(seed: Seed) -> Array:
    """A seed as a Philox key, shape (1,): an integer as it is, several hashed to one."""
    if isinstance(seed, (int, np.integer)):
        if not 0 <= seed < 1 << 64:
            raise ValueError(
                f"expected a seed in 0 .. 2**64 - 1, got {seed}; fix: fs.seeds(seed, 1) hashes larger ones"
            )
        return np.array([seed], np.uint64)
    return as_keys(seeds(seed, 1))


def grid_of(p: Pass, bound: float) -> tuple[Any, Any, Any]:
    """What the compiled check compares with: the grid, its reciprocal, and the bits of the bound."""
    size = p.real(p.grid or 1.0)
    bits: Any = np.int64 if p.real is np.float64 else np.int32
    return size, p.real(1) / size, p.real(bound).view(bits)


def number_rows(real: Any) -> tuple[Array, Array]:
    """Room for what a block's draws find in a table, and for the parameters after the move."""
    return np.zeros(WIDTH + ROOM, np.float32), np.zeros(WIDTH, real)


def refuse_16_bit(todo: list[Pass]) -> None:
    """Raise `ValueError` if there are leaves without a grid."""
    narrow = [p.dtype for p in todo if not p.grid]
    if narrow:
        raise ValueError(
            f"expected float32 or float64 leaves, which have a grid for exact undo, got {', '.join(narrow)}; "
            "fix: es.sample into a second store, or exact=False, which drifts"
        )


def refused(store: Store, noise: Noise, verb: str) -> ValueError:
    """The error for a store that is off the grid or reaches the bound: the leaf at fault, and its largest magnitude."""
    worst, off = ("", -1.0), None
    for leaf in moved(store, noise):
        (values,) = store.columns(leaf)
        grid = values.dtype.type(noise.grid(values.dtype))
        parts = [values[start:stop] for start, stop in blocks(values.size, TASK)]
        largest = float(np.max([np.abs(part).max() for part in parts]))
        if not all((np.rint(part / grid) * grid + 0).tobytes() == part.tobytes() for part in parts):
            off = off or (leaf.path, largest)
        if not (largest <= worst[1] or np.isnan(worst[1])):
            worst = leaf.path, largest
    if off and worst[1] < noise.bound and verb != "snap":
        return ValueError(
            f"{off[0]!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
            f"largest {off[1]:.6g}; fix: es.snap(store, noise) once"
        )
    return ValueError(
        f"{worst[0]!r}: expected parameters below the bound {noise.bound:g}, before and after, got a largest magnitude "
        f"of {worst[1]:.6g}; fix: a larger bound="
    )
