"""The draws inside `jit` beside those of `jax.random`, in one run: time, and what XLA takes beside the parameters.

    python benchmarks/twin_figures.py            # about a minute
    python benchmarks/twin_figures.py --quick    # smaller

A report, not a test. Ratios are medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .figures import Row, at_most, beside, interleaved, yes_no
else:
    from figures import Row, at_most, beside, interleaved, yes_no

SIGMA = 0.02
Step = Callable[[Any, Any], Any]


def compiled(step: Step, *arguments: Any) -> tuple[Callable[[], None], int]:
    """A call that moves an array in place, donated, and the bytes of temporaries."""
    program = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    held = [jnp.array(arguments[0])]

    def call() -> None:
        held[0] = jax.block_until_ready(program(held[0], *arguments[1:]))

    return call, program.memory_analysis().temp_size_in_bytes


def beside_jax(
    name: str, ours: Step, theirs: Step, arguments: tuple[Any, ...], seeds: int, rounds: int
) -> Iterator[Row]:
    """How many times as long JAX's own takes, and both their temporaries."""
    (mine, my_bytes), (other, other_bytes) = (compiled(step, *arguments) for step in (ours, theirs))
    taken = interleaved({"ours": mine, "jax": other}, rounds)
    ratio = float(np.median(taken["jax"] / taken["ours"]))
    size = arguments[0].size
    yield Row(f"{name}: jax.random.normal / ours", ">= 3 x", f"{ratio:.1f} x", yes_no(ratio >= 3))
    each = (f"{key} {np.median(x) / size / seeds * 1e9:.2f}" for key, x in taken.items())
    yield beside("ns per parameter and seed", ", ".join(each))
    if seeds == 1:
        yield at_most("temporaries", 0, my_bytes / arguments[0].nbytes, "arrays")
    else:
        yield at_most(
            "temporaries, bytes for each of the 65,536 summed at a time", 32, my_bytes / (1 << 16), "bytes", 0
        )
    yield beside("those of jax.random.normal", f"{other_bytes / arguments[0].nbytes:.2f} arrays")


def perturbing(size: int, rounds: int) -> Iterator[Row]:
    """One seed, in place, normal and signs, float32 and bfloat16."""

    def theirs(x: Any, seed: Any) -> Any:
        return x + x.dtype.type(SIGMA) * jax.random.normal(jax.random.wrap_key_data(seed), x.shape, x.dtype)

    seed = fs.es.words([7])[0]
    for noise in (fs.Normal(SIGMA), fs.Rademacher(SIGMA)):
        for dtype in (jnp.float32, jnp.bfloat16):
            ours = functools.partial(lambda noise, x, seed: fs.es.virtual({"w": x}, noise, seed)["w"], noise)
            name = f"perturbing {size:,} {dtype.__name__}, {type(noise).__name__}"
            yield from beside_jax(name, ours, theirs, (jnp.zeros(size, dtype), seed), 1, rounds)


def updating(size: int, seeds: int, rounds: int) -> Iterator[Row]:
    """Many seeds, weighted and summed."""
    noise = fs.Normal(SIGMA)
    weighted = fs.es.weighted_seeds(noise, fs.seeds(1, seeds), np.linspace(-1, 1, seeds))

    def theirs(x: Any, weighted: Any) -> Any:
        def add(i: Any, x: Any) -> Any:
            key = jax.random.wrap_key_data(jnp.asarray(weighted.seeds)[i])
            return x + SIGMA * weighted.whole[i] * jax.random.normal(key, x.shape)

        return jax.lax.fori_loop(0, seeds, add, x)

    def ours(x: Any, weighted: Any) -> Any:
        return fs.es.updated({"w": x}, noise, weighted)["w"]

    arguments = jnp.zeros(size), jax.tree.map(jnp.asarray, weighted)
    yield from beside_jax(f"an update of {size:,} with {seeds} seeds", ours, theirs, arguments, seeds, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the draws inside jit beside jax.random, as a table.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    quick = parser.parse_args().quick
    size, rounds = (1 << 20, 5) if quick else (1 << 24, 7)
    rows = [Row("figure", "target", "measured", "reaches it")]
    rows += [*perturbing(size, rounds), *updating(size // 4, 16, rounds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, Row(*("-" * width for width in widths)))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "numpy"))
    print(f"\nPython {platform.python_version()}, {versions}; {os.cpu_count()} cores{'; --quick' * quick}")


if __name__ == "__main__":
    main()
