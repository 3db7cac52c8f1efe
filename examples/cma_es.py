"""CMA-ES by pycma drives a population: a network learns exclusive or.

pycma owns its solutions: float64 vectors, one per member. Each is copied once, straight to where its leaves lie in the
population's memory and rounded to float32 on the way; JAX evaluates them there. pycma minimises, so it is told a loss.

    python examples/cma_es.py [generations]
"""

import sys

import cma
import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4")
TARGETS = np.array([0, 1, 1, 0], "f4")


def loss(params, x, y):
    """The mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return jnp.square(hidden @ params["out"]["kernel"] - y).mean()


def main(generations):
    """Minimise the loss, and print what was found."""
    network = {
        "hidden": {"bias": np.zeros(3, "f4"), "kernel": np.zeros((2, 3), "f4")},
        "out": {"kernel": np.zeros(3, "f4")},
    }
    best = fs.Store.from_tree(network)
    search = cma.CMAEvolutionStrategy(best.to_vector(), 0.5, {"popsize": 16, "seed": 1, "verbose": -9})
    pop = fs.Population.from_tree(network, search.popsize)
    evaluate = jax.jit(jax.vmap(loss, in_axes=(pop.axes, None, None)))
    for _ in range(generations):
        solutions = search.ask()
        for member, solution in zip(pop, solutions, strict=True):
            member.assign(solution)
        with pop.lend() as stacked:
            losses = np.array(evaluate(stacked, INPUTS, TARGETS), np.float64)
        search.tell(solutions, losses.tolist())
    best.assign(search.result.xbest)
    print(f"{search.countevals} evaluations, loss {search.result.fbest:.2e}")
    print("largest error of the best:", np.abs(outputs(best.tree) - TARGETS).max().round(3))


def outputs(params):
    """What a network says to the four inputs, in NumPy."""
    return np.tanh(INPUTS @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]["kernel"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
