"""Sampling: a population of perturbed copies of one store."""

from __future__ import annotations

from typing import Any

import numpy as np

from flatstore.es.groups import (
    IN_NOISE,
    ROOM,
    SEEDS_PER_DRAW,
    WIDTH,
    Group,
    check_sign,
    check_types,
    factors_of,
    groups_of,
    is_small,
    on_host,
    random_words,
    refuse_not_finite,
    strengths_of,
    tasks_of,
    trainable_groups,
    trainable_leaves,
)
from flatstore.kernels.cpu import WHOLE_NUMBERS, over_ranges, sampling_loop
from flatstore.memory import reading, write, write_at_once
from flatstore.noise import Noise, as_keys
from flatstore.store import AnyPopulation, AnyStore, Population, Store, host_of, moves_of
from flatstore.threads import Task, rounds_to_nearest, run_tasks
from flatstore.trees import Difference, StructureError


def sample(
    out: AnyPopulation | AnyStore,
    store: AnyStore,
    noise: Noise,
    seeds: Any,
    *,
    sign: int = 1,
    antithetic: bool = False,
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
    if (kind := moves_of(store) or moves_of(out)) is not None:
        return kind.sample(out, store, noise, seeds, sign, antithetic)
    store, out = on_host(store), host_of(out)
    if not isinstance(out, Store | Population):
        raise TypeError(f"expected to sample into a store or a population, got {type(out).__name__}; fix: pass one")
    check_types(store, noise)
    refuse_other_layouts("out", out, store)
    size = out.size if isinstance(out, Population) else 1
    keys = as_keys(seeds if np.ndim(seeds) else [seeds])
    expected = size // 2 if antithetic else size
    if keys.shape != (expected,) or (antithetic and size % 2):
        raise ValueError(
            f"expected {expected} seeds for {size} members{' in pairs' if antithetic else ''}, got shape "
            f"{keys.shape}; fix: fs.seeds(seed, {expected})" + (" and an even size" if antithetic else "")
        )
    check_sign(sign, IN_NOISE)
    groups = _planned(out, store, noise)
    to_check = store.cached("trainable", lambda: trainable_groups([store], "add noise to"))
    draw = noise.kind, keys, factors_of(out.whole, noise).rows, noise.step
    signs = np.array([sign, -sign] if antithetic else [sign], np.float64)

    def arguments(group: Group, scratch: Any) -> tuple[Any, ...]:
        rows = scratch[0], scratch[1], scratch[2][group.real]
        return group.raw, store.raw(group.raw.dtype), group.pieces, draw, signs, rows

    def fill(task: Task, scratch: Any, note: Any) -> None:
        loop = sampling_loop(task.group.dtype, noise.width)
        loop(task.start, task.stop, *arguments(task.group, scratch), note)

    def scratch() -> Any:
        words = random_words(noise.width, min(SEEDS_PER_DRAW, len(keys)), WIDTH)
        whole = np.zeros(WIDTH + ROOM, WHOLE_NUMBERS[noise.width][1])
        return words, whole, {x.real: np.zeros(WIDTH, x.real) for x in groups}

    def fill_all() -> None:
        refuse_not_finite(store, to_check)
        run_tasks(tasks_of(groups, size), fill, scratch, finish=Exception)

    with reading(store.memory) as centre:
        if is_small(groups, size) and rounds_to_nearest():
            refuse_not_finite(store, to_check)
            rows, note = scratch(), np.zeros(1, np.int64)
            steps = [
                over_ranges(sampling_loop(group.dtype, noise.width), group.ranges, (*arguments(group, rows), note))
                for group in groups
            ]
            write_at_once([out.memory], steps, centre)
        else:
            write([out.memory], fill_all, centre)


def _planned(out: Population | Store, store: Store, noise: Noise) -> list[Group]:
    """The groups of the leaves to fill, planned once for the places of both in their memories."""
    names = out.cached("dtypes", lambda: list(dict.fromkeys(leaf.dtype.name for leaf in trainable_leaves(out))))
    runs = [store.runs(name) for name in names]

    def plan() -> tuple[list[Group], Any]:
        noise.check_grid(out.whole)
        groups = groups_of(trainable_leaves(out), [out, store], strengths_of(out.whole, noise))
        return groups, runs  # kept alive, so that no others have their identity

    return out.cached(("sample", noise, *map(id, runs)), plan)[0]


def refuse_other_layouts(name: str, got: Any, expected: Any) -> None:
    """Raise `StructureError`, which lists every leaf that differs, unless layouts and indices are the same."""
    theirs, ours = got.layout.by_path, expected.layout.by_path
    if got.layout == expected.layout:
        if got.parts == expected.parts:
            return
        want, found = ("parts of a model" if x.parts else "a whole model" for x in (expected, got))
        fix = "pass a copy() of the store, or a number of members"
        difference = Difference("indices", want, f"{'others of it' if want == found else found}", fix)
        raise StructureError([difference], f"of {name} whose indices are not the store's")
    differences = [
        Difference(path, _row(ours.get(path)), _row(theirs.get(path)), "make both from one layout")
        for path in {**ours, **theirs}
        if ours.get(path) != theirs.get(path)
    ]
    raise StructureError(differences, f"of {name} unlike the store's layout")


def _row(leaf: Any) -> str:
    if leaf is None:
        return "nothing"
    marks = ["" if leaf.trainable else " frozen", f" tied to {leaf.tied}" if leaf.tied else ""]
    return f"{leaf.spec} at {leaf.offset}{''.join(marks)}"
