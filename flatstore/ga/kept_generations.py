"""Runs of `evolve` that are kept in folders: the fitness of each generation, by which any later one is born again.

A generation is a function of the one before, its fitness and the seed. So a folder has the fitness alone, and now and
then the population.

```
generation n    born from n - 1 | evaluate | line n on the disk | record n handed out
resumed         from a snapshot, born ... born, without an evaluation | record of the last line handed out again
```
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flatstore.ga.generation_records import Generation
from flatstore.recording import KeptOpen, RunFolder, RunPath, as_numbers, as_texts, described, run_entries, settings_of
from flatstore.store import AnyPopulation, Step


class KeptGenerations(KeptOpen):
    """A run in a folder, or in none: then there is nothing to do."""

    def __init__(self, path: RunPath | None, pop: AnyPopulation, settings: Mapping[str, Any]) -> None:
        self._path, self._pop, self._settings = path, pop, settings

    def restored(self, planned: Callable[[Generation], Step], most: int | None) -> Generation | None:
        """Begin the run, or bring the population to the last generation that was evaluated, and return its record.

        Opens the folder. Raises `ValueError` if the run has more than `most` generations.
        """
        if self._path is None:
            return None
        given = described(self._settings) | {"members": self._pop.size, "layout": self._pop.layout.digest}
        self.folder = folder = RunFolder(self._path, given)
        if most is not None and len(folder) > most:
            raise ValueError(
                f"expected at least the {len(folder)} generations that the run has, got {most}; "
                "fix: pass a larger number, or None"
            )
        if folder.is_new:
            folder.begin({"": self._pop})
            return None
        start, _ = folder.restore({"": self._pop})
        last: Generation | None = None
        for record in _records(folder.entries(max(0, start - 1)), folder.path):
            step = None if last is None else planned(last)
            if step is not None and record.number > start:
                step.run()
            last = Generation(
                record.number, record.fitness, *(None, None) if step is None else (step.parents, step.kept)
            )
        return last

    def snapshot(self) -> None:
        """Save the generation that the population holds, which is to be evaluated, if it is time to."""
        if self.folder is not None:
            self.folder.snapshot({"": self._pop})

    def note(self, record: Generation) -> None:
        """Write the fitness of a generation to the disk."""
        if self.folder is not None:
            self.folder.append({"number": record.number, "fitness": as_texts(record.fitness)})


def records(run: RunPath) -> Iterator[Generation]:
    """The records of a run that `evolve` keeps in a folder, without their parents; another process may go on with it.

    Raises `ValueError` for another folder, and for a damaged journal.
    """
    path, settings = os.fspath(run), settings_of(run)
    if settings.get("algorithm") != "ga.evolve":
        raise ValueError(
            f"expected a run of ga.evolve, got one of {settings.get('algorithm')!r} in {path!r}; fix: es.moves(run)"
        )
    return _records(run_entries(run), path)


def _records(entries: Iterator[dict[str, Any]], path: str) -> Iterator[Generation]:
    for entry in entries:
        try:
            yield Generation(entry["number"], as_numbers(entry["fitness"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected fitness in entry {entry.get('number')} of the run {path!r}, got another ({error!r}); "
                "fix: take a copy of the run"
            ) from error
