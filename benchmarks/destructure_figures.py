"""The figures of `destructure` beside `ravel_pytree`, interleaved in one run and printed as a table.

    python benchmarks/destructure_figures.py            # about a minute: ravel_pytree compiles
    python benchmarks/destructure_figures.py --quick    # 100 leaves

"First" is the first call for a tree of its own shapes, compilation included, in a process that has rebuilt another
tree before (the very first of all, in which Numba starts, has a line of its own). "After" is the median of interleaved
rounds of a few calls each, after as many that are not timed. Everything is ready to be read when the clock stops. How
else it is measured stands in `report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .report import Row, at_least, beside, interleaved, ratio, report, seconds
else:
    from report import Row, at_least, beside, interleaved, ratio, report, seconds

CALLS = 5


def ready(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that is over when its arrays are there."""
    return lambda: jax.block_until_ready(call())


def compared(leaves: int, shape: tuple[int, ...], rounds: int) -> Iterator[Row]:
    """The table's lines for a tree of `leaves` float32 arrays of one shape."""
    tree = {f"layer_{i:05d}": {"w": jnp.full(shape, i, jnp.float32)} for i in range(leaves)}
    jax.clear_caches()  # a program of the table before would do for this one, too
    made: dict[str, tuple[jax.Array, Callable[[Any], Any]]] = {}
    there = {
        name: seconds(ready(lambda name=name, way=way: made.setdefault(name, way(tree))[0]))
        for name, way in {"ravel_pytree": ravel_pytree, "flatstore": fs.destructure}.items()
    }
    back = {name: ready(lambda flat=flat, unravel=unravel: unravel(flat)) for name, (flat, unravel) in made.items()}
    first = {name: seconds(call) for name, call in back.items()}
    after = interleaved(
        {name: lambda call=call: [call() for _ in range(CALLS)] for name, call in back.items()}, rounds, twice=True
    )
    title = f"{leaves:,} leaves of shape {shape}"
    medians = {name: float(np.median(x)) / CALLS for name, x in after.items()}
    yield at_least(f"eager rebuild, {title}: the first", 25, first["ravel_pytree"] / first["flatstore"], "x", 1)
    yield at_least("the same, after", 3, ratio(after, "ravel_pytree", "flatstore"), "x", 1)
    for name in back:
        yield beside(f"{name}, first, after", f"{first[name] * 1e3:.0f} ms, {medians[name] * 1e3:.2f} ms")
        yield beside(f"{name}: the vector, first", f"{there[name] * 1e3:.0f} ms")


def rebuilding(quick: bool) -> Iterator[Row]:
    """Leaves out of a vector, outside of `jit`."""
    for name, way in {"ravel_pytree": ravel_pytree, "flatstore": fs.destructure}.items():
        flat, back = way({"w": jnp.ones(3)})
        once = seconds(ready(lambda back=back, flat=flat: back(flat)))
        yield beside(f"{name}: the very first of a process, one leaf", f"{once * 1e3:.0f} ms")
    for shape in ((256,), (16, 16)):
        yield from compared(100 if quick else 1000, shape, 20 if quick else 40)


if __name__ == "__main__":
    report("Measure destructure beside ravel_pytree, and print a table.", rebuilding)
