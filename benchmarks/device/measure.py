"""What the checks of a card have in common: sizes, times, and the roof."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch and JAX share the card

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flatstore as fs
from flatstore.store import array_of

Line = tuple[str, bool | None, str]
"""The name of a check, whether it holds (None for a figure without a target), and what was seen."""

SMALL = "--small" in sys.argv
CARD = torch.cuda.is_available()
TORCH, JAX = ("cuda" if CARD else "cpu"), jax.devices()[0]
NOISE = fs.Normal(0.02)


def size_of(large: int, small: int) -> int:
    """A number of parameters, for a card or for a machine without."""
    return small if SMALL else large


def median(work: Callable[[], object], times: int = 10) -> float:
    """Seconds that something takes on the card, by its own clock, of what torch launches there."""
    if SMALL:
        return on_clock(work, times)
    taken: list[float] = []
    for _ in range(times + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return sorted(taken[2:])[times // 2]


def on_clock(work: Callable[[], object], times: int = 10) -> float:
    """Seconds that something takes, its launch and its end included: what JAX runs has streams of its own."""
    taken: list[float] = []
    for _ in range(1 if SMALL else times + 2):
        wait()
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return sorted(taken[-times:])[len(taken[-times:]) // 2]


def wait() -> None:
    """Wait for all that the device was asked to do."""
    if CARD:
        torch.cuda.synchronize()
        jax.block_until_ready(jnp.zeros(()) + 0)


@cache
def roof() -> float:
    """Bytes a second that the card reads and writes in place."""
    x = torch.ones(size_of(1 << 30, 1 << 20), device=TORCH)
    return 2 * x.nbytes / median(lambda: x.mul_(1.0))


def extra(work: Callable[[], object]) -> int:
    """Bytes that torch holds on the card at most while something runs, beside those before, the second time."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def of_roof(rate: float) -> str:
    """A rate in words."""
    return f"{rate / 1e12:.2f} TB/s, {rate / roof():.2f} of the roof"


def differing(a: Any, b: Any) -> int:
    """How many numbers are not the same to the bit."""
    a, b = (np.ascontiguousarray(array_of(x.cpu()) if isinstance(x, torch.Tensor) else np.asarray(x)) for x in (a, b))
    return int((a.reshape(-1).view(f"u{a.itemsize}") != b.reshape(-1).view(f"u{b.itemsize}")).sum())
