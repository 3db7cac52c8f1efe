"""`flatstore plot`: the learning curves of runs in folders, from their journals, at any time."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from flatstore.cli.plot_curve import Line, draw
from flatstore.extras import require
from flatstore.recording import as_numbers, run_entries, settings_of

_COLOURS = ("#1f5fa8", "#c4572e", "#2e8b57", "#8a4fa8", "#b08a1e", "#4a5568")
_DARK = ("#5c9be0", "#e07a50", "#4cb57a", "#b37fce", "#d0ab3f", "#94a0b3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `flatstore plot`. `run` takes what they parse to."""
    parser.description = (
        "Draw the mean fitness of each generation of a run, or of several beside each other, and thinner the best one. "
        "The journals are read as they are; the runs may still go on."
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), metavar="FILE", help="where to write (default %(default)s)"
    )
    parser.add_argument("--dark", action="store_true", help="draw them on a dark ground")


def run(arguments: argparse.Namespace) -> int:
    """Draw the curves; returns the exit status."""
    require("matplotlib", "demo")
    lines: list[Line] = []
    try:
        for i, folder in enumerate(arguments.folders):
            colours = _DARK if arguments.dark else _COLOURS
            lines += _lines_of(folder, colours[i % len(colours)])
        draw(arguments.out, lines, title="learning curves", axis="fitness", dark=arguments.dark)
    except (ValueError, OSError) as error:
        print(f"flatstore plot: {error}", file=sys.stderr)
        return 2
    print(f"written  {arguments.out}")
    return 0


def _lines_of(folder: Path, colour: str) -> list[Line]:
    """The mean and the best fitness of each generation of a run; gaps where no member has a number."""
    settings_of(folder)  # raises if it is no run
    numbers: list[int] = []
    means: list[float] = []
    bests: list[float] = []
    for entry in run_entries(folder):
        try:
            fitness = as_numbers(entry["fitness"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected fitness in the journal of {str(folder)!r}, got {entry!r}; fix: copy it"
            ) from error
        real = fitness[np.isfinite(fitness)]
        numbers.append(entry["number"] + 1)
        means.append(float(real.mean()) if real.size else np.nan)
        bests.append(float(real.max()) if real.size else np.nan)
    if not numbers:
        raise ValueError(f"expected a run with a generation, got none in {str(folder)!r}; fix: wait for the first")
    name = folder.resolve().name
    return [Line("", numbers, bests, colour, 0.7), Line(f"{name} {means[-1]:.4g}", numbers, means, colour)]
