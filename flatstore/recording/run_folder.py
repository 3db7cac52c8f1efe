"""A run as a folder, from which the call that made it goes on.

```
settings.json                what was asked for; written when the folder is complete
snapshot-0.safetensors       what the run began with
snapshot-1200.safetensors    ... and what generation 1200 started from: the newest two are kept
journal.jsonl                a line for each generation, on the disk before its record is handed out
```

A generation is a function of what it starts from and of its line. So a run goes on from the newest snapshot that the
journal leads on from: the lines after it are made again, and nothing is evaluated.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import metadata
from typing import Any, Self

from flatstore.checks import repeats
from flatstore.files import flush_folder, save_text, sweep
from flatstore.recording.journal_file import Journal, entries_of
from flatstore.recording.line_text import read_json
from flatstore.recording.settings import Settings, differences
from flatstore.recording.snapshots import (
    Parts,
    newest_snapshot,
    read_snapshot,
    remove_snapshots,
    save_snapshot,
    snapshots_of_others,
)
from flatstore.recording.snapshots import snapshots_of as _snapshots_of
from flatstore.threads import uninterrupted

RunPath = str | os.PathLike[str]

EVERY = 30.0
"""Seconds after which a snapshot is due, so that to go on never takes longer than about that."""

SHARE = 50
"""At least this many times as long as the last snapshot took: they take 2 % of a run at most."""

_FORMAT = 1
_ABOUT = {"format", "flatstore"}
"""What the settings say that no call does."""


class RunFolder:
    """A run's folder, open to go on with; `close` lets others do so.

    Raises `ValueError` for settings that differ, each by its name, and for a damaged journal; `BlockingIOError` while
    another process, or another loop of this one, goes on with the run; `OSError` for what the disk refuses.
    """

    def __init__(self, path: RunPath, settings: Mapping[str, Any]) -> None:
        self.path: str = os.fspath(path)
        self.settings: Settings = read_json(json.dumps(settings))
        try:
            if not uninterrupted(lambda: os.path.isdir(self.path)):
                os.makedirs(self.path, exist_ok=True)  # somebody else may be making it
                flush_folder(os.path.dirname(os.path.abspath(self.path)))
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                f"expected a folder as run, or nothing yet, got a file in the way of {self.path!r}; fix: name a folder"
            ) from error
        self._took = 0.0
        self._last = time.monotonic()
        self._snapshot = 0
        journal: Journal | None = None
        try:
            self._journal = journal = Journal(os.path.join(self.path, "journal.jsonl"))
            self.is_new: bool = not self._has_begun()
            sweep(self.path)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"expected a run that nobody goes on with, got {self.path!r}, which is in use; "
                "fix: wait until the other process ends, or close() the other loop, or choose another folder"
            ) from error
        except BaseException:
            if journal is not None:
                journal.close()
            raise

    def close(self) -> None:
        """Let others go on with the run."""
        self._journal.close()

    def _has_begun(self) -> bool:
        if not uninterrupted(lambda: os.path.exists(os.path.join(self.path, _SETTINGS))):
            if len(self._journal):
                raise ValueError(
                    f"expected {_SETTINGS} beside the journal of the run {self.path!r}, got none; "
                    "fix: take a copy of the run, or choose another folder"
                )
            if others := snapshots_of_others(self.path):
                raise ValueError(
                    f"expected a folder for a new run, got {self.path!r}, which has {others[0]!r} of another; "
                    "fix: choose another folder, or take away what is called as a snapshot"
                )
            return False
        there = settings_of(self.path)
        found = list(differences({key: there[key] for key in there if key not in _ABOUT}, self.settings))
        if found:
            raise ValueError(
                f"expected the settings of the run {self.path!r}, got others: {'; '.join(found)}; "
                "fix: call it as the run was begun, or choose another folder"
            )
        return True

    def __len__(self) -> int:
        """The number of generations in the journal."""
        return len(self._journal)

    def begin(self, parts: Parts, note: Any = None) -> None:
        """Make a new run of it, which begins with what the parts are now."""
        remove_snapshots(self.path, set())
        save_snapshot(self.path, 0, parts, note)
        about = {"format": _FORMAT, "flatstore": _version()}
        save_text(os.path.join(self.path, _SETTINGS), json.dumps(about | self.settings, indent=1) + "\n")

    def restore(self, parts: Parts, *, first: bool = False) -> tuple[int, Any]:
        """Read the newest snapshot before the last line into the parts, or the first one: (its number, its note)."""
        most = 0 if first else max(0, len(self) - 1)
        # Those beyond the journal are of lines that were cut off, which may be evaluated to others.
        remove_snapshots(self.path, {number for number in _snapshots_of(self.path) if number <= len(self)})
        while True:
            number = newest_snapshot(self.path, most)
            try:
                note = read_snapshot(self.path, number, parts)
            except (ValueError, FileNotFoundError):
                if number == 0 or not repeats(partial(read_snapshot, self.path, number, parts)):
                    raise
                most = number - 1  # it is damaged: one before it takes longer, and leads to the same
                continue
            self._snapshot = number
            return number, note

    def entries(self, first: int) -> Iterator[dict[str, Any]]:
        """The entries of the journal from number `first` on."""
        return self._journal.entries(first)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append an entry to the journal, and wait until it is on the disk."""
        self._journal.append(entry)

    def take_back(self) -> None:
        """Remove the last entry: what it says has not been done."""
        self._journal.take_back()

    def snapshot(self, parts: Parts, note: Any = None) -> None:
        """Save what the next generation starts from, if it is time to."""
        start = time.monotonic()
        if len(self) == self._snapshot or start - self._last < max(EVERY, SHARE * self._took):
            return
        save_snapshot(self.path, len(self), parts, note)
        self._snapshot = len(self)
        remove_snapshots(self.path, {0, *_snapshots_of(self.path)[-2:]})
        self._last = time.monotonic()
        self._took = self._last - start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_SETTINGS = "settings.json"


def settings_of(path: RunPath) -> Settings:
    """The settings of a run. Raises `ValueError` for a folder that has none, or damaged ones."""
    name = os.path.join(path, _SETTINGS)
    try:
        with open(name, "rb") as file:
            found: Any = read_json(file.read())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"expected the folder of a run, got {os.fspath(path)!r}, which has no {_SETTINGS}; "
            "fix: name a folder that evolve(..., run=...) has made"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected the settings of a run, got other JSON in {name!r} ({error}); {_COPY}") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise ValueError(f"expected the settings of a run in format {_FORMAT}, got others in {name!r}; {_COPY}")
    return found  # pyright: ignore[reportUnknownVariableType]


_COPY = "fix: take a copy of the run, or the version of flatstore that wrote it"


def run_entries(path: RunPath) -> Iterator[dict[str, Any]]:
    """The entries of a run's journal, which may be growing. Raises `ValueError` for a damaged one."""
    return entries_of(os.path.join(path, "journal.jsonl"))


def _version() -> str:
    try:
        return metadata.version("flatstore")
    except metadata.PackageNotFoundError:
        return "unknown"
