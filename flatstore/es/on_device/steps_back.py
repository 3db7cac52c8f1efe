"""Steps that are taken back if a later one fails; if that fails, too, the exception says so."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from flatstore.threads import add_notes, moment

IN_BETWEEN = "what was moved before could not all be taken back: some leaves are in between; fix: store.assign(values)"


@contextmanager
def steps_back() -> Generator[ExitStack]:
    """A stack of what takes steps back, the last first: done if the block raises, and forgotten if it does not."""
    since, back = moment(), ExitStack()
    try:
        yield back
    except BaseException as error:
        _take(back, error, since)
        raise


def _take(back: ExitStack, error: Any, since: int) -> None:
    try:
        back.close()
    except BaseException:  # it is the first exception that is raised
        if IN_BETWEEN not in getattr(error, "__notes__", ()):
            add_notes(error, since, IN_BETWEEN)
