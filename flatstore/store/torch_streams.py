"""The order of work on a card: what a verb writes, and what its caller asks the card for before and after."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from flatstore.extras import require
from flatstore.memory import Memory, using, write


def write_in_order(
    device: Any, memories: Sequence[Memory], work: Callable[[], object], reads: using | None = None
) -> None:
    """Do work as `write` does. On a card it comes after what the caller's stream was asked before, and before the rest.

    The work may run in another thread, which has a stream and a current card of its own. It is asked of the card's
    default stream, so that verbs follow each other in whatever thread they are called.
    """
    if device.type != "cuda":
        write(memories, work, reads)
        return
    torch = require("torch", "torch")
    before, after = torch.cuda.current_stream(device).record_event(), None

    def ordered() -> None:
        nonlocal after
        stream = torch.cuda.default_stream(device)
        with torch.cuda.stream(stream):
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


@contextmanager
def after_verbs(device: Any) -> Generator[Any]:
    """A context in which a card is the current one, and the caller's stream comes after the verbs of all threads.

    It gives that stream, or None in host memory.
    """
    if device.type != "cuda":
        yield None
        return
    torch = require("torch", "torch")
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.default_stream())
        yield stream


def before_verbs(stream: Any) -> None:
    """Have the verbs of all threads come after what a stream was asked; None is that of no card."""
    if stream is not None:
        require("torch", "torch").cuda.default_stream(stream.device).wait_stream(stream)


def finish(device: Any) -> None:
    """Wait until a card has done all that it was asked for, on any stream."""
    if device.type == "cuda":
        require("torch", "torch").cuda.synchronize(device)
