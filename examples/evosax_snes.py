"""A strategy of evosax asks into a population: a network learns exclusive or.

evosax owns its solutions: a jax.Array that is never written, a row per member. It is copied once, into the matrix of a
population in order="member". The leaves of all members are views of that matrix, so the network is evaluated where the
rows lie, here by NumPy; the champion is one of the rows, and a tree. evosax minimises, so it is told a loss.

    pip install evosax
    python examples/evosax_snes.py [generations]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from evosax.algorithms import SNES

import flatstore as fs

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], "f4")
TARGETS = np.array([0, 1, 1, 0], "f4")


def outputs(params):
    """What networks with one hidden layer say to the four inputs: one network, or all members at once."""
    hidden = np.tanh(INPUTS @ params["hidden/kernel"] + params["hidden/bias"][..., None, :])
    return (hidden @ params["out/kernel"][..., None])[..., 0]


def main(generations):
    """Minimise the loss, and print what was found."""
    network = {
        "hidden": {"bias": np.zeros(3, "f4"), "kernel": np.zeros((2, 3), "f4")},
        "out": {"kernel": np.zeros(3, "f4")},
    }
    pop = fs.Population.from_tree(network, 32, order="member")
    vector = jnp.zeros(pop.layout.size)
    search = SNES(population_size=pop.size, solution=vector)
    key, settings = jax.random.key(1), search.default_params
    state = search.init(key, vector, settings)
    for number in range(generations):
        asked, told = jax.random.split(jax.random.fold_in(key, number))
        solutions, state = search.ask(asked, state, settings)
        pop.matrix[...] = solutions
        losses = np.square(outputs(pop) - TARGETS).mean(axis=1)
        state, _ = search.tell(told, solutions, jnp.array(losses), state, settings)
    best = pop[int(losses.argmin())]
    print(f"{generations * pop.size} evaluations, loss {losses.min():.2e}")
    print("largest error of the best:", np.abs(outputs(best) - TARGETS).max().round(3))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
