"""Small moves of a store, done at once by the thread that asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from flatstore.es.groups import Group
from flatstore.kernels.cpu import BY, NOTE, NOWHERE, STOPPED, all_or_nothing
from flatstore.layout import Array
from flatstore.memory import write_at_once
from flatstore.store import Store


class Part(NamedTuple):
    """The move of a group: a compiled loop, and its arguments but for the range of the index and the note."""

    group: Group
    loop: Any
    forth: tuple[Any, ...]
    back: tuple[Any, ...]
    """The arguments that take the move back."""


def move_at_once(store: Store, parts: Sequence[Part]) -> tuple[Group, int] | None:
    """Move all groups, or none. Returns None, or the group that cannot be moved and the index at which that was found.

    Raises `LentError` while others read or write the store.
    """
    outcome: Array = np.full(3, -1, np.int64)
    note = outcome[NOTE:]
    steps: list[Any] = []
    undo: list[Any] = []
    for number, (group, loop, forth, back) in enumerate(parts):
        run, take_back = all_or_nothing(loop)
        forth, back = (*forth, note), (*back, note)
        if not run.overloads:  # compiled before others wait for it
            run(number, NOWHERE, forth, back, outcome)
        steps.append(partial(run, number, group.ranges, forth, back, outcome))
        if len(parts) > 1:
            if not take_back.overloads:
                take_back(number, NOWHERE, back, outcome)
            undo.append(partial(take_back, number, group.ranges, back, outcome))
    write_at_once([store.memory], [*steps, *undo])
    if outcome[STOPPED] < 0:
        return None
    return parts[int(outcome[BY])].group, int(outcome[STOPPED])
