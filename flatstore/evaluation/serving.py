"""What a worker does: it evaluates members of a shared population where they lie, for the process that started it.

```
told       generation 7, members 3, 4, 5
answers    their fitness                or    which of them raised what, with the traceback
```
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from flatstore.evaluation.fitness import is_real, refuse_rounded
from flatstore.layout import Spec, as_array
from flatstore.memory import sweep
from flatstore.store import Population, Store, attach

Evaluate = Callable[[Store, int], Any]
"""A function of one member, and the number of the generation, that returns a real number: its fitness."""

READY = "ready"
"""What a worker says when it has started."""


class Failure(NamedTuple):
    """What evaluating a member has raised."""

    member: int
    pickled: bytes | None
    """The exception; None if it does not pickle."""
    described: str
    """Its type and message."""
    trace: str


def serve(name: str, evaluate: Evaluate, connection: Connection) -> None:
    """Evaluate members of the population shared by this name, as `connection` tells, until it is closed.

    Ctrl-C, which a terminal sends to all of its processes, is left to the one that started this; and when that is gone,
    so is this one, in the middle of an evaluation if need be.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    try:
        pop = attach(name)
        assert isinstance(pop, Population)
        connection.send(READY)
        while True:
            number, members = connection.recv()
            connection.send(_answer(pop, evaluate, number, members))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody asks any more
        pass
    finally:
        sweep()


def _leave_with(parent: int) -> None:
    """End this process once its parent has ended, and remove what that has left."""
    while os.getppid() == parent:
        time.sleep(0.2)
    sweep()
    os._exit(1)


def _answer(pop: Population, evaluate: Evaluate, number: int, members: list[int]) -> list[float] | Failure:
    scores: list[float] = []
    with pop.reading():
        for i in members:
            try:
                scores.append(one_number(evaluate(pop[i], number), i))
            except BaseException as error:
                return Failure(i, pickled(error), f"{type(error).__name__}: {error}", traceback.format_exc())
    return scores


def one_number(value: Any, i: int) -> float:
    """A fitness as a float. Raises `ValueError` unless it is one real number."""
    given = as_array(value, "fitness")
    if not is_real(given.dtype) or given.shape != ():
        raise ValueError(
            f"expected one real number as the fitness of member {i}, got {Spec(given.shape, given.dtype)}; "
            "fix: return a float"
        )
    refuse_rounded([given])
    return float(given)


def pickled(error: BaseException) -> bytes | None:
    """An exception as it travels; None if it would not arrive."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:
        return None
    return pickled
