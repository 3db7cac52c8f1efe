"""Ctrl-C, held back while work must not be left half-done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

HELD_UNTIL_FINISHED = "flatstore held this interrupt back until the work in progress was finished"
HELD_AFTER_FAILURE = "flatstore held this interrupt back until no thread was at work; a task had failed, see the cause"


class Interrupts:
    """Holds Ctrl-C back during a `with` block, however often it is pressed; at its end the handler is called."""

    def __init__(self):
        self._presses = 0
        main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGINT) if main else None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Count a press. Nothing is raised, so that no statement of the block is left in the middle."""
        self._presses += 1

    def __enter__(self) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            try:
                for _ in range(self._presses):
                    self._handler(signal.SIGINT, None)
            except BaseException as interrupt:
                interrupt.add_note(HELD_UNTIL_FINISHED if error is None else HELD_AFTER_FAILURE)
                raise interrupt from error
