"""Sampling: a population of perturbed copies of one store."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.noise import Noise, as_keys
from flatstore.population import Population
from flatstore.store import Store
from flatstore.structure import Difference, StructureError

SCRATCH = 1 << 18
"""Numbers drawn at once: a block of members and columns; with its temporaries it stays well below 32 MiB."""


def sample(
    out: Population | Store, store: Store, noise: Noise, seeds: Any, *, sign: int = 1, antithetic: bool = False
) -> None:
    """Write `store + sign * noise(seed)` into `out`, a store, or a population with a seed for each member.

    With `antithetic` there is a seed for each pair: member 2 i is the store plus noise number i, member 2 i + 1 the
    store minus it. Shared leaves of `out` are not touched.

    Raises `ValueError` for layouts that differ, another number of seeds, or trainable leaves that are not floating;
    `LentError` while `out` is lent. Nothing is written then.
    """
    if out.layout != store.layout:
        raise layouts_differ("out", out, store)
    size = out.size if isinstance(out, Population) else 1
    keys = as_keys(np.atleast_1d(seeds))
    expected = size // 2 if antithetic else size
    if keys.shape != (expected,) or (antithetic and size % 2):
        raise ValueError(
            f"expected {expected} seeds for {size} members{' in pairs' if antithetic else ''}, got shape "
            f"{keys.shape}; fix: fs.seeds(seed, {expected})" + (" and an even size" if antithetic else "")
        )
    if sign not in (1, -1):
        raise ValueError(f"expected sign 1 or -1, got {sign}; fix: the strength belongs to the noise")
    noise.check_grid(out.layout)
    rows = max(1, min(len(keys), SCRATCH // 128))
    width = max(1, SCRATCH // rows)
    with out.memory.writing():
        for leaf in (leaf for leaf in out.layout.homes if leaf.trainable):
            columns, centre = out.columns(leaf), store[leaf.path].reshape(leaf.size)
            for start in range(0, leaf.size, width):
                stop = min(start + width, leaf.size)
                middle = centre[start:stop].copy()  # the store may be one of the members
                for row in range(0, len(keys), rows):
                    delta = noise.delta(leaf, keys[row : row + rows], start, stop)
                    if antithetic:
                        block = columns[2 * row : 2 * (row + rows), start:stop]
                        block[0::2], block[1::2] = middle + delta, middle - delta
                    else:
                        columns[row : row + rows, start:stop] = middle + sign * delta


def layouts_differ(name: str, got: Any, expected: Any) -> StructureError:
    """The error for two layouts that are not the same: what differs, leaf by leaf."""
    theirs, ours = got.layout.by_path, expected.layout.by_path
    differences = [
        Difference(path, _row(ours.get(path)), _row(theirs.get(path)), "make both from one layout")
        for path in {**ours, **theirs}
        if ours.get(path) != theirs.get(path)
    ]
    return StructureError(differences, f"of {name} unlike the store's layout")


def _row(leaf: Any) -> str:
    if leaf is None:
        return "nothing"
    marks = ["" if leaf.trainable else " frozen", f" tied to {leaf.tied}" if leaf.tied else ""]
    return f"{leaf.spec} at {leaf.offset}{''.join(marks)}"
