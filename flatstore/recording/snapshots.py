"""Snapshots: what a run moves, as it was when a generation began.

```
snapshot-1200.safetensors         the centre, or the population, that generation 1200 starts from
snapshot-1200.mean.safetensors    what belongs to it, such as an optimiser's state
```

The file without a second name is written last and removed first: where it is, the others are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from flatstore.checks import repeats
from flatstore.files import metadata_of, save
from flatstore.files import open as open_file
from flatstore.store import AnyPopulation, AnyStore

Parts = Mapping[str, AnyStore | AnyPopulation]
"""What a run moves, by second names; the first is without one."""

_NAME = re.compile(r"snapshot-(0|[1-9][0-9]*)(\.\w+)?\.safetensors")
_KEY = "snapshot"


def snapshot_path(folder: str, number: int, part: str = "") -> str:
    """The path of a file of a snapshot.

    >>> snapshot_path("run", 7), snapshot_path("run", 7, "mean")
    ('run/snapshot-7.safetensors', 'run/snapshot-7.mean.safetensors')
    """
    return os.path.join(folder, f"snapshot-{number}{part and f'.{part}'}.safetensors")


def save_snapshot(folder: str, number: int, parts: Parts, note: Any) -> None:
    """Write a snapshot to the disk, and with it a note that JSON can hold."""
    for part in sorted(parts, reverse=True):
        save(snapshot_path(folder, number, part), parts[part], metadata={_KEY: json.dumps([number, note])})


def read_snapshot(folder: str, number: int, parts: Parts) -> Any:
    """Read a snapshot into what the run moves, and return its note.

    Raises the errors of `fs.load`: what differs from the layouts, and what is damaged. Nothing is written then, unless
    a part after the first one is damaged.
    """
    found = {
        part: open_file(snapshot_path(folder, number, part), like=x.layout, verify=True) for part, x in parts.items()
    }
    note = snapshot_note(folder, number)
    for part, x in parts.items():
        x.assign(found[part])
    return note


def snapshot_note(folder: str, number: int) -> Any:
    """The note that a snapshot was saved with. Raises `ValueError` if it is not that of this snapshot."""
    path = snapshot_path(folder, number)

    def read() -> Any:
        saved, note = json.loads(metadata_of(path)[_KEY])
        return saved, note

    try:
        saved, note = read()
    except (KeyError, TypeError, ValueError, RecursionError):
        if not repeats(read):
            raise
        saved = note = None
    if saved != number:
        raise ValueError(f"expected snapshot {number} of a run, got another file at {path!r}; fix: take it away")
    return note


def snapshots_of(folder: str) -> list[int]:
    """The numbers of the snapshots that are whole, ascending."""
    found = map(_NAME.fullmatch, os.listdir(folder))
    return sorted(int(name[1]) for name in found if name and not name[2])


def snapshots_of_others(folder: str) -> list[str]:
    """The names of files that are called as snapshots, and were not left by a run that was killed as it began."""
    names = [match for match in map(_NAME.fullmatch, os.listdir(folder)) if match]
    return sorted(match[0] for match in names if int(match[1]) or not (match[2] or _is_of_a_run(folder)))


def _is_of_a_run(folder: str) -> bool:
    try:
        snapshot_note(folder, 0)
    except ValueError:
        if not repeats(lambda: snapshot_note(folder, 0)):
            raise
        return False
    return True


def newest_snapshot(folder: str, most: int) -> int:
    """The number of the newest snapshot that is not beyond `most`. Raises `ValueError` if there is none."""
    numbers = [number for number in snapshots_of(folder) if number <= most]
    if not numbers:
        raise ValueError(f"expected a snapshot in the run {folder!r}, got none; fix: take a copy of the run")
    return numbers[-1]


def remove_snapshots(folder: str, keep: set[int]) -> None:
    """Remove all snapshots but those to keep, and parts of those that were not finished."""
    names = [match for match in map(_NAME.fullmatch, os.listdir(folder)) if match and int(match[1]) not in keep]
    for name in sorted(names, key=lambda match: match[2] or ""):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name[0]))
