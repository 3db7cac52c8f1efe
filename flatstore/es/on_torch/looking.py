"""What is looked at in a store on a card: whether parameters are finite, on the grid, and below the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.on_torch.tables import Table
from flatstore.extras import require
from flatstore.layout import Array, Leaf
from flatstore.noise import Noise
from flatstore.store import OnTorch, array_of

AT_ONCE = 1 << 20
"""Parameters of a leaf that are looked at together."""


def parts(store: OnTorch, leaf: Leaf) -> Sequence[Any]:
    """A leaf, in parts that are small enough for what is computed of them on the way: views."""
    return store.homes[leaf.path].view(-1).split(AT_ONCE)


def largest(store: OnTorch, leaf: Leaf) -> float:
    """The largest magnitude in a leaf."""
    return max(float(part.abs().max()) for part in parts(store, leaf))


def to_grid(part: Any, noise: Noise, leaf: Leaf) -> Any:
    """Parameters rounded to the nearest multiples of the grid: a copy. Minus zero becomes zero."""
    grid = noise.grid(leaf.dtype)
    return (part / grid).round() * grid + 0.0


def refuse_not_finite(
    store: OnTorch, leaves: Sequence[Leaf], name: str = "parameters", fix: str = "go back to the last good ones"
) -> None:
    """Raise `ValueError` if a leaf holds NaN or an infinity."""
    for leaf in leaves:
        if not all(bool(part.isfinite().all()) for part in parts(store, leaf)):
            raise ValueError(f"{leaf.path!r}: expected finite {name}, got others; fix: {fix}")


def off_the_grid(store: OnTorch, noise: Noise, tables: Sequence[Table], fix: str) -> ValueError:
    """The error for parameters that are off the grid or reach the bound. The store is as it was before the move."""
    torch = require("torch", "torch")
    leaves = [leaf for table in tables for leaf in table.leaves]
    refuse_not_finite(store, leaves)
    for leaf in leaves:
        most = largest(store, leaf)
        if most >= noise.bound:
            return past_the_bound(noise, leaf.path, most, "pass a larger bound= of the noise")
        bits = torch.int32 if leaf.dtype.itemsize == 4 else torch.int64
        if not all(torch.equal(to_grid(x, noise, leaf).view(bits), x.view(bits)) for x in parts(store, leaf)):
            return ValueError(
                f"{leaf.path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {most:.6g}; fix: es.snap(store, noise) once"
            )
    worst = max(leaves, key=lambda leaf: largest(store, leaf))
    return ValueError(
        f"{worst.path!r}: expected parameters below the bound {noise.bound:g} after the move, got others, the largest "
        f"before it {largest(store, worst):.6g}; fix: {fix}"
    )


def not_finite_after(store: OnTorch, noise: Noise, key: Array, change: int, tables: Sequence[Table]) -> ValueError:
    """The error for 16-bit parameters that a move would make too large. The store is as it was before it."""
    leaves = [leaf for table in tables for leaf in table.leaves]
    refuse_not_finite(store, leaves)
    found = dict.fromkeys((leaf.path for leaf in leaves), 0.0)
    for leaf, at, begin, end in (stretch for table in tables for stretch in table.stretches):
        flat, indexed = store.homes[leaf.path].view(-1), replace(leaf, index=begin)
        for start in range(0, end - begin, AT_ONCE):
            stop = min(start + AT_ONCE, end - begin)
            part = array_of(flat[at + start : at + stop].cpu()).astype(np.float32)
            delta = noise.delta(indexed, key, start, stop)[0]
            found[leaf.path] = max(found[leaf.path], float(np.abs(part + change * delta).max()))
    leaf = max(leaves, key=lambda leaf: found[leaf.path])
    return ValueError(
        f"{leaf.path!r}: expected parameters that stay finite in {leaf.dtype}, got a magnitude of "
        f"{found[leaf.path]:.6g} after the move; fix: pass a noise of a smaller scale"
    )
