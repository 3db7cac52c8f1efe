"""The memory that a call takes at its peak, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


def resident(field: str = "VmRSS") -> int:
    """The bytes of memory that this process has now ("VmRSS"), or has had at most ("VmHWM").

    Raises `OSError` where there is no /proc, which is the case but on Linux.

    >>> 0 < resident() <= resident("VmHWM")
    True
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def tidy() -> int:
    """Give back what is free, and forget the peak; returns the bytes that are left, as `resident`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what a compiler has freed would pass for memory in use
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    return resident()


def peak_memory(
    work: Callable[..., object], *arguments: Any, setup: Callable[..., Any] | None = None, warm: int = 1
) -> int:
    """The most bytes of memory that a call adds to a process, which is a new one.

    There, `setup(*arguments)` is called, if there is one, and `work` with what it returns, else `work(*arguments)`:
    `warm` times unmeasured, in which it compiles and imports, and once measured. What the measured call returns lives
    until the peak is read. What the setup has made is not counted; what a call leaves behind in the first of its
    calls, such as a cache, is not, either. Functions and arguments travel to that process, so they have names in a
    module. Raises what they raise; `RuntimeError` if the process dies; `ValueError` for a negative `warm`.

    >>> peak_memory(np.ones, 1 << 24) / (8 << 24) > 0.9    # doctest: +SKIP
    True
    """
    if warm < 0:
        raise ValueError(f"warm: expected a number of calls, got {warm}; fix: pass 1, or 0 to count what is compiled")
    roots = [root for function in (setup, work) if function is not None for root in _roots(function)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _look_first_in, (roots,)) as process:
        try:
            return process.submit(_peak, work, arguments, setup, warm).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"expected a peak of {getattr(work, '__qualname__', work)!r}, got a process that died; fix: call it in "
                "a process of your own, and see what it prints; for lack of memory, measure a smaller one"
            ) from error


def _roots(function: Callable[..., Any]) -> list[str]:
    """The folder from which a function's module is imported: whoever has imported it may have found it elsewhere."""
    name = function.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name == "__main__":
        return []
    return [str(Path(file).parents[name.count(".") + (Path(file).stem == "__init__")])]


def _look_first_in(folders: list[str]) -> None:
    sys.path[:0] = folders


def _peak(work: Callable[..., object], arguments: tuple[Any, ...], setup: Callable[..., Any] | None, warm: int) -> int:
    given = arguments if setup is None else (setup(*arguments),)
    for _ in range(warm):
        work(*given)
    before = tidy()
    kept = work(*given)
    most = resident("VmHWM")
    del kept
    return most - before
