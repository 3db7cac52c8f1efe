"""Runs of `evolve` and `mezo` that are kept in folders: what goes into one, and the way back to any of its moves.

A move is in the journal before the centre is moved. If it fails, or the process dies, the line is taken back or the
move is made again: the folder is never behind a record that was handed out.

```
generation n    evaluate | line n on the disk | move the centre | record n handed out
```
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from flatstore.checks import whole
from flatstore.es.journal import Move, is_whole, replay
from flatstore.es.optimisers import Adam, Compiled, Momentum, Optimiser
from flatstore.files import load
from flatstore.layout import Array
from flatstore.noise import Noise, Normal, Rademacher, seeds
from flatstore.recording import (
    KeptOpen,
    RunFolder,
    RunPath,
    as_numbers,
    as_texts,
    described,
    newest_snapshot,
    run_entries,
    settings_of,
    snapshot_note,
    snapshot_path,
)
from flatstore.store import Store

Mover = Callable[[Any, Any, Any, Callable[[], object]], None]
"""A function of seeds, weights and a rate, and of what is called as soon as the centre has moved."""

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Adam, Momentum, Normal, Rademacher)}


class KeptRun(KeptOpen):
    """A run in a folder, or in none: then there is nothing to do."""

    def __init__(
        self, path: RunPath | None, centre: Any, optimiser: Optimiser | None, settings: Mapping[str, Any]
    ) -> None:
        """Take what the run moves. Raises `ValueError` for parts of a model: files keep no index."""
        if path is not None and centre.parts is not None:
            raise ValueError(
                "run: expected a whole model to keep in a folder, got parts of one; fix: keep the run where the whole "
                "is, or keep the records, which es.replay takes"
            )
        self._optimiser = optimiser
        self._parts = {"": centre, **_states_of(optimiser)}
        self._settings = settings
        self._path = path

    def restored(self, before: Callable[[Move], object], move: Mover, most: int | None) -> Move | None:
        """Begin the run, or bring the centre and the optimiser to where its last move left them, and return its record.

        Opens the folder. `before` is called with the last move before it is made. Raises `ValueError` if there are more
        than `most`.
        """
        if self._path is None:
            return None
        layout = self._parts[""].layout.digest
        given = described(self._settings) | {"layout": layout, "optimiser": _described(self._optimiser)}
        folder = RunFolder(self._path, given)
        self.folder: RunFolder | None = folder
        if most is not None and len(folder) > most:
            raise ValueError(
                f"expected at least the {len(folder)} generations that the run has, got {most}; "
                f"fix: es.centre_of({folder.path!r}, {most}) gives the centre after {most} of them"
            )
        if folder.is_new:
            folder.begin(self._parts, self._note())
            return None
        start, note = folder.restore(self._parts, first=not is_whole(self._optimiser))
        if isinstance(self._optimiser, Compiled):
            self._optimiser.count = _count(note)
        last = None
        for last in _moves(folder.entries(start), folder.settings, folder.path):
            if last.number == len(folder) - 1:
                before(last)
            move(last.seeds, last.weights, last.rate, bool)
        return last

    def snapshot(self) -> None:
        """Save the centre and the optimiser's state, if it is time to."""
        if self.folder is not None and is_whole(self._optimiser):
            self.folder.snapshot(self._parts, self._note())

    def make(self, record: Move, move: Callable[[Callable[[], object]], None], hand_in: Callable[[Move], None]) -> None:
        """Note a record, make the move, and hand the record in."""
        folder = self.folder
        if folder is None:
            move(partial(hand_in, record))
            return
        is_made = False

        def then() -> None:
            nonlocal is_made
            hand_in(record)
            is_made = True

        entry = {"number": record.number, "fitness": as_texts(record.fitness), "weights": record.weights.tolist()}
        missing = {} if record.missing is None else {"missing": np.flatnonzero(record.missing).tolist()}
        folder.append(entry | {"rate": record.rate} | missing)
        try:
            move(then)
        except BaseException:
            if not is_made:
                folder.take_back()
            raise

    def _note(self) -> Any:
        return self._optimiser.count if isinstance(self._optimiser, Compiled) else None


def _states_of(optimiser: Optimiser | None) -> dict[str, Any]:
    return optimiser.states if isinstance(optimiser, Compiled) else {}


def _described(optimiser: Optimiser | None) -> Any:
    if isinstance(optimiser, Compiled):
        return {"kind": type(optimiser).__name__} | optimiser.settings
    return None if optimiser is None else described(type(optimiser))


def moves(run: RunPath) -> Iterator[Move]:
    """The records of a run that `evolve` or `mezo` keeps in a folder; another process may go on with it.

    Raises `ValueError` for another folder, and for a damaged journal.
    """
    return _moves(run_entries(run), settings_of(run), os.fspath(run))


def _moves(entries: Iterator[dict[str, Any]], settings: Mapping[str, Any], path: str) -> Iterator[Move]:
    if settings.get("algorithm") not in ("es.evolve", "es.mezo"):
        raise ValueError(
            f"expected a run of es.evolve or es.mezo, got one of {settings.get('algorithm')!r} in {path!r}; "
            "fix: name another folder"
        )
    try:
        seed, pairs = tuple(settings["seed"]), settings["members"] // 2
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected the seed and the members of a run in the settings of {path!r}, got others ({error!r}); "
            "fix: take a copy of the run"
        ) from error
    return _read(entries, seed, pairs, path)


def _read(entries: Iterator[dict[str, Any]], seed: tuple[int, ...], pairs: int, path: str) -> Iterator[Move]:
    for entry in entries:
        try:
            number, fitness, values = entry["number"], as_numbers(entry["fitness"]), as_numbers(entry["weights"])
            if (len(fitness), len(values)) != (2 * pairs, pairs):
                raise ValueError(f"fitness for {2 * pairs} members, got {len(fitness)}, and {len(values)} weights")
            keys = seeds((*seed, number), pairs)
            missing = _marks(entry["missing"], len(fitness)) if "missing" in entry else None
            yield Move(number, fitness, keys, values, entry["rate"], missing)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected a move in entry {entry.get('number')} of the run {path!r}, got another ({error!r}); "
                "fix: take a copy of the run"
            ) from error


def _count(note: Any) -> int:
    """The number of steps of an optimiser that a snapshot has noted. Raises `ValueError` for anything else."""
    if type(note) is not int or not 0 <= note < 2**63:
        raise ValueError(f"expected the optimiser's count in a snapshot, got {note!r}; fix: take a copy of the run")
    return note


def _marks(missing: Any, members: int) -> Array:
    """Which members are missing, from their numbers. Raises `ValueError` or `TypeError` for anything else."""
    numbers = [*missing]
    if not all(type(i) is int and 0 <= i < members for i in numbers):
        raise ValueError(f"members 0 .. {members - 1}, got {missing!r}")
    marks = np.zeros(members, bool)
    marks[numbers] = True
    return marks


def centre_of(run: RunPath, to: int) -> Store:
    """The centre of a run in a folder as generation, or step, `to` found it: after `to` moves, to the bit.

    The moves since the last snapshot before it are made again, and nothing is evaluated. It is a new store, over a tree
    of ordered dicts; another process may go on with the run.

    Raises `ValueError` for a number beyond the journal, and for an optimiser that is not of this package: load
    `snapshot-0.safetensors` then, and `replay` the records of `moves(run)` by it.
    """
    path = os.fspath(run)
    settings = settings_of(path)
    records = _moves(run_entries(path), settings, path)
    if not whole(to) >= 0:
        raise ValueError(f"expected a number of moves, 0 or more, got {to}; fix: pass one that the run has made")
    noise: Noise = _made_again(settings["noise"], path)
    start = newest_snapshot(path, to)
    while True:
        try:
            centre, optimiser = _snapshot(path, start, settings["optimiser"])
            break
        except (ValueError, FileNotFoundError):
            if start == 0:
                raise
            start = newest_snapshot(path, start - 1)  # it is damaged, or another process has removed it meanwhile
    chosen = list(islice(records, start, min(to, sys.maxsize)))
    if start + len(chosen) < to:
        raise ValueError(f"expected a run of at least {to} moves, got {start + len(chosen)} in {path!r}; fix: wait")
    replay(centre, noise, chosen, optimiser=optimiser)
    return centre


def _snapshot(path: str, number: int, optimiser: Any) -> tuple[Store, Any]:
    """The centre of a snapshot, and the optimiser that the settings describe, with its state."""
    centre: Store = load(snapshot_path(path, number))
    made: Any = None
    if optimiser is not None:
        made = _made_again(optimiser, path, centre)
        made.count = _count(snapshot_note(path, number))
        for name, state in made.states.items():
            state.assign(load(snapshot_path(path, number, name)))
    return centre, made


def _made_again(given: Any, path: str, *arguments: Any) -> Any:
    """A noise or an optimiser, from what the settings say of it."""
    try:
        values = dict(given)
        if isinstance(values.get("scale"), list):
            values["scale"] = tuple((glob, scale) for glob, scale in values["scale"])
        return _KINDS[values.pop("kind")](*arguments, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected a noise and an optimiser of this package in the settings of {path!r}, got {given!r}; "
            "fix: load snapshot-0.safetensors, and es.replay the records of es.moves(run) by your own"
        ) from error
