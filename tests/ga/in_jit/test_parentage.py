"""`ga.births` decides as `ga.step` does, outside of jit, and gives arrays of the same shapes each time."""

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga

LAYOUT = fs.Layout.from_tree({"b": np.zeros(5, "f4"), "w": np.zeros((3, 4), "f4")})
FITNESS = [0.0, np.nan, 3.0, 1.0, 2.0, -1.0]


@pytest.mark.parametrize("elite", [0, 1, 3])
@pytest.mark.parametrize("select", [ga.Tournament(), ga.Truncation(), ga.Universal()], ids=repr)
def test_the_parents_are_those_of_step(select, elite):
    pop = fs.Population.zeros(LAYOUT, 6)
    born = ga.births(pop, FITNESS, seed=(1, 2), select=select, elite=elite)
    parents, kept = ga.step(pop, FITNESS, seed=(1, 2), mutate=None, select=select, elite=elite)
    assert born.slots.tolist() == np.flatnonzero(~kept).tolist()
    assert np.stack([born.mothers, born.fathers], 1).tolist() == parents[~kept].tolist()
    assert born.keys.tolist() == fs.es.words(fs.seeds((1, 2), 7))[born.slots].tolist()


def test_it_is_a_pytree_of_arrays_of_32_bits_whose_shapes_go_by_the_number_of_children():
    shapes = {
        tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(ga.births(LAYOUT, fitness, seed=n)))
        for n, fitness in enumerate((FITNESS, FITNESS[::-1], np.arange(6)))
    }
    assert shapes == {(((5, 2), "uint32"), *[((5,), "int32")] * 3, ((5, 0, 2), "uint32"))}
    cuts = ga.births(LAYOUT, FITNESS, seed=1, crossover=ga.Points(3)).cuts
    assert cuts.shape == (5, 3, 2) and (cuts[..., 0] <= 17).all() and not cuts[..., 1].any()


def test_the_errors_are_those_of_step():
    for arguments, words in (
        (dict(fitness=[np.nan] * 6), "NaN"),
        (dict(fitness=FITNESS, elite=6), "expected elite in 0 .. 5, got 6"),
        (dict(fitness=FITNESS, select=lambda fitness, n, seed: [99] * n), "indices of members from select"),
    ):
        with pytest.raises(ValueError, match=words):
            ga.births(LAYOUT, seed=0, **arguments)
    with pytest.raises(TypeError, match="expected a crossover or None"):
        ga.births(LAYOUT, FITNESS, seed=0, crossover=3)
