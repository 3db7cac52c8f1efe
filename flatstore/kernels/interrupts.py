"""Ctrl-C, held back while something must not be left half-done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

FINISHED = "flatstore held this interrupt back until the work in progress was finished"
FAILED = "flatstore held this interrupt back until no thread was at work; a task had failed, see the cause"


class Interrupts:
    """Holds Ctrl-C back inside a `with` block, however often it is pressed; at the end its handler is called."""

    def __init__(self):
        self._times = 0
        main = threading.current_thread() is threading.main_thread()
        self._handler = signal.getsignal(signal.SIGINT) if main else None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Count. It raises nothing, so that no statement of the block can be left in the middle."""
        self._times += 1

    def __enter__(self) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGINT, self._handler)
            try:
                for _ in range(self._times):
                    self._handler(signal.SIGINT, None)
            except BaseException as interrupt:
                interrupt.add_note(FINISHED if error is None else FAILED)
                raise interrupt from error
