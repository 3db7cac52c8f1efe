"""Law 10, one population: a generation runs inside the population's memory, with little scratch beside it."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.threads import set_threads, threads

SIZE, GENES = 64, 250_000
"""A population of 64 MB."""


def peak(call: Callable[[], object]) -> int:
    """The bytes that a call takes beside what there is already, as Python's allocators and NumPy's count them."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def population() -> fs.Population:
    return fs.Population.zeros(fs.Layout.from_tree({"b": np.zeros(7, "f4"), "w": np.zeros(GENES, "f4")}), SIZE)


score = jax.jit(lambda stacked, generation: -jax.vmap(lambda tree: jnp.square(tree["w"] - 1).sum())(stacked))


def sampled(pop: fs.Population, centre: fs.Store) -> None:
    es.sample(pop, centre, fs.Normal(0.1), fs.seeds(1, SIZE))


def evolved(pop: fs.Population, centre: fs.Store) -> None:
    assert len(list(ga.evolve(pop, score, seed=1, mutate=fs.Normal(0.1), generations=3))) == 3


def moved(pop: fs.Population, centre: fs.Store) -> None:
    run: Any = {"seed": 1, "noise": fs.Normal(0.1), "members": pop, "rate": 1.0, "generations": 3}
    assert len(list(es.evolve(centre, score, **run))) == 3


@pytest.mark.parametrize("generation", [sampled, evolved, moved])
def test_a_generation_stays_in_its_memory_with_scratch_of_32_mib_at_most(generation: Any) -> None:
    pop, centre = (
        population(),
        fs.Store.zeros(fs.Layout.from_tree({"b": np.zeros(7, "f4"), "w": np.zeros(GENES, "f4")})),
    )
    generation(pop, centre)  # compiled, or loaded
    buffer = pop.buffer.__array_interface__["data"][0]
    assert peak(lambda: generation(pop, centre)) < 32 << 20
    assert pop.buffer.__array_interface__["data"][0] == buffer == pop[0]["b"].__array_interface__["data"][0]


@pytest.mark.long(but="-64]")
@pytest.mark.parametrize(("members", "genes", "n"), [(200_000, 8, 2), (200_000, 8, 64), (13, 1_000_000, 64)])
def test_scratch_is_bounded_whatever_the_members_and_the_threads(members, genes, n):
    pop = fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(genes, "f4")}), members)
    fitness, before = np.arange(float(members)), threads()
    ga.step(pop[:3], fitness[:3], seed=1, mutate=fs.Normal(0.1))  # compiled, or loaded
    set_threads(n)
    try:
        taken = peak(lambda: ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1)))
    finally:
        set_threads(before)
    assert taken < (32 << 20) + 100 * members
