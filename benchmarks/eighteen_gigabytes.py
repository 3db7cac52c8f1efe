"""A population of 18 GB evolves on a machine with 24 GB: a few generations in its own memory, and the peak.

    python -m benchmarks.eighteen_gigabytes
    python -m benchmarks.eighteen_gigabytes --gigabytes 0.05      # to try it

Each member is a network of 1,002,000 float32 and is filled in place, a leaf at a time. The fitness is minus the squared
length of the last bias, so its mean must rise. Prints the bytes of the population, the seconds and the genes per second
of each generation, and the most that the whole process held, with its libraries.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

import flatstore as fs

from .report import MIB, resident

HIDDEN, LAYERS = 500, 4
"""Four layers of 500 x 500 weights and a bias each: 1,002,000 parameters."""


def shapes() -> Any:
    """The shapes of a member."""
    shape = jax.ShapeDtypeStruct
    dense = {"kernel": shape((HIDDEN, HIDDEN), np.float32), "bias": shape((HIDDEN,), np.float32)}
    return {f"dense_{i}": dense for i in range(LAYERS)}


def fill(pop: fs.Population) -> None:
    """Write normal numbers into every leaf of every member; besides the population it needs one leaf of one member."""
    rng = np.random.default_rng(0)
    for leaf in pop.layout.homes:
        values = pop[leaf.path]
        model = 0.05 * rng.standard_normal(values.shape[1:], dtype=np.float32)
        for strength, member in zip(rng.uniform(0.5, 1.5, pop.size), values, strict=True):
            np.multiply(model, np.float32(strength), out=member)
        print(f"filled {leaf.path}: {resident('VmRSS') / 1e9:.2f} GB resident", flush=True)


def fitness(pop: fs.Population) -> Any:
    """Minus the squared length of the last bias, shape (members,)."""
    bias = pop[f"dense_{LAYERS - 1}/bias"]
    return -np.einsum("ij,ij->i", bias, bias)


def main() -> None:
    """Fill, evolve and print."""
    parser = argparse.ArgumentParser(description="Evolve a population of many gigabytes in its own memory.")
    parser.add_argument("--gigabytes", type=float, default=18, help="size of the population in 10^9 bytes")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--order", choices=["leaf", "member"], default="leaf")
    arguments = parser.parse_args()
    layout = fs.Layout.from_tree(shapes())
    members = max(4, round(arguments.gigabytes * 1e9 / layout.nbytes))
    pop = fs.Population.zeros(layout, members, order=arguments.order)
    genes = members * sum(leaf.size for leaf in layout.leaves)
    nbytes = pop.buffer.nbytes
    print(f"population: {nbytes:,} bytes, {members:,} members, {genes:,} genes, order {pop.order!r}")
    start = time.perf_counter()
    fill(pop)
    print(f"filled in {time.perf_counter() - start:.1f} s")
    for generation in range(arguments.generations):
        scores = fitness(pop)
        start = time.perf_counter()
        fs.ga.step(
            pop,
            scores,
            seed=(0, generation),
            mutate=fs.Normal(0.001),
            select=fs.ga.Truncation(0.5),
            crossover=fs.ga.Uniform(),
            elite=1,
        )
        taken = time.perf_counter() - start
        mean = f"mean fitness {scores.mean():.3f} -> {fitness(pop).mean():.3f}"
        print(f"generation {generation}: {taken:.2f} s, {genes / taken / 1e9:.3f} G genes/s, {mean}", flush=True)
    peak = resident("VmHWM")
    print(f"peak: {peak:,} bytes resident, {peak / nbytes:.4f} populations, {(peak - nbytes) / MIB:.0f} MiB more")


if __name__ == "__main__":
    main()
