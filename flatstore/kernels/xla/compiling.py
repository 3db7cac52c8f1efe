"""Functions compiled by XLA for the whole width of the processor's vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

_jax: Any = jax


def jitted(function: Callable[..., Any], **how: Any) -> Any:
    """Return `jax.jit(function, **how)`; on a CPU with vectors of 512 bits, where XLA by itself uses half of them."""
    options = {"xla_cpu_prefer_vector_width": "512"} if _jax.default_backend() == "cpu" else None
    return _jax.jit(function, compiler_options=options, **how)
