"""The figures of the evolution strategies, measured side by side in one run and printed as a table.

    python benchmarks/es_figures.py                     # half an hour, most of it `undo`
    python benchmarks/es_figures.py --quick             # smaller sizes, under 30 s
    python benchmarks/es_figures.py --only perturb      # one part

How it is measured stands in `report.py`, how peers are in `race.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

if __package__:  # asv imports this folder as a package
    from .es_peers import PEERS
    from .ga_peers import SCALE, leaves
    from .race import race, scaled, tidy
    from .report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, yes_no
else:
    from es_peers import PEERS
    from ga_peers import SCALE, leaves
    from race import race, scaled, tidy
    from report import MIB, Row, at_least, at_most, beside, interleaved, ratio, report, resident, yes_no

TARGETS = {"evosax": 10, "evotorch": 20}
"""How many times as fast as each peer."""

NORMAL, RADEMACHER = fs.Normal(SCALE), fs.Rademacher(SCALE)


def a_store(size: int, dtype: Any = np.float32) -> fs.Store:
    """A store of zeros in 10 leaves, all of it resident."""
    tree = {name: {"w": jax.ShapeDtypeStruct(x["w"].shape, dtype)} for name, x in leaves(10, size).items()}
    store = fs.Store.zeros(fs.Layout.from_tree(tree))
    store.buffer[:] = 0
    return store


def sfc64(array: Any, chunk: int = 1 << 16) -> Callable[[], None]:
    """A call that adds normal noise by NumPy's fastest generator, a part of the array for each core, in chunks."""
    parts = np.array_split(array, os.cpu_count() or 1)
    threads = ThreadPoolExecutor(len(parts))
    generators = [np.random.Generator(np.random.SFC64(i)) for i in range(len(parts))]
    rooms = [np.empty(chunk, np.float32) for _ in parts]

    def add(part: Any, generator: Any, room: Any) -> None:
        for start in range(0, part.size, chunk):
            some = part[start : start + chunk]
            noise = room[: some.size]
            generator.standard_normal(out=noise, dtype=np.float32)
            noise *= np.float32(SCALE)
            some += noise

    return lambda: list(threads.map(add, parts, generators, rooms)).clear()


class InJax:
    """A vector that is perturbed by `jax.random.normal` in place: donated."""

    def __init__(self, size: int) -> None:
        self.x, self.key = jnp.zeros(size, jnp.float32), jax.random.key(0)
        self.perturb = jax.jit(lambda x, k: x + SCALE * jax.random.normal(k, x.shape), donate_argnums=0)

    def __call__(self) -> None:
        self.x = jax.block_until_ready(self.perturb(self.x, self.key))


def perturb(quick: bool) -> Iterator[Row]:
    """Noise added in place."""
    size = 1_000_000 if quick else 64_000_000
    store, tiny = a_store(size), a_store(1000)
    fs.es.perturb(tiny, NORMAL, 1)  # compiles
    before = tidy()
    fs.es.perturb(store, NORMAL, 1)
    fs.es.perturb(store, NORMAL, 1, sign=-1)
    extra = resident("VmHWM") - before
    calls = {
        "roof": scaled(store.flat),
        "Normal": lambda: fs.es.perturb(store, NORMAL, 1),
        "back": lambda: fs.es.perturb(store, NORMAL, 1, sign=-1),
        "Rademacher": lambda: fs.es.perturb(store, RADEMACHER, 1),
        "Rademacher back": lambda: fs.es.perturb(store, RADEMACHER, 1, sign=-1),
        "SFC64": sfc64(np.zeros(size, np.float32)),
        "JAX": InJax(size),
    }
    taken = interleaved(calls, 7, twice=True)
    per = {name: 1e9 * float(np.median(times)) / size for name, times in taken.items()}
    yield at_least("jax.random.normal in place, default keys / perturb", 16, ratio(taken, "JAX", "Normal"), "x", 1)
    yield at_least("NumPy's SFC64 in chunks, same threads / perturb", 8, ratio(taken, "SFC64", "Normal"), "x", 1)
    yield at_least("perturb, of the roof", 25, 100 * ratio(taken, "roof", "Normal"), "%", 0)
    yield at_least("perturb by Rademacher, of the roof", 60, 100 * ratio(taken, "roof", "Rademacher"), "%", 0)
    yield at_most(f"memory beyond {size:,} parameters", 1, extra / MIB, "MiB", 1)
    yield beside("ns a parameter", ", ".join(f"{name} {ns:.3f}" for name, ns in per.items()))


def update(quick: bool) -> Iterator[Row]:
    """The weighted noise of 64 seeds, against making it in JAX, and against having stored it."""
    size, n = (100_000, 64) if quick else (4_000_000, 64)
    seeds, weights = fs.seeds(1, n), np.linspace(-0.01, 0.01, n)
    store, coarse = a_store(size), a_store(size)
    stored = np.random.default_rng(0).standard_normal((n, size), dtype=np.float32)
    w, centre = weights.astype(np.float32), np.zeros(size, np.float32)
    keys = jax.random.split(jax.random.key(0), n)

    def in_jax(x: Any, keys: Any, weights: Any) -> Any:
        return jax.lax.fori_loop(0, n, lambda i, x: x + weights[i] * jax.random.normal(keys[i], x.shape), x)

    jitted, state = jax.jit(in_jax, donate_argnums=0), [jnp.zeros(size, jnp.float32)]

    def loop() -> None:
        state[0] = jax.block_until_ready(jitted(state[0], keys, w))

    def product() -> None:
        np.add(centre, w @ stored, out=centre)

    calls = {
        "Normal": lambda: fs.es.update(store, NORMAL, seeds, weights),
        "back": lambda: fs.es.update(store, NORMAL, seeds, weights, sign=-1),
        "Rademacher": lambda: fs.es.update(coarse, RADEMACHER, seeds, weights),
        "Rademacher back": lambda: fs.es.update(coarse, RADEMACHER, seeds, weights, sign=-1),
        "stored": product,
        "JAX": loop,
    }
    taken = interleaved(calls, 7, twice=True)
    per = {name: 1e9 * float(np.median(times)) / size / n for name, times in taken.items()}
    yield at_least(f"a jitted loop of jax.random.normal / update, {n} seeds", 15, ratio(taken, "JAX", "Normal"), "x", 1)
    yield at_most("update / a product with stored noise", 2.5, ratio(taken, "Normal", "stored"), "x")
    yield at_most("update by Rademacher / that product", 1, ratio(taken, "Rademacher", "stored"), "x")
    yield beside("ns a parameter and seed", ", ".join(f"{name} {ns:.3f}" for name, ns in per.items()))


def undo(quick: bool) -> Iterator[Row]:
    """What cycles of MeZO change beside their updates: +, twice -, +, and an update each tenth."""
    size, cycles = (100_000, 100) if quick else (10_000_000, 10_000)
    for dtype in (np.float32, np.float64):
        store, only_updates = a_store(size, dtype), a_store(size, dtype)
        naive, rng = np.zeros(size, dtype), np.random.default_rng(0)
        for x in (store, only_updates):
            x.flat[:] = np.random.default_rng(1).standard_normal(x.flat.size)
            fs.es.snap(x, NORMAL)
        naive[:] = store.to_vector()
        for cycle in range(cycles):
            for sign in (1, -1, -1, 1):
                fs.es.perturb(store, NORMAL, cycle, sign=sign)
            if cycle % 10 == 9:
                for x in (store, only_updates):
                    fs.es.update(x, NORMAL, [cycle], [1e-3])
        changed = int((store.flat.view(np.uint8) != only_updates.flat.view(np.uint8)).sum())
        start = naive.copy()
        for _ in range(min(cycles, 100)):
            noise = SCALE * rng.standard_normal(size, dtype)
            for sign in (1, -2, 1):
                naive += sign * noise
        name, share = np.dtype(dtype).name, 100 * (naive != start).mean()
        yield at_most(f"bytes changed of {size:,} {name}, {cycles:,} cycles", 0, changed, "bytes", 0)
        yield beside(f"plain addition, {min(cycles, 100)} cycles", f"{share:.0f} % of the elements changed")


def far_below_a_step(quick: bool) -> Iterator[Row]:
    """Updates of a hundredth of a grid step each: what they add up to, and what they should."""
    times, size = (1_000, 4096) if quick else (100_000, 4096)
    store, leaf = a_store(size * 10), "layer_00000/w"
    weight = 0.01 * RADEMACHER.step / SCALE
    for seed in range(times):
        # One way for all: each update pushes the first parameter up.
        up = float(RADEMACHER.draw(np.array([seed], np.uint64), 0, 1)[0, 0])
        fs.es.update(store, RADEMACHER, [seed], [weight * up])
    steps = float(store[leaf][0]) / RADEMACHER.step
    deviation = (times * 0.01 * 0.99) ** 0.5
    figure = f"a parameter after {times:,} updates of a hundredth of a step"
    reached = yes_no(abs(steps - 0.01 * times) < 4 * deviation)
    yield Row(figure, f"{0.01 * times:g} +- {4 * deviation:.0f} steps", f"{steps:g} steps", reached)
    others = store.flat[1:].astype(float) / RADEMACHER.step
    yield beside("the others, pushed up and down", f"mean {others.mean():.2f}, deviation {others.std():.1f} steps")


def generation(quick: bool) -> Iterator[Row]:
    """A generation of OpenAI-ES, evaluation left out, beside the peers."""
    members, genes = (64, 50_000) if quick else (512, 500_000)
    found = {name: peer for name, peer in PEERS.items() if peer.installed()}
    taken, peaks = race(found, members, genes, 3, 1)
    population = 4 * members * genes
    extra = {name: peak - population for name, peak in peaks.items()}
    for name in PEERS:
        measured = "not installed"
        if name in found:
            rate = members * genes / np.median(taken[name]) / 1e9
            measured = f"{rate:.3f} G/s, peak {peaks[name] / population:.3f} populations"
        yield beside(f"{name}, {members} x {genes:,}", measured)
    for name in list(found)[1:]:
        faster = ratio(taken, name, "flatstore")
        figure = f"flatstore's rate / that of {name}"
        yield at_least(figure, TARGETS[name], faster, "x", 1) if name in TARGETS else beside(figure, f"{faster:.1f} x")
        share = 100 * extra["flatstore"] / extra[name]
        yield Row(f"extra memory, of {name}'s", "<= 1 %", f"{share:.2f} %", "" if quick else yes_no(share <= 1))


MEASURES: tuple[Callable[[bool], Iterator[Row]], ...] = (
    perturb,
    update,
    generation,
    far_below_a_step,
    undo,
)

if __name__ == "__main__":
    report("Measure the figures of the evolution strategies, and print them.", *MEASURES)
