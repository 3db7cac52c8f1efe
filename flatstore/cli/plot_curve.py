"""The learning curve: how well the champion does by generation, and its picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatstore.cli.plot_page import DARK, INK, PADDING, PAPER
from flatstore.cli.task import Task
from flatstore.extras import require


class Line(NamedTuple):
    """A line of a picture, by generation."""

    label: str
    """What stands at its end."""
    generations: Sequence[int]
    values: Sequence[float]
    colour: str
    width: float = 1.8


class Curve:
    """The points of a run, in order: its mean fitness, and named measures of its champion, by generation.

    They are kept in a file, from which a run that goes on has those that came before.
    """

    def __init__(self, path: Path) -> None:
        self.points: dict[int, tuple[float, dict[str, float]]] = {}
        self._path = path
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                generation, fitness, measures = json.loads(line)
                if type(generation) is not int:
                    continue
                named = {str(name): float(value) for name, value in dict(measures).items()}
                self.points[generation] = float(fitness), named
            except (TypeError, ValueError, OverflowError, RecursionError):  # where a process was killed
                continue  # the point is measured again

    def add(self, generation: int, fitness: float, measures: dict[str, float]) -> None:
        """Append a point."""
        self.points[generation] = fitness, measures
        with open(self._path, "a") as file:
            file.write(f"\n{json.dumps([generation, fitness, measures])}")  # behind whatever a kill has left

    def write(self, path: Path, title: str, task: Task) -> None:
        """Draw the curve as a PNG. Raises `ImportError` without matplotlib."""
        names = self.points[max(self.points)][1].keys()  # a file from elsewhere may have others
        generations = sorted(number for number, (_, measures) in self.points.items() if measures.keys() == names)
        points = [self.points[generation] for generation in generations]
        values = {} if task.FITNESS is None else {task.FITNESS: [mean for mean, _ in points]}
        values |= {name: [measures[name] for _, measures in points] for name in names}
        colours = ["#9aa5b1"] * (len(values) - 1) + ["#1f5fa8"]
        lines = [
            Line(f"{name} {found[-1]:.1f}{task.UNIT}", generations, found, colour)
            for (name, found), colour in zip(values.items(), colours, strict=True)
        ]
        draw(path, lines, title=title, axis=task.AXIS)


def draw(path: Path, lines: Sequence[Line], *, title: str, axis: str, dark: bool = False) -> None:
    """Draw lines by generation as a picture, on white or on dark paper. Raises `ImportError` without matplotlib."""
    paper, ink, grid = (DARK[PAPER], DARK[INK], DARK[PADDING]) if dark else (PAPER, INK, "#e4e7eb")
    figure: Any = require("matplotlib.figure", "demo").Figure(figsize=(7, 4), layout="constrained", facecolor=paper)
    require("matplotlib.backends.backend_agg", "demo").FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(paper)
    axes.tick_params(colors=ink)
    axes.spines[["left", "bottom"]].set_color(ink)
    named = [line for line in lines if line.label]
    highest = max(named, key=lambda line: (line.values[-1], line.label))
    for line in lines:
        axes.plot(line.generations, line.values, color=line.colour, linewidth=line.width)
    for line in named:
        axes.annotate(
            line.label,
            (line.generations[-1], line.values[-1]),
            xytext=(6, 6 if line is highest else -6),
            textcoords="offset points",
            va="center",
            color=line.colour,
        )
    last = max(line.generations[-1] for line in lines)
    axes.set(xlim=(0, last * 1.24))
    axes.set_xlabel("generation", color=ink)
    axes.set_ylabel(axis, color=ink)
    axes.set_title(title, color=ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=grid, linewidth=0.8)
    figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")  # else it would give the file another name
