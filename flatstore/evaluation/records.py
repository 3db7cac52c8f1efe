"""Records of moves, handed out one by one: whatever interrupts a loop, its records and its notes are true.

```
generation n    evaluate | move ......... | record n handed out | evaluate n + 1 ...
interrupted     |--------| record n - 1 holds: a note says so
                         |----------------| held back: raised after record n
```
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Generic, TypeVar

from flatstore.threads import noted, raised_later

R = TypeVar("R")


class _Round(Generic[R]):
    """One move: its record, once it is made, and the notes of what is raised meanwhile."""

    record: R | None = None

    def __init__(self, n: int, unmade: Callable[[int, BaseException], Iterable[str]], made: Callable[[int], str]):
        self.n, self.unmade, self.made = n, unmade, made
        self.is_noted = False
        self.later: Mapping[Any, Any] = {0: None}

    def hand_in(self, record: R) -> None:
        """Keep the record: the move is over."""
        self.record = record

    def notes(self, error: BaseException) -> Iterable[str]:
        """What is true of the state that the exception leaves; and prepare to raise it once more."""
        self.is_noted = True
        if self.record is None:
            return self.unmade(self.n, error)
        self.later = raised_later(error)
        return [self.made(self.n)]


def handed_out(
    first: int,
    most: int | None,
    make: Callable[[int, Callable[[R], None]], object],
    unmade: Callable[[int, BaseException], Iterable[str]],
    made: Callable[[int], str],
    *,
    again: R | None = None,
    until: Any = None,
) -> Generator[R]:
    """The records that `make(n, hand_in)` hands in, for each n from `first` on, below `most` if there is one.

    `hand_in(record)` is to be called when, and as soon as, a move is over. What `make` raises before is raised with the
    notes `unmade(n, error)`. What comes later (it was held back while the move was made) does not take the record away:
    it has the note `made(n)`, and is raised when the record has been handed out, even if the loop is left there.

    A record that is to be handed out `again` comes before them. `until` is dropped when the loop is over or left.
    """
    n = first
    try:
        if again is not None:
            yield again
        while most is None or n < most:
            move, held = _Round[R](n, unmade, made), None
            noting = noted(move.notes)
            try:
                with noting:
                    make(n, move.hand_in)
            except BaseException as error:
                held = error
            # From the move on nothing is called, and so nothing interrupts, until its record is handed out; and where
            # the loop is left there, nothing is left to do.
            if held is not None and not move.is_noted:  # it came when the context had been left
                try:
                    with noting:
                        raise held
                except BaseException as error:
                    held = error
            try:
                if move.record is None:
                    assert held is not None
                    raise held
                if held is None:
                    yield move.record
                else:
                    try:
                        yield move.record
                    except GeneratorExit:  # what is raised here is lost where the loop is left by `break`
                        until = None
                        move.later[0]
                        raise
                    raise held
            finally:
                held = None  # an exception holds this frame, which must not hold the exception
            n += 1
    finally:
        del until  # not by a call, after which what was asked for later would be raised, and lost
