"""What a run costs that is kept in a folder: `python -m benchmarks.run_figures [--quick] [--folder DIR]`.

A generation with `run=` and one without, in turn, and what the journal's own calls take. The folder should be on the
disk that runs are kept on: a flush takes as long as the disk takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import es, ga
from flatstore.recording.journal_file import Journal

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


def milliseconds(step: Any, times: int) -> float:
    """The median time of a call."""
    taken: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few generations")
    parser.add_argument("--folder", type=Path, help="where to keep the runs (default a temporary folder)")
    arguments = parser.parse_args()
    times = 5 if arguments.quick else 300
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        number = os.open(f"{folder}/bare", os.O_RDWR | os.O_CREAT)
        line = b"x" * 8000

        def bare() -> None:
            os.write(number, line)
            os.fdatasync(number)

        print(f"a bare write of 8,000 bytes and fdatasync   {milliseconds(bare, times):6.3f} ms")
        os.close(number)
        journal = Journal(f"{folder}/journal.jsonl")
        values = np.random.default_rng(0).normal(size=384).tolist()
        append = milliseconds(lambda: journal.append({"number": len(journal), "fitness": values}), times)
        print(f"an entry of 384 numbers appended            {append:6.3f} ms")
        journal.close()
        print("\na generation in ms                  without run=      with it     more")
        for members, size in ((64, 1_000), (256, 2_410), (1024, 2_410)):
            for name, loop in loops(members, size).items():
                if name == "es.mezo" and members != 64:
                    continue
                kept, free = loop(f"{folder}/{name}-{members}"), loop(None)
                for _ in range(3):
                    next(kept), next(free)
                steps = partial(next, free), partial(next, kept)
                taken = [[milliseconds(step, 1) for step in steps] for _ in range(times)]
                without, with_it = (statistics.median(column) for column in zip(*taken, strict=True))
                more = statistics.median(b - a for a, b in taken)
                what = f"{name}, {members} members" if name != "es.mezo" else name
                print(f"{what:<32} {without:14.3f} {with_it:12.3f} {more:8.3f}")
                kept.close()
                free.close()


if __name__ == "__main__":
    main()
