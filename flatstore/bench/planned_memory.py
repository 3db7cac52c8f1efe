"""The memory that a jitted function takes, as XLA has planned it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_jax: Any = jax


class XlaMemory(NamedTuple):
    """Bytes that a compiled function takes."""

    arguments: int
    """Those that it is given, and that it uses."""
    outputs: int
    """Those that it returns; of several, the table of where they are, too."""
    aliased: int
    """Outputs that lie in arguments, which were donated."""
    temporaries: int
    """Those that it takes on the way."""

    @property
    def extra(self) -> int:
        """What a call adds to its arguments at most."""
        return self.outputs - self.aliased + self.temporaries


def xla_memory(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> XlaMemory:
    """The bytes that a function takes once it is compiled, without a call.

    `function` is jitted, or will be; `arguments` are arrays, or `jax.ShapeDtypeStruct`s in their place, so nothing is
    allocated. Raises what tracing raises, and `RuntimeError` on a platform whose XLA does not tell.

    >>> step = jax.jit(lambda w: w * 0.5 + 1, donate_argnums=0)
    >>> xla_memory(step, jax.ShapeDtypeStruct((1000,), "float32"))
    XlaMemory(arguments=4000, outputs=4000, aliased=4000, temporaries=0)
    >>> xla_memory(lambda w: w[::-1].cumsum(), jax.ShapeDtypeStruct((1000,), "float32")).extra >= 4000
    True
    """
    jitted: Any = function if hasattr(function, "lower") else _jax.jit(function)
    planned = jitted.lower(*arguments, **keywords).compile().memory_analysis()
    if planned is None:
        raise RuntimeError(
            f"expected a platform that tells what it allocates, got {jax.default_backend()}; fix: measure on the CPU"
        )
    return XlaMemory(
        planned.argument_size_in_bytes,
        planned.output_size_in_bytes,
        planned.alias_size_in_bytes,
        planned.temp_size_in_bytes,
    )
