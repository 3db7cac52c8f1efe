"""Simulated binary crossover, a crossover of the user's own, compiled into the same loop as those that are shipped.

The spread factor is a function of a random number in (0, 1); here it is looked up in a table of all the 65,536 values
that the number takes. A child lies the spread factor times as far from the parents' mean as they do, on either side: so
much of the way from one to the other. All constants stand in the table: a literal like 0.5 would be float64 and slow.

Source: Deb and Agrawal, *Simulated Binary Crossover for Continuous Search Space*, Complex Systems 1995.

    python examples/sbx.py [genes]
"""

import statistics
import sys
import time

import numpy as np

import flatstore as fs
from flatstore import ga


def child(a, b, draw):
    """A gene so much of the way from the father's to the mother's."""
    return b + draw * (a - b)


def sbx(eta):
    """Simulated binary crossover. The larger `eta`, the nearer a child lies to one of its parents."""
    u = (np.arange(1 << 15) + 0.5) / (1 << 15)
    spread = np.where(u < 0.5, 2 * u, 0.5 / (1 - u)) ** (1 / (eta + 1))
    return ga.PerGene(child, bits=16, table=0.5 + 0.5 * np.concatenate([spread, -spread]))


def main(genes):
    """Print how many genes each crossover makes in a second, and where the children of -1 and 1 lie."""
    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(genes, "f4")}), 256)
    pop["w"][...] = np.where(np.arange(256) % 2, 1, -1)[:, None]
    ga.step(pop, np.arange(256.0), seed=1, mutate=None, crossover=sbx(15))
    made = pop["w"][np.abs(pop["w"]) != 1]
    print(f"children of -1 and 1: mean {made.mean():+.3f}, median distance from 0: {np.median(np.abs(made)):.3f}")

    crossovers = {"uniform": ga.Uniform(), "blend": ga.Blend(), "simulated binary": sbx(15)}
    seconds = {name: [] for name in crossovers}
    for number in range(8):
        for name, crossover in crossovers.items():
            start = time.perf_counter()
            ga.step(pop, np.arange(256.0), seed=number, mutate=fs.Normal(0.01), crossover=crossover)
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        # The first round compiles.
        print(f"{name:>16}: {256 * genes / statistics.median(times[1:]) / 1e9:.2f} billion genes per second")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
