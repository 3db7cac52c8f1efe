"""The figures of `destructure` beside `ravel_pytree`, interleaved in one run and printed as a table.

    python benchmarks/destructure_figures.py            # about a minute: ravel_pytree compiles
    python benchmarks/destructure_figures.py --quick    # 100 leaves

"First" is the first call for a tree of its own shapes, compilation included, in a process that has rebuilt another
tree before (the very first of all, in which Numba starts, has a line of its own). "After" is the median of interleaved
rounds of a few calls each (the first one after the other side finds its memory cold), and a ratio the median
of the rounds' own ratios. Everything is ready to be read when the clock stops.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .figures import Row, beside, interleaved, seconds, yes_no
else:
    from figures import Row, beside, interleaved, seconds, yes_no

CALLS = 5


def at_least(figure: str, target: float, measured: float) -> Row:
    """A ratio that is to be at least `target`."""
    return Row(figure, f">= {target:g} x", f"{measured:.1f} x", yes_no(measured >= target))


def ready(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call that is over when its arrays are there."""
    return lambda: jax.block_until_ready(call())


def rows_of(leaves: int, shape: tuple[int, ...], rounds: int) -> list[Row]:
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
    after = interleaved({name: lambda call=call: [call() for _ in range(CALLS)] for name, call in back.items()}, rounds)
    title = f"{leaves:,} leaves of shape {shape}"
    medians = {name: float(np.median(x)) / CALLS for name, x in after.items()}
    return [
        at_least(f"eager rebuild, {title}: the first", 25, first["ravel_pytree"] / first["flatstore"]),
        at_least("the same, after", 3, float(np.median(after["ravel_pytree"] / after["flatstore"]))),
        *(
            beside(f"{name}, first, after", f"{first[name] * 1e3:.0f} ms, {medians[name] * 1e3:.2f} ms")
            for name in back
        ),
        *(beside(f"{name}: the vector, first", f"{there[name] * 1e3:.0f} ms") for name in there),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure destructure beside ravel_pytree, and print a table.")
    parser.add_argument("--quick", action="store_true", help="100 leaves in place of 1,000")
    quick = parser.parse_args().quick
    leaves, rounds = (100, 20) if quick else (1000, 40)
    rows = [Row("figure", "target", "measured", "reaches it")]
    for name, way in {"ravel_pytree": ravel_pytree, "flatstore": fs.destructure}.items():
        flat, back = way({"w": jnp.ones(3)})
        once = seconds(ready(lambda back=back, flat=flat: back(flat)))
        rows.append(beside(f"{name}: the very first of a process, one leaf", f"{once * 1e3:.0f} ms"))
    for shape in ((256,), (16, 16)):
        rows += rows_of(leaves, shape, rounds)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, Row(*("-" * width for width in widths)))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy"))
    print(f"\nPython {platform.python_version()}, {versions}; {os.cpu_count()} cores{'; --quick' * quick}")


if __name__ == "__main__":
    main()
