"""Sampling: a population of perturbed copies of one store."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.es.passes import (
    ROOM,
    TASK,
    WIDTH,
    check_types,
    deltas,
    lines_of,
    pieces,
    random_words,
    refuse_other_dtypes,
    refuse_unknown,
)
from flatstore.kernels.generation import ranges
from flatstore.kernels.moving import sampling
from flatstore.kernels.storage import STORAGE
from flatstore.kernels.threads import each
from flatstore.noise import Noise, as_keys
from flatstore.population import Population
from flatstore.store import Store
from flatstore.structure import Difference, StructureError

BROOD = 16
"""Seeds whose random words a thread draws at a time."""


def sample(
    out: Population | Store, store: Store, noise: Noise, seeds: Any, *, sign: int = 1, antithetic: bool = False
) -> None:
    """Write `store + sign * noise(seed)` into `out`, a store, or a population with a seed for each member.

    With `antithetic` there is a seed for each pair: member 2 i is the store plus `sign` times noise number i, member
    2 i + 1 the store minus it. Sums are rounded to the dtype; where the store is on the noise's grid they are exact,
    and the bits are those of `perturb`. Shared leaves of `out` are not touched. The store may be `out`, or one of its
    members.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    >>> pop = fs.Population.zeros(store.layout, 4)
    >>> sample(pop, store, fs.Normal(0.02), fs.seeds(7, 2), antithetic=True)
    >>> bool((pop["w"][0] == -pop["w"][1]).all())
    True

    Raises `ValueError` for layouts that differ, another number of seeds, trainable leaves that are not floating, or
    parameters that are not finite; `LentError` while `out` is lent. Nothing is written then.
    """
    check_types(store, noise)
    if out.layout != store.layout:
        raise layouts_differ("out", out, store)
    size = out.size if isinstance(out, Population) else 1
    keys = as_keys(seeds if np.ndim(seeds) else [seeds])
    expected = size // 2 if antithetic else size
    if keys.shape != (expected,) or (antithetic and size % 2):
        raise ValueError(
            f"expected {expected} seeds for {size} members{' in pairs' if antithetic else ''}, got shape "
            f"{keys.shape}; fix: fs.seeds(seed, {expected})" + (" and an even size" if antithetic else "")
        )
    if sign not in (1, -1):
        raise ValueError(f"expected sign 1 or -1, got {sign}; fix: the strength belongs to the noise")
    noise.check_grid(out.layout)
    trainable = [leaf for leaf in out.layout.homes if leaf.trainable and leaf.size]
    refuse_other_dtypes(trainable)
    refuse_unknown(store, trainable)
    lines = lines_of(out.layout, noise)
    draw = noise.kind, noise.width, keys, deltas(noise, lines.scales)
    signs = np.array([sign, -sign] if antithetic else [sign], np.float64)
    tasks: list[tuple[str, int, int]] = []
    loops: dict[str, tuple[Any, ...]] = {}
    for name in dict.fromkeys(leaf.dtype.name for leaf in trainable):
        stored, real, _, _ = STORAGE[name]
        places = pieces(lines, out.runs(name), store.runs(name))
        loops[name] = sampling(name), out.raw(stored), store.raw(stored), places, real
        chunk = WIDTH * max(1, TASK // (WIDTH * size))
        tasks += [(name, at, min(at + chunk, end)) for begin, end in ranges(places) for at in range(begin, end, chunk)]
    scratch: dict[Any, Any] = {}

    def task(i: int, worker: int) -> None:
        name, start, stop = tasks[i]
        loop, to, centre, places, real = loops[name]
        if (worker, real) not in scratch:
            words = random_words(noise.width, min(BROOD, len(keys)), WIDTH)
            scratch[worker, real] = words, np.zeros(WIDTH + ROOM, np.float32), np.zeros(WIDTH, real)
        loop(start, stop, to, centre, places, draw, signs, scratch[worker, real])

    with out.memory.writing():
        each(task, len(tasks))


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
