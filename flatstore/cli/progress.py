"""The live display of a run: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, Protocol

from flatstore.cli.curve import Curve
from flatstore.extras import require


class Display(Protocol):
    """What shows a run as it goes."""

    def note(self, text: str) -> None:
        """Say what is being done before the first generation."""
        ...

    def advance(self, generation: int, fitness: float, curve: Curve) -> None:
        """Show that a generation is done."""
        ...


@contextlib.contextmanager
def progress(generations: int) -> Generator[Display]:
    """A display for a run of so many generations: live in a terminal, plain lines without one."""
    console = require("rich.console", "demo").Console()
    if not console.is_terminal:
        yield _Lines(generations)
        return
    rich: Any = require("rich.progress", "demo")
    with rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=None),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[state]}"),
        console=console,
    ) as bar:
        yield _Bar(bar, bar.add_task("evolving", total=generations, state=""))


def _state(fitness: float, curve: Curve) -> str:
    if not curve.points:
        return f"fitness {fitness:7.3f}"
    _, train, test = curve.points[-1]
    return f"fitness {fitness:7.3f}  training {100 * train:5.1f} %  test {100 * test:5.1f} %"


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def note(self, text: str) -> None:
        self._bar.update(self._task, state=text)

    def advance(self, generation: int, fitness: float, curve: Curve) -> None:
        self._bar.update(self._task, completed=generation, state=_state(fitness, curve))


class _Lines:
    def __init__(self, generations: int) -> None:
        self._generations, self._width = generations, len(f"{generations:,}")

    def note(self, text: str) -> None:
        print(text, flush=True)

    def advance(self, generation: int, fitness: float, curve: Curve) -> None:
        if generation % max(1, self._generations // 10) == 0 or generation == self._generations:
            print(f"generation {generation:{self._width},}  {_state(fitness, curve)}", flush=True)
