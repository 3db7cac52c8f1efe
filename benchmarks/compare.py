"""flatstore beside its peers: one table, and one picture of it, for light and for dark pages.

    python -m benchmarks.compare --out docs/pictures     # under ten minutes on two cores
    python -m benchmarks.compare --quick                 # a minute, smaller sizes, no files

Each peer has a process of its own, which times its own work; the processes take turns (`race.py`). A generation is
selection, crossover and mutation (ga), or samples around a centre and its move (es), without an evaluation; the last
rows are whole loops on small networks, where evaluation is most of it. Below stand the exponents of `scaling.py`: how
the cost of each grows with the work, 1 where twice as much takes twice as long. What is not installed is `n/a`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import race, scaling
from .peers import installed, named
from .report import NOT_THERE, processor, versions

LIBRARIES = ("flatstore", "numpy", "evosax", "evotorch")
SMALLEST = 16 << 20
"""Bytes of a population whose peak is told."""
COLOURS = ("#c4572e", "#7d8793", "#3f7fc0", "#3d9a62")


class Job(NamedTuple):
    """What is compared: a row of the table for each library."""

    name: str
    peers: dict[str, Any]
    """By library; the faster variant of a library is taken where it has several."""
    members: int
    genes: int
    generations: int


class Result(NamedTuple):
    """What a library does in a job."""

    rate: float
    """Genes a second."""
    peak: float | None
    """Bytes at the peak, as a multiple of the population; not of a small one, beside which libraries keep more."""


Results = list[tuple[Job, dict[str, Result | None]]]


def jobs(quick: bool) -> list[Job]:
    """All jobs."""
    members, genes = (64, 20_000) if quick else (256, 200_000)
    small = (64, 2_410) if quick else (256, 2_410)
    return [
        Job("a generation, ga", some("generation", "ga"), members, genes, 1),
        Job("a generation, es", some("generation", "es"), members, genes, 1),
        Job("a whole loop, ga, small network", some("evaluation", "ga"), *small, 20),
        Job("a whole loop, es, small network", some("evaluation", "es"), *small, 20),
    ]


def some(question: str, kind: str) -> dict[str, Any]:
    """The peer of each library that has one."""
    peers = named(question, kind)
    chosen = {name: peers.get(variant(name, peers)) for name in LIBRARIES}
    return {name: peer for name, peer in chosen.items() if peer is not None}


def variant(library: str, peers: dict[str, Any]) -> str:
    """The name of a library's peer; of several, of the one that is one compiled loop."""
    return f"{library} (scan)" if f"{library} (scan)" in peers else library


def measured(job: Job, rounds: int) -> dict[str, Result | None]:
    """The result of each library, None where it is not installed."""
    found, size = installed(job.peers), job.members * job.genes
    taken = race.race(found, job.members, job.genes, rounds, job.generations)
    made: dict[str, Result | None] = dict.fromkeys(job.peers)
    for name, peer in found.items():
        peak = race.peak(peer, job.members, job.genes) / (4 * size) if 4 * size >= SMALLEST else None
        made[name] = Result(size / float(np.median(taken[name])), peak)
    return made


def table(results: Results) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| | {' | '.join(LIBRARIES)} |"
    yield "|---|" + "---|" * len(LIBRARIES)
    for job, found in results:
        cells = [_cell(found.get(name), found["flatstore"]) for name in LIBRARIES]
        yield f"| {job.name}, {job.members} × {job.genes:,} | {' | '.join(cells)} |"


def growing(quick: bool) -> Iterator[str]:
    """The lines of a table of exponents."""
    yield f"| exponent of the cost | {' | '.join(LIBRARIES)} |"
    yield "|---|" + "---|" * len(LIBRARIES)
    for name, growth in scaling.GROWTH.items():
        found = installed(growth.peers)
        names = [variant(library, growth.peers) for library in LIBRARIES]
        cells = [f"{scaling.grown(name, x, quick)[0]:.2f}" if x in found else NOT_THERE for x in names]
        yield f"| {growth.what}, from {growth.sizes[growth.fitted]:,} {name} on | {' | '.join(cells)} |"


def _cell(result: Result | None, ours: Result | None) -> str:
    if result is None or ours is None:
        return NOT_THERE
    peak = "" if result.peak is None else f", peak {result.peak:.1f} ×"
    if result is ours:
        return f"{result.rate / 1e6:,.0f} M genes/s{peak}"
    return f"{ours.rate / result.rate:.1f} × as long{peak}"


def picture(results: Results, path: Path, dark: bool) -> None:
    """Draw rate and peak of each library in each job, on logarithmic axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper = ("#e6e6e6", "#1c1e21") if dark else ("#222222", "#ffffff")
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor=paper)
    FigureCanvasAgg(figure)
    rates, peaks = figure.subplots(1, 2, sharey=True)
    names = [f"{job.name}\n{job.members} × {job.genes:,}" for job, _ in results]
    for axes, title, value in (
        (rates, "genes a second: more is better", lambda result: result.rate),
        (peaks, "peak memory, × the population: less is better", lambda result: result.peak),
    ):
        axes.set_facecolor(paper)
        for library, colour in zip(LIBRARIES, COLOURS, strict=True):
            drawn = [(value(found[library]), row) for row, (_, found) in enumerate(results) if found.get(library)]
            points = [(x, row) for x, row in drawn if x is not None]
            axes.plot(
                [x for x, _ in points], [row for _, row in points], "o", color=colour, markersize=8, label=library
            )
        axes.set_xscale("log")
        axes.set_title(title, color=ink, fontsize=10)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(colors=ink, which="both")
        axes.grid(axis="both", color=ink, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(ink)
    peaks.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    peaks.minorticks_off()
    figure.legend(
        *rates.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, labelcolor=ink
    )
    figure.savefig(path, dpi=150)


def compared() -> str:
    """What was compared, where, and when."""
    names = "flatstore", "evosax", "evotorch", "jax", "numpy", "torch"
    found = dict.fromkeys(names, NOT_THERE) | versions(*names)
    machine = f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{', '.join(map(' '.join, found.items()))}; {machine}; {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Measure, print, and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write compare.md, compare.png, compare-dark.png")
    arguments = parser.parse_args()
    results: Results = []
    todo = jobs(arguments.quick)
    for number, job in enumerate(todo):
        bar = "#" * number + "." * (len(todo) - number)
        print(f"\r[{bar}] {job.name:40}", end="", file=sys.stderr, flush=True)
        results.append((job, measured(job, 2 if arguments.quick else 5)))
    growth = list(growing(arguments.quick))
    print(f"\r[{'#' * len(todo)}] {'done':40}", file=sys.stderr)
    text = "\n".join([*table(results), "", *growth, "", f"`python -m benchmarks.compare`; {compared()}", ""])
    print(text)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "compare.md").write_text(text)
        picture(results, arguments.out / "compare.png", dark=False)
        picture(results, arguments.out / "compare-dark.png", dark=True)


if __name__ == "__main__":
    main()
