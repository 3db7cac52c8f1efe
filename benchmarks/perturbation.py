"""Noise added in place, updates by the noise of many seeds, and what is left when noise is taken back.

    python -m benchmarks.perturbation                     # half an hour, most of it `undo`
    python -m benchmarks.perturbation --quick
    python -m benchmarks.perturbation --only perturb      # one part

The peers are those of `peers/noise.py`; the roof is what memory gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import bench

from . import tracked
from .peers import PEERS
from .peers.noise import SEEDS, Flatstore, Signs
from .peers.peer import SCALE, zeros
from .report import MIB, Call, Row, at_least, at_most, beside, each, interleaved, ratio, report, yes_no

NOISE = PEERS["perturbation"]
NORMAL, RADEMACHER = Flatstore.noise, Signs.noise
PERTURBED = ["roof", "flatstore", "flatstore, signs", "numpy", "jax"]  # whose threads wait at full speed: last
UPDATED = ["flatstore", "flatstore, signs", "stored noise", "jax"]


class Perturb(tracked.Times):
    """Ten times noise added in place to 1,000,000 float32, beside the roof."""

    params: Any = PERTURBED
    param_names = ("peer",)
    loops = 10

    @staticmethod
    def make(peer: str) -> Call:
        return NOISE[peer](1_000_000).perturb


class Update(tracked.Times):
    """The weighted noise of 64 seeds, added to 100,000 float32 and taken back, where that can be."""

    params: Any = UPDATED
    param_names = ("peer",)
    loops = 2

    @staticmethod
    def make(peer: str) -> Call:
        return NOISE[peer](100_000).update


class Peak(tracked.Peak):
    """What a perturbation of 10,000,000 float32 (40,000,000 bytes) takes beyond them."""

    params: Any = (PERTURBED, [10_000_000])
    param_names = ("peer", "parameters")

    @staticmethod
    def make(peer: str, size: int) -> Any:
        return NOISE[peer](size)

    @staticmethod
    def work(made: Any) -> None:
        made.perturb()


class InJit(bench.asv.XlaTemporaries):
    """What XLA adds to 1,000,000 float32 (4,000,000 bytes) that are perturbed, or updated, in place."""

    params: Any = (["flatstore, in jit", "flatstore, signs in jit", "jax"], ["perturb", "update"])
    param_names = ("peer", "verb")

    @staticmethod
    def make(peer: str, verb: str) -> Any:
        return NOISE[peer](1_000_000).jitted(verb)


def perturb(quick: bool) -> Iterator[Row]:
    """Noise added in place."""
    size = 1_000_000 if quick else 64_000_000
    extra = bench.peak_memory(Peak.work, "flatstore", size, setup=Peak.make)
    taken = interleaved({name: NOISE[name](size).perturb for name in PERTURBED}, 7, twice=True)
    per = {name: 1e9 * float(np.median(times)) / size for name, times in taken.items()}
    yield at_least("jax.random.normal in place, default keys / perturb", 16, ratio(taken, "jax", "flatstore"), "x", 1)
    yield at_least("NumPy's SFC64 in chunks, same threads / perturb", 8, ratio(taken, "numpy", "flatstore"), "x", 1)
    yield at_least("perturb, of the roof", 25, 100 * ratio(taken, "roof", "flatstore"), "%", 0)
    share = 100 * ratio(taken, "roof", "flatstore, signs")
    yield at_least("perturb by Rademacher, of the roof", 60, share, "%", 0)
    yield at_most(f"memory beyond {size:,} parameters", 1, extra / MIB, "MiB", 1)
    yield beside("ns a parameter", ", ".join(f"{name} {ns:.3f}" for name, ns in per.items()))
    yield beside("the roof, read and written", f"{8 / per['roof']:.1f} GB/s")


def update(quick: bool) -> Iterator[Row]:
    """The weighted noise of 64 seeds, against making it in JAX, and against having stored it."""
    size = 100_000 if quick else 4_000_000
    taken = interleaved({name: NOISE[name](size).update for name in UPDATED}, 7, twice=True)
    figure = f"a jitted loop of jax.random.normal / update, {SEEDS} seeds"
    yield at_least(figure, 15, ratio(taken, "jax", "flatstore"), "x", 1)
    yield at_most("update / a product with stored noise", 2.5, ratio(taken, "flatstore", "stored noise"), "x")
    yield at_most("update by Rademacher / that product", 1, ratio(taken, "flatstore, signs", "stored noise"), "x")
    per = (f"{name} {1e9 * float(np.median(times)) / size / SEEDS:.3f}" for name, times in taken.items())
    yield beside("ns a parameter and seed", ", ".join(per))


def undo(quick: bool) -> Iterator[Row]:
    """What cycles of MeZO change beside their updates: +, twice -, +, and an update each tenth."""
    size, cycles = (100_000, 100) if quick else (10_000_000, 10_000)
    for dtype in (np.float32, np.float64):
        store, only_updates = (zeros(10, size, dtype) for _ in range(2))
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


def in_jit(quick: bool) -> Iterator[Row]:
    """The same noise inside `jit`, one seed and many, beside that of `jax.random`: time, and what XLA adds."""
    size = 1 << (20 if quick else 24)
    for dtype in ("float32", "bfloat16"):
        theirs = NOISE["jax"](size, dtype)
        for name in ("flatstore, in jit", "flatstore, signs in jit"):
            ours = NOISE[name](size, dtype)
            taken = interleaved({name: ours.perturb, "jax": theirs.perturb}, 5 if quick else 9)
            yield at_least(f"jax.random.normal / {name}, {size:,} {dtype}", 3, ratio(taken, "jax", name), "x", 1)
            yield beside("each", each(taken))
            added = [peer.planned("perturb").temporaries / peer.x.nbytes for peer in (ours, theirs)]
            yield at_most("temporaries", 0, added[0], "arrays")
            yield beside("those of jax.random.normal", f"{added[1]:.2f} arrays")
    ours, theirs = (NOISE[name](size // 4) for name in ("flatstore, in jit", "jax"))
    taken = interleaved({"in jit": ours.update, "jax": theirs.update}, 3 if quick else 7)
    yield at_least(f"update by jax.random.normal / in jit, {SEEDS} seeds", 3, ratio(taken, "jax", "in jit"), "x", 1)
    temporaries = ours.planned("update").temporaries / (1 << 16)
    yield at_most("temporaries, bytes for each of the 65,536 summed at a time", 32, temporaries, "bytes", 0)


def far_below_a_step(quick: bool) -> Iterator[Row]:
    """Updates of a hundredth of a grid step each: what they add up to, and what they should."""
    times, size = (1_000, 4096) if quick else (100_000, 4096)
    store, leaf = zeros(10, size * 10), "layer_00000/w"
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


MEASURES = perturb, update, in_jit, far_below_a_step, undo

if __name__ == "__main__":
    report(__doc__ or "", *MEASURES)
