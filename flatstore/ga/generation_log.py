"""The log of a generation in a file: what a process needs to finish it when the one that began it was killed.

The genes of a generation are made block by block, and a block of the parents' is in scratch before any of it is
overwritten. Here that scratch, and how far each task came, are pages of a file: the system keeps what a killed process
has written to them. So a block that was half written is put back, and made again with all that come after.

```
population.safetensors               | children's | half | parents' | children's | half | parents'
population.safetensors.generation    | what was asked | progress of the tasks | block of thread 0 | block of thread 1
```

A new log takes the place of the last one at once, by a new name. It has no flush: a kill leaves all that was written, a
power cut does not.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from flatstore.checks import repeats
from flatstore.files import MAGIC, NOT_BEGUN, OVER, UNDER_WAY, Writer, half_way_error, log_of
from flatstore.layout import Array
from flatstore.recording import read_json
from flatstore.threads import REACHED, Task, uninterrupted

_START = len(MAGIC) + len(OVER)
_NUMBERS = 4
"""The device and inode of the population's file, the length of the JSON, and the checksum of all that is asked."""

Left = tuple[str, int, int]
"""Genes that have not been replaced: the name of their dtype, the first index and the end."""


class Asked(NamedTuple):
    """What a generation is a function of, beside its parents."""

    fitness: Array
    """Shape (members,), float64."""
    chosen: Array
    """The parents of the children, as the selection returned them: int64."""
    settings: dict[str, Any]
    """The seed, the operators and the number of the elite, as JSON."""


class Plan(NamedTuple):
    """How a generation is cut into tasks."""

    tasks: Sequence[Task]
    width: int
    """The genes of a block."""
    rows: int
    """The members that are parents."""
    workers: int
    """The threads that take part at most."""
    reals: Sequence[Any]
    """The dtypes that are computed with."""


class Log:
    """The log of one generation; its arrays are pages of the file."""

    def __init__(self, mapping: mmap.mmap, asked: Asked, plan: Plan, at: int) -> None:
        self.mapping: mmap.mmap = mapping
        self.asked: Asked = asked
        self.plan: Plan = plan
        self.progress: Array = np.ndarray((len(plan.tasks), 3), np.int64, mapping, at)
        """What is noted of each task, as `progress_of` returns it."""
        at += _up(self.progress.nbytes)
        self.owners: Array = np.ndarray((plan.workers,), np.int64, mapping, at)
        """The number of the task whose block is in the rows of each worker, -1 before its first."""
        at += _up(self.owners.nbytes)
        self.rows: list[dict[Any, Array]] = []
        """The parents' genes in the block at work of each worker, by the dtype that is computed with."""
        for _ in range(plan.workers):
            self.rows.append({})
            for real in plan.reals:
                rows: Array = np.ndarray((plan.rows, plan.width), real, mapping, at)
                self.rows[-1][real] = rows
                at += _up(rows.nbytes)

    def under_way(self) -> None:
        """Say that genes are about to be replaced."""
        self.mapping[len(MAGIC) : _START] = UNDER_WAY

    def over(self) -> None:
        """Say that the generation is over."""
        self.mapping[len(MAGIC) : _START] = OVER

    def not_begun(self) -> None:
        """Say that all genes are still those of the generation before."""
        self.mapping[len(MAGIC) : _START] = NOT_BEGUN

    @property
    def is_under_way(self) -> bool:
        """Whether some genes may be replaced, and others not."""
        return self.mapping[len(MAGIC) : _START] == UNDER_WAY

    @property
    def left(self) -> tuple[Left, ...]:
        """The genes that are not replaced."""
        return left_of(self.plan.tasks, self.progress)

    @property
    def is_half_way(self) -> bool:
        """Whether it is under way, and some genes are not replaced."""
        return self.is_under_way and bool(self.left)

    @property
    def seed(self) -> list[int] | None:
        """The seed of the last generation of which there are genes, if there is one."""
        begun = self.mapping[len(MAGIC) : _START] != NOT_BEGUN
        return self.asked.settings["seed" if begun else "seed before"]


def left_of(tasks: Iterable[Task], progress: Array) -> tuple[Left, ...]:
    """The genes that tasks have not replaced."""
    ends = progress[:, REACHED].tolist()
    return tuple((x.group, end, x.stop) for x, end in zip(tasks, ends, strict=True) if end < x.stop)


def begun(path: str, number: int, asked: Asked, plan: Plan, goes_on: bool) -> Log:
    """The log of a generation that is about to begin in the file at `path`, whose open file has this number.

    If it `goes_on` with one that was left, it counts as under way from now on. Raises `ValueError` if one was left that
    it does not go on with, or none that it could, or another; `OSError` if no log can be written beside the file.
    """
    before = _log_before(path, number)
    is_half_way = before is not None and before.is_half_way
    if is_half_way and not goes_on:
        raise half_way_error(path)
    if goes_on and not is_half_way:
        raise ValueError(
            f"left: expected a generation that is not over in {path!r}, got none, for Population.open has finished it; "
            "fix: go on with the next generation"
        )
    if goes_on and before is not None and not _is_of(before, asked, plan):
        raise ValueError(
            f"left: expected the genes, fitness and seed of the generation that is not over in {path!r}, got others; "
            "fix: repeat the call that was interrupted, with left=error.left of its last UnfinishedError, or "
            "Population.open(path), which finishes it"
        )
    dtypes = list(dict.fromkeys(task.group for task in plan.tasks))
    tasks = np.array([(dtypes.index(x.group), x.start, x.stop) for x in plan.tasks], np.int64)
    reals = [np.dtype(real).name for real in plan.reals]
    cut = {"dtypes": dtypes, "width": plan.width, "rows": plan.rows, "workers": plan.workers, "reals": reals}
    sizes = {"fitness": len(asked.fitness), "chosen": len(asked.chosen), "tasks": len(tasks)}
    settings = asked.settings | {"boot": boot(), "seed before": before and before.seed}
    text = json.dumps({"settings": settings, "cut": cut, "sizes": sizes}).encode()
    content = b"".join((text, asked.fitness.tobytes(), asked.chosen.tobytes(), tasks.tobytes()))
    identity = os.fstat(number)
    numbers = np.array([identity.st_dev, identity.st_ino, len(text), crc32(content)], np.int64)
    start = _up(_START + numbers.nbytes + len(content))
    size = start + _up(24 * len(tasks)) + _up(8 * plan.workers)
    size += plan.workers * sum(_up(plan.rows * plan.width * np.dtype(real).itemsize) for real in plan.reals)
    target = log_of(path)
    new = target + "-new"
    log_number = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        try:
            Writer(log_number).reserve(size)  # a page without room is a signal as it is written, and no error
            mapping = mmap.mmap(log_number, size)
        finally:
            os.close(log_number)
        head = MAGIC + (UNDER_WAY if goes_on else NOT_BEGUN) + numbers.tobytes() + content
        mapping[: len(head)] = head
        log = Log(mapping, asked, plan, start)
        log.progress[:, 0] = tasks[:, 1]
        log.owners[:] = -1
        os.replace(new, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise
    return log


def _is_of(before: Log, asked: Asked, plan: Plan) -> bool:
    """Whether a plan is of all that a generation has left, and of what it was asked for; operators may be corrected."""
    same = all(before.asked.settings[name] == asked.settings[name] for name in ("seed", "elite", "first", "size"))
    same = same and before.asked.fitness.tobytes() == asked.fitness.tobytes()
    same = same and before.asked.chosen.tobytes() == asked.chosen.tobytes()
    return same and _joined(before.left) == _joined((x.group, x.start, x.stop) for x in plan.tasks)


def _joined(genes: Iterable[Left]) -> list[Left]:
    """Ranges of genes, in order, with those that follow each other as one."""
    found: list[Left] = []
    for dtype, start, stop in sorted(genes):
        if found and found[-1][0] == dtype and found[-1][2] == start:
            start = found.pop()[1]
        found.append((dtype, start, stop))
    return found


def _log_before(path: str, number: int) -> Log | None:
    try:
        return read_log(path, os.fstat(number))
    except ValueError:  # it says nothing of this file
        if not repeats(lambda: read_log(path, os.fstat(number))):
            raise
        return None


def boot() -> str | None:
    """What names the time since the machine was started, where the system has such a name."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return None


def read_log(path: str, identity: os.stat_result) -> Log | None:
    """The log of the last generation in the file at `path`; None without a log.

    Raises `ValueError` for a damaged log, and for one of another file.
    """
    name = log_of(path)
    mapping = uninterrupted(lambda: _mapped(name))
    if mapping is None:
        return None
    try:
        if not mapping:
            raise ValueError("it is empty")
        log = _read(mapping)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise log_error(path, error) from error
    if np.frombuffer(mapping, np.int64, 2, _START).tolist() != [identity.st_dev, identity.st_ino]:
        raise ValueError(
            f"expected the log of {path!r}, got that of another file at {name!r}; fix: if the file was replaced, "
            "remove the log; a copy of a population is one of its file alone, when no generation is under way"
        )
    return log


def log_error(path: str, error: Exception) -> ValueError:
    """The error that the log of a population's file is none."""
    return ValueError(
        f"expected the log of a generation, got another file at {log_of(path)!r} ({error}); "
        "fix: take it away if the population is whole, or take a copy of both"
    )


def _mapped(name: str) -> Any:
    """The pages of a file; no bytes if it is empty, and None if there is none."""
    with suppress(FileNotFoundError), open(name, "r+b", 0, opener=_not_followed) as file:
        return mmap.mmap(file.fileno(), size) if (size := os.fstat(file.fileno()).st_size) else b""


def _not_followed(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _read(mapping: mmap.mmap) -> Log:
    head = mapping[:_START]
    if head not in (MAGIC + OVER, MAGIC + UNDER_WAY, MAGIC + NOT_BEGUN):
        raise ValueError("it begins otherwise")
    at = _START + 8 * _NUMBERS
    length, checksum = np.frombuffer(mapping, np.int64, _NUMBERS, _START)[2:].tolist()
    if not 0 <= length < len(mapping):
        raise ValueError("its text is longer")
    found: Any = read_json(mapping[at : at + length])
    cut, sizes, settings = (dict(found[name]) for name in ("cut", "sizes", "settings"))
    kinds: dict[type, list[Any]] = {
        int: [*(settings[name] for name in ("elite", "first", "size")), *sizes.values(), *settings["seed"]],
        str: [*cut["dtypes"], *cut["reals"], settings["boot"] or ""],
        dict: [settings[name] or {} for name in ("mutate", "crossover", "bounds")],
    }
    if not all(type(value) is kind for kind, values in kinds.items() for value in values):
        raise ValueError("its text is another")
    counts = [sizes["fitness"], sizes["chosen"], 3 * sizes["tasks"]]
    arrays: list[Array] = []
    stop = at + length
    for count, dtype in zip(counts, (np.float64, np.int64, np.int64), strict=True):
        arrays.append(np.frombuffer(mapping[stop : stop + 8 * count], dtype))
        stop += 8 * count
    if [len(array) for array in arrays] != counts or crc32(mapping[at:stop]) != checksum:
        raise ValueError("its checksum is another")
    groups = [cut["dtypes"][group] for group in arrays[2][::3].tolist()]
    ranges = arrays[2].reshape(-1, 3)[:, 1:].tolist()
    tasks = [Task(group, begin, end) for group, (begin, end) in zip(groups, ranges, strict=True)]
    reals = [np.dtype(name).type for name in cut["reals"]]
    plan = Plan(tasks, cut["width"], cut["rows"], cut["workers"], reals)
    log = Log(mapping, Asked(arrays[0], arrays[1], settings), plan, _up(stop))
    reached = log.progress[:, 0].tolist()
    inside = all(task.start <= at <= task.stop for task, at in zip(tasks, reached, strict=True))
    if not inside or not all(-1 <= number < len(tasks) for number in log.owners.tolist()):
        raise ValueError("what it notes is of other tasks")
    return log


def _up(nbytes: int) -> int:
    """What `nbytes` take in a log: each array has lines of the cache of its own."""
    return -(-nbytes // 64) * 64
