"""`ga.step` of a population that JAX keeps on a device: the bits of the host, in the place of the leaves."""

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga

DEVICE = jax.devices()[0]


def both(size=12):
    rng = np.random.default_rng(0)
    tied = np.zeros((5, 3), "f4")
    tree = {"a": np.zeros(7, "f4"), "k": np.zeros((31, 9), "bfloat16"), "n": np.arange(3), "one": tied, "other": tied}
    tree["n"] = tree["n"].astype("i4")
    host, pop = fs.Population.from_tree(tree, size), fs.Population.from_tree(tree, size, device=DEVICE)
    for path in ("a", "k", "one"):
        host[path] = rng.normal(size=host[path].shape).astype(host[path].dtype)
    pop.assign(host.tree)
    return host, pop


@pytest.mark.parametrize(
    "how",
    [
        dict(mutate=fs.Normal(0.1)),
        dict(mutate=ga.Sparse(fs.Normal(0.1), 0.2), crossover=ga.Points(2), select=ga.Universal()),
        dict(mutate=None, crossover=ga.Exchange(["a", "k"]), elite=3, bounds=ga.Bounds({"a": (-1, 1)}, "reflect")),
    ],
    ids=["noise", "some genes", "leaves"],
)
def test_generations_have_the_bits_of_the_host_and_the_leaves_keep_their_places(how):
    host, pop = both()
    places = {path: x.unsafe_buffer_pointer() for path, x in pop.items()}
    for n in range(3):
        fitness = host["a"].sum(1)
        expected = ga.step(host, fitness, seed=(1, n), **how)
        parents, kept = ga.step(pop, fitness, seed=(1, n), **how)
        assert parents.tolist() == expected[0].tolist() and kept.tolist() == expected[1].tolist()
        for path in host.layout.by_path:
            assert np.array(pop[path]).tobytes() == host[path].tobytes(), path
    assert {path: x.unsafe_buffer_pointer() for path, x in pop.items()} == places


def test_what_does_not_suit_is_refused_and_nothing_is_written():
    _, pop = both(4)
    before = {path: np.array(x) for path, x in pop.items()}
    for arguments, kind, words in (
        (dict(fitness=[1.0, 2.0]), ValueError, "4"),
        (dict(fitness=[np.nan] * 4), ValueError, "NaN"),
        (dict(fitness=np.arange(4), elite=4), ValueError, "expected elite"),
        (dict(fitness=np.arange(4), mutate=0.1), TypeError, "to mutate with"),
        (dict(fitness=np.arange(4), left=[]), ValueError, "never half made"),
    ):
        with pytest.raises(kind, match=words):
            ga.step(pop, **{"seed": 0, "mutate": None, **arguments})
    assert all((np.array(x) == before[path]).all() for path, x in pop.items())
