"""Lexicase selection as user code: each parent is the best on the cases, taken in an order of its own.

A selection is any callable `(fitness, n, seed) -> n indices`. This one looks at the error on every case and not at
their mean, so that a member that alone solves a hard case becomes a parent. Errors are real numbers here: whoever is
within the median absolute deviation of the best stays in (epsilon-lexicase).

Source: Spector, *Assessment of Problem Modality by Differential Performance of Lexicase Selection*, GECCO 2012; La
Cava, Spector and Danai, *Epsilon-Lexicase Selection for Regression*, GECCO 2016.

    python examples/lexicase.py [generations]
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs
from flatstore import ga

CASES = np.array(list(itertools.product([-1, 1], repeat=3)), "f4")
TARGETS = CASES.prod(axis=1)


def case_errors(params):
    """The error of a network on each of the eight cases of three-bit parity."""
    hidden = jnp.tanh(CASES @ params["kernel"] + params["bias"])
    return jnp.abs(jnp.tanh(hidden @ params["out"]) - TARGETS)


class Lexicase:
    """Keeps the errors of the generation that was evaluated last, shape (members, cases), and selects by them."""

    def __init__(self):
        self.errors = np.empty((0, 0))
        self._evaluate = jax.jit(jax.vmap(case_errors))

    def evaluate(self, stacked, generation):
        """The fitness of each member: how little it errs in all. What it gets wrong is kept for `select`."""
        self.errors = np.array(self._evaluate(stacked))
        return -self.errors.sum(axis=1)

    def select(self, fitness, n, seed):
        """`n` indices, shape (n,)."""
        rng = np.random.default_rng(seed)
        spread = np.median(np.abs(self.errors - np.median(self.errors, axis=0)), axis=0)
        parents = np.empty(n, int)
        for i in range(n):
            left = np.arange(len(fitness))
            for case in rng.permutation(self.errors.shape[1]):
                error = self.errors[left, case]
                left = left[error <= error.min() + spread[case]]
                if len(left) == 1:
                    break
            parents[i] = rng.choice(left)
        return parents


def main(generations):
    """Evolve a network that computes the parity, and print how far it came."""
    pop = fs.Population.from_tree(
        {"bias": np.zeros(4, "f4"), "kernel": np.zeros((3, 4), "f4"), "out": np.zeros(4, "f4")}, 256
    )
    for leaf in pop.layout.homes:
        pop[leaf.path][...] = np.random.default_rng(1).standard_normal((256, *leaf.shape))
    cases = Lexicase()
    run = ga.evolve(pop, cases.evaluate, seed=1, mutate=fs.Normal(0.1), select=cases.select, generations=generations)
    for record in run:
        if record.max > -0.5:
            break
    solved = (cases.errors[record.best] < 1).sum()
    print(f"{record}; it solves {solved} of {len(CASES)} cases")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
