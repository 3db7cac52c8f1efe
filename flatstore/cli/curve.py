"""The learning curve: accuracy by generation, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatstore.extras import require


class Curve:
    """(generation, accuracy on training images, on test images), in order."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float]] = []

    def add(self, generation: int, train: float, test: float) -> None:
        """One more point; accuracies are shares in 0 .. 1."""
        self.points.append((generation, train, test))

    def write(self, path: Path, algo: str) -> None:
        """Draw the curve as a PNG. Raises `ImportError` without matplotlib."""
        figure: Any = require("matplotlib.figure", "demo").Figure(figsize=(7, 4), layout="constrained")
        require("matplotlib.backends.backend_agg", "demo").FigureCanvasAgg(figure)
        axes = figure.subplots()
        generations, train, test = zip(*self.points, strict=True)
        for values, label, colour in ((train, "training", "#9aa5b1"), (test, "test", "#1f5fa8")):
            percent = [100 * value for value in values]
            axes.plot(generations, percent, color=colour, linewidth=1.8)
            axes.annotate(
                f"{label} {percent[-1]:.1f} %",
                (generations[-1], percent[-1]),
                xytext=(6, 6 if label == "training" else -6),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.set(
            xlabel="generation",
            ylabel="accuracy, %",
            title={"es": "Evolution strategy on digits", "ga": "Genetic algorithm on digits"}[algo],
            xlim=(0, generations[-1] * 1.16),
        )
        low = min(min(train), min(test))
        axes.set_ylim(max(0, 100 * low - 3), 101)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        figure.savefig(path, dpi=150)
