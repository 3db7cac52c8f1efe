"""The order of work on a card: what a verb writes, and what its caller asks the card for before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flatstore.extras import require
from flatstore.memory import Memory, using, write


def write_in_order(
    device: Any, memories: Sequence[Memory], work: Callable[[], object], reads: using | None = None
) -> None:
    """Do work as `write` does. On a card it comes after what the caller's stream was asked before, and before the rest.

    The work may run in another thread, which has a stream and a current card of its own.
    """
    if device.type != "cuda":
        write(memories, work, reads)
        return
    torch = require("torch", "torch")
    before, after = torch.cuda.current_stream(device).record_event(), None

    def ordered() -> None:
        nonlocal after
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            stream.wait_event(before)
            try:
                work()
            finally:
                after = stream.record_event()

    try:
        write(memories, ordered, reads)
    finally:
        if after is not None:
            torch.cuda.current_stream(device).wait_event(after)
