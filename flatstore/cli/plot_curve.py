"""The learning curve: how well the champion does by generation, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatstore.cli.task import Task
from flatstore.extras import require


class Curve:
    """The points of a run, in order: (generation, its mean fitness, named measures of its champion)."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, dict[str, float]]] = []

    def add(self, generation: int, fitness: float, measures: dict[str, float]) -> None:
        """Append a point."""
        self.points.append((generation, fitness, measures))

    def write(self, path: Path, title: str, task: Task) -> None:
        """Draw the curve as a PNG. Raises `ImportError` without matplotlib."""
        figure: Any = require("matplotlib.figure", "demo").Figure(figsize=(7, 4), layout="constrained")
        require("matplotlib.backends.backend_agg", "demo").FigureCanvasAgg(figure)
        axes = figure.subplots()
        generations = [generation for generation, _, _ in self.points]
        lines = {} if task.FITNESS is None else {task.FITNESS: [mean for _, mean, _ in self.points]}
        lines |= {name: [measures[name] for _, _, measures in self.points] for name in self.points[0][2]}
        highest = max(lines, key=lambda name: (lines[name][-1], name))
        for name, values in lines.items():
            colour = "#1f5fa8" if name == list(lines)[-1] else "#9aa5b1"
            axes.plot(generations, values, color=colour, linewidth=1.8)
            axes.annotate(
                f"{name} {values[-1]:.1f}{task.UNIT}",
                (generations[-1], values[-1]),
                xytext=(6, 6 if name == highest else -6),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.set(xlabel="generation", ylabel=task.AXIS, title=title, xlim=(0, generations[-1] * 1.24))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        figure.savefig(path, dpi=150)
