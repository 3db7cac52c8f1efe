"""The draws inside `jit` beside those of `jax.random`, in one run: time, and what XLA takes beside the parameters.

    python -m benchmarks.in_jit_figures            # about a minute
    python -m benchmarks.in_jit_figures --quick    # smaller

How it is measured stands in `report.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

from .report import Row, at_least, at_most, beside, interleaved, ratio, report

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
    name: str, ours: Step, theirs: Step, arguments: tuple[Any, ...], seeds: int, quick: bool
) -> Iterator[Row]:
    """How many times as long JAX's own takes, and both their temporaries."""
    (mine, my_bytes), (other, other_bytes) = (compiled(step, *arguments) for step in (ours, theirs))
    taken = interleaved({"ours": mine, "jax": other}, 5 if quick else 7)
    size = arguments[0].size
    yield at_least(f"{name}: jax.random.normal / ours", 3, ratio(taken, "jax", "ours"), "x", 1)
    each = (f"{key} {np.median(x) / size / seeds * 1e9:.2f}" for key, x in taken.items())
    yield beside("ns per parameter and seed", ", ".join(each))
    if seeds == 1:
        yield at_most("temporaries", 0, my_bytes / arguments[0].nbytes, "arrays")
    else:
        yield at_most(
            "temporaries, bytes for each of the 65,536 summed at a time", 32, my_bytes / (1 << 16), "bytes", 0
        )
    yield beside("those of jax.random.normal", f"{other_bytes / arguments[0].nbytes:.2f} arrays")


def perturbing(quick: bool) -> Iterator[Row]:
    """One seed, in place, normal and signs, float32 and bfloat16."""
    size = 1 << 20 if quick else 1 << 24

    def theirs(x: Any, seed: Any) -> Any:
        return x + x.dtype.type(SIGMA) * jax.random.normal(jax.random.wrap_key_data(seed), x.shape, x.dtype)

    seed = fs.es.words([7])[0]
    for noise in (fs.Normal(SIGMA), fs.Rademacher(SIGMA)):
        for dtype in (jnp.float32, jnp.bfloat16):
            ours = functools.partial(lambda noise, x, seed: fs.es.virtual({"w": x}, noise, seed)["w"], noise)
            name = f"perturbing {size:,} {dtype.__name__}, {type(noise).__name__}"
            yield from beside_jax(name, ours, theirs, (jnp.zeros(size, dtype), seed), 1, quick)


def updating(quick: bool) -> Iterator[Row]:
    """Many seeds, weighted and summed."""
    noise, seeds, size = fs.Normal(SIGMA), 16, 1 << 18 if quick else 1 << 22
    weighted = fs.es.weighted_seeds(noise, fs.seeds(1, seeds), np.linspace(-1, 1, seeds))

    def theirs(x: Any, weighted: Any) -> Any:
        def add(i: Any, x: Any) -> Any:
            key = jax.random.wrap_key_data(jnp.asarray(weighted.seeds)[i])
            return x + SIGMA * weighted.whole[i] * jax.random.normal(key, x.shape)

        return jax.lax.fori_loop(0, seeds, add, x)

    def ours(x: Any, weighted: Any) -> Any:
        return fs.es.updated({"w": x}, noise, weighted)["w"]

    arguments = jnp.zeros(size), jax.tree.map(jnp.asarray, weighted)
    yield from beside_jax(f"an update of {size:,} with {seeds} seeds", ours, theirs, arguments, seeds, quick)


if __name__ == "__main__":
    report("Measure the draws inside jit beside jax.random, as a table.", perturbing, updating)
