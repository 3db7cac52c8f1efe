"""Times that noise does not decide: calls take turns, and what counts is how they compare, or the machine's roof."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from flatstore.layout import Array
from flatstore.threads import each, threads

Call = Callable[[], Any]


def seconds(call: Call) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: Mapping[Any, Call], rounds: int = 9, *, twice: bool = False) -> dict[Any, Array]:
    """The seconds of each call in each round, float64 of shape (rounds,); a round makes all calls, one by one.

    All are called once before. With `twice` each is also made once more before it is timed: otherwise it pays for
    what the one before leaves behind, such as threads of JAX that wait at full speed, or a processor that sleeps.
    Whatever is computed asynchronously, as in JAX, is waited for by the calls themselves.

    >>> {name: taken.shape for name, taken in interleaved({"a": list, "b": dict}, 5).items()}
    {'a': (5,), 'b': (5,)}
    """
    for call in calls.values():
        call()

    def timed(call: Call) -> float:
        if twice:
            call()
        return seconds(call)

    taken = np.array([[timed(call) for call in calls.values()] for _ in range(rounds)])
    return dict(zip(calls, taken.T, strict=True))


def ratio(one: Call, other: Call, rounds: int = 9) -> float:
    """How many times as long one call takes as another: the median of the rounds' own ratios.

    They are interleaved, so that a busy machine slows both alike.

    >>> ratio(lambda: sum(range(100_000)), lambda: sum(range(1_000))) > 10
    True
    """
    taken = interleaved({"one": one, "other": other}, rounds)
    return float(np.median(taken["one"] / taken["other"]))


def roof(nbytes: int = 1 << 28) -> float:
    """The bytes a second that this machine reads and writes in place: the roof of what is in memory.

    It is that of as many threads as the compiled loops use: by itself, of all cores.

    Allocates `nbytes`, which should be several times the cache.
    """
    call = _in_place(nbytes)
    return 2 * nbytes / float(np.median(interleaved({"roof": call}, 5)["roof"]))


def of_roof(work: Call, nbytes: int, rounds: int = 9) -> float:
    """The part of the machine's roof that a call reaches, which reads and writes so many bytes in all.

    Measured beside the roof, in turns. More than 1 means that it stays in the cache.
    """
    size = max(nbytes // 2, 1 << 20)
    taken = interleaved({"roof": _in_place(size), "work": work}, rounds)
    return nbytes / (2 * size) * float(np.median(taken["roof"] / taken["work"]))


def _in_place(nbytes: int) -> Call:
    return scaled(np.ones(nbytes // 4, np.float32))


def scaled(array: Array) -> Call:
    """A call that is the roof for an array of float32: `np.multiply` in place, a part for each thread.

    >>> x = np.ones(1000, "f4")
    >>> scaled(x)()
    >>> bool((x == 1).all())
    True
    """
    parts: list[Array] = np.array_split(array, threads())
    one = np.float32(1)

    def multiply(part: int) -> None:
        np.multiply(parts[part], one, out=parts[part])

    return partial(each, multiply, len(parts))
