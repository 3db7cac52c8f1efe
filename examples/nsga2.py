"""NSGA-II as user code: selection by several objectives, over `ga.step`.

A selection is any callable `(fitness, n, seed) -> n indices`; this one carries the objectives with it. The fitness that
`step` sees is the place in the crowded order, and decides who is kept: with elite=size // 2, half of the slots hold the
survivors and the other half their children. So the best of parents and children together survive.

Source: Deb, Pratap, Agarwal and Meyarivan, *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, 2002. The
problem is Schaffer's, with three genes: its front is the curve sqrt(f1) + sqrt(f2) = 2.

    python examples/nsga2.py [generations]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs
from flatstore import ga


def objectives(params):
    """Two numbers to minimise: the mean square distances to 0 and to 2."""
    return jnp.stack([jnp.square(params["w"]).mean(), jnp.square(params["w"] - 2).mean()])


def fronts(costs):
    """The number of each member's front, shape (members,): 0 where no other member dominates it."""
    dominates = (costs[:, None] <= costs[None]).all(axis=-1) & (costs[:, None] < costs[None]).any(axis=-1)
    front, left, number = np.zeros(len(costs), int), np.ones(len(costs), bool), 0
    while left.any():
        now = left & ~dominates[left].any(axis=0)
        front[now], left, number = number, left & ~now, number + 1
    return front


def crowding(costs, front):
    """The distance of each member to its neighbours on its front, shape (members,): large where it is lonely."""
    distance = np.zeros(len(costs))
    for number in range(front.max() + 1):
        members = np.flatnonzero(front == number)
        for cost in costs[members].T:
            order = members[cost.argsort(kind="stable")]
            ranked = np.sort(cost)
            distance[order[[0, -1]]] = np.inf
            distance[order[1:-1]] += (ranked[2:] - ranked[:-2]) / max(ranked[-1] - ranked[0], 1e-30)
    return distance


class CrowdedTournament:
    """The better of two survivors: of the lower front, and of one front the lonelier."""

    def __init__(self, costs):
        front = fronts(costs)
        self.order = np.lexsort((-crowding(costs, front), front))
        self.place = self.order.argsort()

    def __call__(self, fitness, n, seed):
        """`n` indices of survivors, shape (n,)."""
        survivors = self.order[: len(self.order) // 2]
        pairs = survivors[np.random.default_rng(seed).integers(len(survivors), size=(2, n))]
        return np.where(self.place[pairs[0]] < self.place[pairs[1]], *pairs)


def main(generations):
    """Evolve a front, and print how near and how wide it is."""
    pop = fs.Population.from_tree({"w": np.zeros(3, "f4")}, 128)
    pop["w"][...] = np.random.default_rng(1).uniform(-5, 5, (128, 3))
    evaluate = jax.jit(jax.vmap(objectives))
    for number in range(generations + 1):
        with pop.lend() as stacked:
            costs = np.array(evaluate(stacked))
        select = CrowdedTournament(costs)
        if number < generations:
            mutate = ga.Sparse(fs.Normal(0.05), rate=1 / 3)
            ga.step(pop, -select.place, seed=(1, number), mutate=mutate, select=select, crossover=ga.Blend(), elite=64)
    first, second = np.sqrt(costs[select.order[:64]]).T
    print(f"mean distance to the true front: {np.abs(first + second - 2).mean():.4f}")
    print(f"it reaches from sqrt(f1) = {first.min():.2f} to {first.max():.2f}; from 0 to 2 is all")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
