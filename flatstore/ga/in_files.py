"""Populations in files: made there, opened there, and a generation that was killed half-way finished there.

This room is below that of the populations, so it hands them `create` and `open`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flatstore import files
from flatstore.files import WrittenFile, alone_in, written_file
from flatstore.ga.breeding import plan_on_host
from flatstore.ga.generation import checked, has_read, write_back
from flatstore.ga.generation_log import Log, boot, log_error, read_log
from flatstore.ga.operators_as_json import from_json
from flatstore.store import InFiles, Population, hand_in_files
from flatstore.threads import REACHED, uninterrupted

_OPERATORS = ("crossover", "mutate", "bounds")


def open_population(
    path: str | os.PathLike[str], operators: Mapping[str, Any] | None, after_restart: bool
) -> Population:
    """Open a population in a file to be written, and finish a generation that was killed, as `Population.open` says."""
    pop = files.open_half_way(path, "r+")
    if not isinstance(pop, Population):
        raise ValueError(f"expected the file of a population, got that of one model, {os.fspath(path)!r}; fix: fs.open")
    file = written_file(pop.memory)
    assert file is not None
    if _half_way(file):
        uninterrupted(lambda: _finish_alone(pop, file, operators or {}, after_restart))
    return pop


def _half_way(file: WrittenFile) -> Log | None:
    """The log of a generation in a file that is not over."""
    log = read_log(file.path, os.fstat(file.number))
    return log if log is not None and log.is_under_way else None


def seed_of(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """The seed of the last generation that `step` has made in a file, also if it is not over; None if there was none.

    So after `evolve(..., seed=7)` the seed (7, n) says that the file holds generation n + 1, to go on with by
    `evolve(..., resume=n + 1)`.

    Raises `ValueError` for a damaged log, `FileNotFoundError` without the file.
    """
    log = read_log(os.fspath(path), os.stat(path))
    return None if log is None or log.seed is None else tuple(log.seed)


def _finish_alone(pop: Population, file: WrittenFile, given: Mapping[str, Any], after_restart: bool) -> None:
    with alone_in(file.path, file.number):
        log = _half_way(file)  # read again: another process may have finished it
        if log is None:
            return
        if not after_restart and log.asked.settings["boot"] != boot():
            raise ValueError(
                f"expected the machine to run since a generation was begun in {file.path!r}, got one that was started "
                "again; fix: if it was shut down in order, Population.open(path, after_restart=True); after a power "
                "cut, take the last copy"
            )
        _finish(pop, file, log, given)


def _finish(pop: Population, file: WrittenFile, log: Log, given: Mapping[str, Any]) -> None:
    settings, plan = log.asked.settings, log.plan
    try:
        operators = {name: given[name] if name in given else from_json(settings[name]) for name in _OPERATORS}
    except ValueError as error:
        raise ValueError(
            f"expected the operators of the generation that was killed in {file.path!r}, got none for one of your own "
            f"({error}); fix: Population.open(path, operators={{'mutate': ..., 'crossover': ...}})"
        ) from error
    first, size = settings["first"], settings["size"]

    def as_before(*_: Any) -> Any:
        return log.asked.chosen

    try:
        step = plan_on_host(
            pop if (first, size) == (0, pop.size) else pop[first : first + size],
            log.asked.fitness,
            seed=settings["seed"],
            select=as_before,
            elite=settings["elite"],
            **operators,
        )
        # Before anything is written by the log's numbers: nobody knows who wrote them.
        checked(step.loops, [(task.group, task.start, task.stop) for task in plan.tasks])
        parents = max(len(genes.parents) for genes in step.loops.values())
        if plan.rows != parents or not {genes.real for genes in step.loops.values()} <= {*plan.reals}:
            raise ValueError(f"{plan.rows} parents of {plan.reals} in scratch, where the generation has {parents}")
    except (IndexError, TypeError, ValueError) as error:
        if given:  # it may be of these operators
            raise
        raise log_error(file.path, error) from error
    owners: list[int] = log.owners.tolist()
    for worker, number in enumerate(owners):
        task, note = plan.tasks[number], log.progress[number]
        if number >= 0 and has_read(note) and note[REACHED] < task.stop:
            genes = step.loops[task.group]
            write_back(genes, task, int(note[REACHED]), log.rows[worker][genes.real])
    step._replace(left=log.left).run()
    log.over()  # nothing may have been left but that


hand_in_files(InFiles(files.create, open_population))
