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
    """Seconds that something takes on the device, its end included."""
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
    x = torch.ones(size_of(1 << 28, 1 << 20), device=TORCH)
    return 2 * x.nbytes / median(lambda: x.mul_(1.0))


def of_roof(rate: float) -> str:
    """A rate in words."""
    return f"{rate / 1e12:.2f} TB/s, {rate / roof():.2f} of the roof"


def differing(a: Any, b: Any) -> int:
    """How many numbers are not the same to the bit."""
    a, b = (np.ascontiguousarray(array_of(x.cpu()) if isinstance(x, torch.Tensor) else np.asarray(x)) for x in (a, b))
    return int((a.reshape(-1).view(f"u{a.itemsize}") != b.reshape(-1).view(f"u{b.itemsize}")).sum())
