"""The display of a run: a live bar in a terminal, otherwise about ten lines in all."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Callable, Generator
from typing import Any, Protocol

from flatstore.extras import require

_KERNELS = logging.getLogger("flatstore.kernels")


class Display(Protocol):
    """What shows a run as it goes."""

    def note(self, text: str) -> None:
        """Show what is being done, when it takes a while."""
        ...

    def advance(self, generation: int, state: str) -> None:
        """Show that a generation is done."""
        ...


@contextlib.contextmanager
def progress(generations: int) -> Generator[Display]:
    """A display for a run of `generations` generations: live in a terminal, plain lines otherwise.

    It also shows what the kernels log, such as that they compile.
    """
    console = require("rich.console", "demo").Console()
    if not console.is_terminal:
        lines = _Lines(generations)
        with _kernel_log_to(lines.note):
            yield lines
        return
    rich: Any = require("rich.progress", "demo")
    with rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=None),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[state]}", markup=False),
        console=console,
    ) as live:
        bar = _Bar(live, live.add_task("evolving", total=generations, state=""))
        with _kernel_log_to(bar.note):
            yield bar


@contextlib.contextmanager
def _kernel_log_to(note: Callable[[str], None]) -> Generator[None]:
    """Call `note` with each message that the kernels log."""
    handler, level = _Handler(note), _KERNELS.level
    _KERNELS.addHandler(handler)
    _KERNELS.setLevel(logging.INFO)
    try:
        yield
    finally:
        _KERNELS.removeHandler(handler)
        _KERNELS.setLevel(level)


class _Handler(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(textwrap.shorten(record.getMessage(), 60, placeholder=" …"))


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def note(self, text: str) -> None:
        self._bar.update(self._task, state=text)

    def advance(self, generation: int, state: str) -> None:
        self._bar.update(self._task, completed=generation, state=state)


class _Lines:
    def __init__(self, generations: int) -> None:
        self._generations, self._width = generations, len(f"{generations:,}")

    def note(self, text: str) -> None:
        print(text, flush=True)

    def advance(self, generation: int, state: str) -> None:
        if generation % max(1, self._generations // 10) == 0 or generation == self._generations:
            print(f"generation {generation:{self._width},}  {state}", flush=True)
