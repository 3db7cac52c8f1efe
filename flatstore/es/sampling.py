"""Sampling: a population of perturbed copies of one store."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.es.groups import (
    IN_NOISE,
    ROOM,
    SEEDS_PER_DRAW,
    WIDTH,
    check_sign,
    check_types,
    factors_of,
    groups_of,
    random_words,
    refuse_not_finite,
    strengths_of,
    tasks_of,
    trainable_groups,
    trainable_leaves,
)
from flatstore.kernels.cpu import WHOLE_NUMBERS, sampling_loop
from flatstore.memory import reading, write
from flatstore.noise import Noise, as_keys
from flatstore.store import Population, Store
from flatstore.threads import Task, run_tasks
from flatstore.trees import Difference, StructureError


def sample(
    out: Population | Store, store: Store, noise: Noise, seeds: Any, *, sign: int = 1, antithetic: bool = False
) -> None:
    """Write `store + sign * noise(seed)` into `out`: a store, or a population with a seed for each member.

    With `antithetic` there is one seed for each pair of members: member 2 i is the store plus `sign` times the noise of
    seed i, member 2 i + 1 is the store minus it. Sums are rounded to the dtype; if the store is on the noise's grid
    they are exact, with the bits of `perturb`. Shared leaves of `out` are not touched. The store may be `out` itself,
    or one of its members.

    >>> import flatstore as fs
    >>> store = fs.Store.from_tree({"w": np.zeros(3, "f4")})
    >>> pop = fs.Population.zeros(store.layout, 4)
    >>> sample(pop, store, fs.Normal(0.02), fs.seeds(7, 2), antithetic=True)
    >>> bool((pop["w"][0] == -pop["w"][1]).all())
    True

    Raises `StructureError` for layouts that differ; `ValueError` for the wrong number of seeds, trainable leaves that
    are not floating, or parameters that are not finite; `LentError` while `out` is lent. In all these cases nothing is
    written.
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
    check_sign(sign, IN_NOISE)
    noise.check_grid(out.layout)
    leaves = trainable_leaves(out)
    to_check = store.cached("trainable", lambda: trainable_groups([store], "add noise to"))
    strengths = strengths_of(out.layout, noise)
    draw = noise.kind, keys, factors_of(out.layout, noise).rows, noise.step
    signs = np.array([sign, -sign] if antithetic else [sign], np.float64)
    groups = groups_of(leaves, [out, store], strengths)

    def fill(task: Task, scratch: Any, note: Any) -> None:
        group, start, stop = task
        rows = scratch[0], scratch[1], scratch[2][group.real]
        centre = store.raw(group.raw.dtype)
        sampling_loop(group.dtype, noise.width)(start, stop, group.raw, centre, group.pieces, draw, signs, rows, note)

    def scratch() -> Any:
        words = random_words(noise.width, min(SEEDS_PER_DRAW, len(keys)), WIDTH)
        whole = np.zeros(WIDTH + ROOM, WHOLE_NUMBERS[noise.width][1])
        return words, whole, {x.real: np.zeros(WIDTH, x.real) for x in groups}

    def fill_all() -> None:
        refuse_not_finite(store, to_check)
        run_tasks(tasks_of(groups, size), fill, scratch, finish=True)

    with reading(store.memory) as centre:
        write([out.memory], fill_all, centre)


def layouts_differ(name: str, got: Any, expected: Any) -> StructureError:
    """The error for two layouts that are not the same: it lists every leaf that differs."""
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
