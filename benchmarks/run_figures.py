"""What a run costs that is kept in a folder: a generation with `run=` beside one without, and what the journal takes.

    python -m benchmarks.run_figures                    # two minutes
    python -m benchmarks.run_figures --quick            # a few generations
    TMPDIR=/data python -m benchmarks.run_figures       # on another disk

The folder should be on the disk that runs are kept on: a flush takes as long as the disk takes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import es, ga
from flatstore.recording.journal_file import Journal

from .report import Row, beside, each, interleaved, report

NOISE = fs.Normal(0.1)


def evaluate(stacked: Any, number: int) -> Any:
    """A fitness that costs hardly anything."""
    return np.asarray(stacked["w"])[:, 0] + 0.1


def evaluate_one(params: Any, number: int) -> Any:
    """The same for one model."""
    return np.asarray(params["w"])[0] + 0.1


def loops(members: int, size: int) -> dict[str, Any]:
    """The loops by name, each a function of its folder or None."""

    def new() -> Any:
        return fs.Store.from_tree({"w": np.zeros(size, "f4")})

    def by_es(run: Any) -> Any:
        return es.evolve(new(), evaluate, seed=0, noise=NOISE, members=members, rate=0.1, run=run)

    def by_ga(run: Any) -> Any:
        pop = fs.Population.zeros(new().layout, members)
        return ga.evolve(pop, evaluate, seed=0, mutate=NOISE, run=run)

    def by_mezo(run: Any) -> Any:
        return es.mezo(new(), evaluate_one, seed=0, noise=NOISE, rate=0.01, run=run)

    return {"es.evolve": by_es, "ga.evolve": by_ga, "es.mezo": by_mezo}


def journal(quick: bool) -> Iterator[Row]:
    """The journal's own call, beside a bare one."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/bare", "wb", buffering=0) as bare:
        kept, line = Journal(f"{folder}/journal.jsonl"), b"x" * 8000
        values = np.random.default_rng(0).normal(size=384).tolist()
        calls = {
            "8,000 bytes written, and fdatasync": lambda: (bare.write(line), os.fdatasync(bare.fileno())),
            "an entry of 384 numbers appended": lambda: kept.append({"number": len(kept), "fitness": values}),
        }
        taken = interleaved(calls, 5 if quick else 300)
        kept.close()
    for name, times in taken.items():
        yield beside(name, f"{1e3 * np.median(times):.3f} ms")


def generations(quick: bool) -> Iterator[Row]:
    """A generation."""
    for members, size in ((64, 1_000), (256, 2_410), (1024, 2_410)):
        for name, loop in loops(members, size).items():
            if name == "es.mezo" and members != 64:
                continue
            with tempfile.TemporaryDirectory() as folder:
                runs = {"without run=": loop(None), "with it": loop(f"{folder}/run")}
                for run in runs.values():
                    next(run), next(run)
                taken = interleaved({key: partial(next, run) for key, run in runs.items()}, 5 if quick else 300)
                for run in runs.values():
                    run.close()
            more = 1e3 * np.median(taken["with it"] - taken["without run="])
            what = name if name == "es.mezo" else f"{name}, {members} members"
            yield beside(what, f"{each(taken)}, {more:.3f} more")


if __name__ == "__main__":
    report(__doc__ or "", journal, generations)
