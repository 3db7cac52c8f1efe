"""Sampling: a population of perturbed copies of one store."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.noise import Noise
from flatstore.population import Population
from flatstore.store import Store
from flatstore.structure import Difference, StructureError

SCRATCH = 1 << 18
"""Parameters in a block of columns; with its temporaries a block stays well below 32 MiB."""


def sample(out: Population, store: Store, noise: Noise, seeds: Any, *, sign: int = 1, antithetic: bool = False) -> None:
    """Write `store + sign * noise(seed)` into the members of `out`, with a seed for each.

    With `antithetic` there is a seed for each pair: member 2 i is the store plus noise number i, member 2 i + 1 the
    store minus it. Shared leaves of `out` are not touched.

    Raises `ValueError` for layouts that differ or another number of seeds, `LentError` while `out` is lent. Nothing
    is written then.
    """
    if out.layout != store.layout:
        raise layouts_differ("out", out, store)
    keys = np.asarray(seeds, np.uint64)
    expected = out.size // 2 if antithetic else out.size
    if keys.shape != (expected,) or (antithetic and out.size % 2):
        raise ValueError(
            f"expected {expected} seeds for {out.size} members{' in pairs' if antithetic else ''}, got shape "
            f"{keys.shape}; fix: fs.seeds(seed, {expected})" + (" and an even size" if antithetic else "")
        )
    if sign not in (1, -1):
        raise ValueError(f"expected sign 1 or -1, got {sign}; fix: the strength belongs to the noise")
    noise.check(out.layout)
    with out.memory.writing():
        for leaf in out.layout.homes:
            if not leaf.trainable:
                continue
            columns, centre = out.columns(leaf), store[leaf.path].reshape(leaf.size)
            strength = leaf.dtype.type(sign * noise.scale_of(leaf.path))
            width = max(1, SCRATCH // out.size)
            for start in range(0, leaf.size, width):
                block, middle = columns[:, start : start + width], centre[start : start + width]
                first = leaf.index + start
                delta = strength * noise.draw(keys, first, first + block.shape[1]).astype(leaf.dtype, copy=False)
                if antithetic:
                    block[0::2], block[1::2] = middle + delta, middle - delta
                else:
                    block[:] = middle + delta


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
