"""Reading and writing memories, as the verbs do: by contexts, by work that is not interrupted, or all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from operator import call, length_hint
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.lib.array_utils import byte_bounds

from flatstore.layout import Array, is_torch_tensor
from flatstore.memory.host import Memory
from flatstore.memory.overlaps import members_at
from flatstore.memory.readers_and_writers import Access
from flatstore.memory.spans import bytes_of
from flatstore.memory.waits import persist
from flatstore.threads import Closing, is_interrupted, uninterrupted

T = TypeVar("T")


class using:  # noqa: N801 (used as a function)
    """A context in which memories are read, and others written by this thread alone, in steps that may be interrupted.

    Raises `LentError` if others are in the way: for all of the memories together, so that none is held in vain.
    """

    def __init__(self, *, reads: Sequence[Memory] = (), writes: Sequence[Memory] = ()) -> None:
        self.access: Access = Access(reads=reads, writes=writes)

    def __enter__(self) -> Self:
        self.access.begin()
        return self

    __exit__: Closing = Closing()

    def closing(self) -> Generator[None]:
        """When resumed, end the access."""
        try:
            yield
        finally:
            self.access.over = True  # the first thing that is done, and enough: others remove what is over
            self.access.forget()


def reading(*memories: Memory) -> using:
    """A context in which these memories are read, and not written by verbs. Raises `LentError` if one is written."""
    return using(reads=memories)


def memories_of(arrays: Iterable[Any]) -> list[Memory]:
    """The memories, each once, in which any of these arrays lies: of NumPy and torch, and nothing else lies in any.

    Tensors on a card lie in those of the stores there.
    """
    found: dict[int, Memory] = {}
    last: Memory | None = None
    for array in arrays:
        if is_torch_tensor(array):
            try:
                array = bytes_of(array)
            except (RuntimeError, ValueError):  # it has no address, and is refused by who reads it
                continue
        if not isinstance(array, np.ndarray) or not array.size:
            continue
        start, stop = byte_bounds(cast(Array, array))
        if last is not None and last.start <= start and stop <= last.stop:
            continue  # many leaves of one store
        for memory in members_at(start, stop):
            found[id(memory)] = last = memory
    return list(found.values())


def write(memories: Sequence[Memory], work: Callable[[], T], own: using | None = None) -> T:
    """Do the work as the only writer of these memories, uninterrupted, and return its result.

    `own` is what the work itself reads, which may be the same memories. Raises `LentError`, before the work begins, if
    anybody else reads or writes them.
    """
    begun = False

    def attempt() -> T:
        nonlocal begun
        access = Access(writes=memories, beside=own.access if own else None)
        access.begin()
        try:
            begun = True
            return work()
        finally:
            access.end()

    return persist(lambda: uninterrupted(attempt), lambda: begun)


def write_at_once(memories: Sequence[Memory], steps: Sequence[Callable[[], object]], own: using | None = None) -> None:
    """Call functions of C one after the other, as the only writer of these memories: nothing comes between them.

    It costs a tenth of what `write` does, for the steps are called here, by one call of C. So each of them is to be a
    function of C, such as a compiled loop, or a `functools.partial` of one; inside a function of Python handlers would
    be called. They should be short, since none is called until all are done. What a handler raises afterwards does not
    say so by a note: what has to be known of the steps is to be noted by one of them.

    >>> from operator import setitem
    >>> from functools import partial
    >>> memory, done = Memory.heap(4), []
    >>> write_at_once([memory], [partial(setitem, memory.bytes, 0, 7), partial(done.append, 0)])
    >>> memory.bytes.tolist(), done
    ([7, 0, 0, 0], [0])

    Raises `LentError`, before the first step, if anybody else reads or writes the memories; and what a step raises: the
    rest is not called then. A step that fails for a lack of memory is called again, so it must not have begun, or may
    be called twice.
    """
    runner = _NOBODY if is_interrupted() else None
    access = Access(writes=memories, beside=own.access if own else None, runner=runner)
    access.begin()
    try:
        at_once(steps)
    finally:
        access.over = True
        access.forget()


def at_once(steps: Iterable[Callable[[], object]]) -> None:
    """Call functions of C one after the other, by one call of C, as `write_at_once` does.

    If memory is short for a moment, when some have been called, the one that failed is called again, and the rest.
    """
    steps = [*steps, bool]  # what is raised when only the last is left, which does nothing, a handler has raised
    rest = iter(steps)
    try:
        deque(map(call, rest), 0)
    except MemoryError as error:
        done = len(steps) - 1 - length_hint(rest)
        if done < 1 or done == len(steps) - 1:
            raise
        try:
            deque(map(call, steps[done:]), 0)
        except BaseException:
            error.add_note("flatstore could not finish what was begun: the parameters are half written")
            raise error from None


_NOBODY = -1  # a handler that is called by the same thread, before the steps or after them, may not write either
