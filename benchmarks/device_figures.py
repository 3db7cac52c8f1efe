"""Stores on a device of JAX beside those on the host, in one run: time, and what XLA takes beside the leaves.

    python -m benchmarks.device_figures            # about a minute
    python -m benchmarks.device_figures --quick    # smaller

How it is measured stands in `report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import flatstore as fs
from flatstore import bench, es, ga
from flatstore.es.on_device import donating
from flatstore.ga.in_jit import on_device

from .report import MIB, Row, at_most, beside, interleaved, ratio, report

NOISE = fs.Normal(0.001)
LEAVES = 4


def stores(size: int, dtype: Any) -> dict[str, Any]:
    """A store of so many parameters in four leaves, on the host and on the device."""
    rng = np.random.default_rng(0)
    tree = {f"w{i}": (rng.normal(size=size // LEAVES) * 0.02).astype(dtype) for i in range(LEAVES)}
    made = {"host": fs.Store.from_tree(tree), "device": fs.Store.from_tree(tree, device=jax.devices()[0])}
    for store in made.values():
        es.snap(store, NOISE)
    return made


def beside_host(name: str, calls: dict[str, Callable[[], Any]], size: int, quick: bool, target: float) -> Iterator[Row]:
    """How many times as long it takes on the device."""
    taken = interleaved(calls, 5 if quick else 9)
    if target:
        yield at_most(f"{name}: device / host", target, ratio(taken, "device", "host"), "x")
    else:
        yield beside(f"{name}: device / host", f"{ratio(taken, 'device', 'host'):.1f} x")
    yield beside("ns per parameter", ", ".join(f"{key} {np.median(x) / size * 1e9:.2f}" for key, x in taken.items()))


def there_and_back(store: Any) -> Any:
    """A call that perturbs a store and takes it back."""

    def call() -> None:
        es.perturb(store, NOISE, 7, sign=-1, undo=es.perturb(store, NOISE, 7))

    return call


def perturbing(quick: bool) -> Iterator[Row]:
    """One seed, forth and back, on the grid and with a log."""
    for dtype, target in ((np.float32, 3), ("bfloat16", 0)):
        size = 1 << 20 if quick else 1 << 24
        made = stores(size, dtype)
        name = f"{np.dtype(dtype).name}, {size:,} perturbed and taken back"
        yield from beside_host(name, {key: there_and_back(x) for key, x in made.items()}, 2 * size, quick, target)
        if dtype == "bfloat16":
            logs = {key: es.perturb(x, NOISE, 7).nbytes / 2 / size for key, x in made.items()}
            yield beside("logs, of the bytes of the leaves", ", ".join(f"{k} {x:.1%}" for k, x in logs.items()))
            continue
        function = donating.perturbing(made["device"].layout, NOISE, True)
        planned = bench.xla_memory(function, made["device"].homes, np.zeros(2, np.uint32), np.float32(1))
        yield at_most("temporaries", 0, planned.temporaries, "bytes", 0)


def updating(quick: bool) -> Iterator[Row]:
    """Many seeds, weighted and summed."""
    size, seeds = 1 << 18 if quick else 1 << 22, fs.seeds(1, 16)
    for dtype in (np.float32, "bfloat16"):
        made = stores(size, dtype)
        calls = {key: lambda x=x: es.update(x, NOISE, seeds, np.linspace(-1e-3, 1e-3, 16)) for key, x in made.items()}
        yield from beside_host(f"{np.dtype(dtype).name}, {size:,} updated by 16 seeds", calls, 16 * size, quick, 0)


def generations(quick: bool) -> Iterator[Row]:
    """A generation in the memory of the population."""
    members, genes = 64, 1 << 17 if quick else 1 << 20
    tree = {f"w{i}": np.zeros(genes // LEAVES, "f4") for i in range(LEAVES)}
    made = {
        "host": fs.Population.from_tree(tree, members),
        "device": fs.Population.from_tree(tree, members, device=jax.devices()[0]),
    }
    calls = {key: lambda x=x: ga.step(x, np.arange(members), seed=1, mutate=NOISE) for key, x in made.items()}
    yield from beside_host(f"a generation of {members} x {genes:,}", calls, members * genes, quick, 0)
    pop = made["device"]
    function = on_device._generation(pop.layout, *map(on_device._Named, (NOISE, ga.Uniform(), None)))
    planned = bench.xla_memory(function, pop.homes, ga.births(pop.layout, np.arange(members), seed=1))
    taken, most = planned.temporaries / MIB, max(32, 0.04 * members * genes / MIB)
    yield at_most("temporaries: 1 % of the population, or 32 MiB", most, taken, "MiB")


if __name__ == "__main__":
    report("Measure stores on a device beside those on the host, as a table.", perturbing, updating, generations)
