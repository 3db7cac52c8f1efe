"""Small moves are done at once by the thread that asks for them: with the bits of large ones, all of it or nothing."""

import threading

import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.es import groups
from flatstore.ga import generation

NOISE = fs.Normal({"a": 0.5, "c/*": 0, "*": 0.001}, bound=16)


def a_store(noise=NOISE):
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(0, 0.1, (5, 7)).astype("f4"),
        "b": {"n": np.arange(9), "w": rng.normal(0, 0.1, 1001)},
        "c": {"bias": np.zeros(3, "f4")},
        "d": rng.normal(0, 0.1, 77).astype("f4"),
    }
    store = fs.Store.from_tree(tree)
    es.snap(store, noise)
    return store


def perturbed_and_updated():
    store = a_store()
    es.perturb(store, NOISE, 7, sign=-2)
    es.update(store, NOISE, fs.seeds(1, 5), [0.5, -1, 0.25, 1e-3, 0])
    es.perturb(store, fs.Rademacher(0.25, bound=16), (3, 4))
    return store.buffer


def sampled():
    store = a_store()
    pop = fs.Population.zeros(store.layout, 6)
    es.sample(pop, store, NOISE, fs.seeds(2, 3), antithetic=True)
    return pop.buffer


def evolved():
    pop = fs.Population.zeros(a_store().layout, 6)
    es.sample(pop, a_store(), NOISE, fs.seeds(2, 6))
    for n, crossover in enumerate([ga.Uniform(), ga.Points(2), ga.Blend(0.1), ga.Exchange(), None]):
        for mutate in (fs.Normal(0.1), ga.Sparse(fs.Normal(0.1), 0.1), ga.Reset(-1, 1, 0.1), None):
            ga.step(pop, np.arange(6.0), seed=n, mutate=mutate, crossover=crossover)
    return pop.buffer


@pytest.mark.parametrize("result", [perturbed_and_updated, sampled, evolved])
def test_small_moves_have_the_bits_of_large_ones(result, monkeypatch):
    small = result().tobytes()
    monkeypatch.setattr(groups, "SMALL", 0)
    monkeypatch.setattr(generation, "SMALL", 0)
    assert result().tobytes() == small


@pytest.mark.parametrize("path", ["a", "b/w", "d"])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("number", [1e-9, 16.0, 100.0, np.nan, -0.0])
def test_what_breaks_the_grid_or_the_bound_anywhere_leaves_all_as_it_was(path, place, number):
    store = a_store()
    store[path].reshape(-1)[place] = number
    before = store.buffer.tobytes()
    moves = [
        lambda: es.perturb(store, NOISE, 7, sign=2),
        lambda: es.update(store, NOISE, [1, 2], [1.0, 300.0]),
    ]
    for move in moves:
        with pytest.raises(ValueError, match=r"expected .* fix: "):
            move()
        assert store.buffer.tobytes() == before


def test_a_small_move_of_what_is_lent_or_read_is_an_error_and_nothing_is_written():
    store = a_store()
    pop = fs.Population.zeros(store.layout, 2)
    before = store.buffer.tobytes()
    with store.lend(only="a"):
        with pytest.raises(fs.LentError):
            es.perturb(store, NOISE, 7)
        with pytest.raises(fs.LentError):
            es.update(store, NOISE, [1], [1.0])
    with pop.lend(only="a"):
        with pytest.raises(fs.LentError):
            es.sample(pop, store, NOISE, [1, 2])
        with pytest.raises(fs.LentError):
            ga.step(pop, [0.0, 1.0], seed=1, mutate=None)
    assert store.buffer.tobytes() == before
    assert not pop.buffer.any()
    es.perturb(store, NOISE, 7)
    assert store.buffer.tobytes() != before


def test_several_threads_move_small_stores_of_their_own_at_once():
    expected = perturbed_and_updated().tobytes()
    results = [b""] * 4

    def work(i):
        for _ in range(20):
            results[i] = perturbed_and_updated().tobytes()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_what_is_planned_for_a_sample_belongs_to_the_memory_that_it_was_planned_for():
    noise, pop = fs.Normal(0.1), fs.Population.zeros(fs.Layout.from_tree({"w": np.zeros(5, "f4")}), 3)
    for _ in range(40):
        centre = fs.Store.from_tree({"w": np.random.default_rng(0).normal(size=5).astype("f4")})
        es.snap(centre, noise)
        es.sample(pop, centre, noise, [1, 2, 3])
        alone = fs.Store.zeros(centre.layout)
        es.sample(alone, centre, noise, 2)
        assert pop[1].to_vector().tobytes() == alone.to_vector().tobytes()
        es.sample(pop, pop[1], noise, [3, 4, 5])
        twice = fs.Store.zeros(centre.layout)
        es.sample(twice, alone, noise, 4)
        assert pop[1].to_vector().tobytes() == twice.to_vector().tobytes()
