"""`ga.step` of a population of torch: the bits of the host, by the host's loops and by kernels in Triton.

Without a card the kernels run in Triton's interpreter.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import ga
from flatstore.ga.on_torch import breeding
from flatstore.kernels.triton import generation
from flatstore.store import TorchPopulation, array_of
from tests.example_trees import says

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 5
WAYS = {
    "noise": dict(mutate=fs.Normal({"a/b": 0, "*": 0.1})),
    "signs, of the mother alone, clipped": dict(
        mutate=fs.Rademacher(0.1), crossover=None, bounds=ga.Bounds({"a/w": (-0.1, 0.1), "*": (-0.05, np.inf)})
    ),
    "points, reflected": dict(
        mutate=fs.Normal(0.5),
        crossover=ga.Points(3),
        bounds=ga.Bounds({"a/w": (-0.1, 0.1), "d": (0.2, 0.2), "*": (-0.05, 0.02)}, "reflect"),
    ),
    "blend, some noise": dict(mutate=ga.Sparse(fs.Normal(0.1), 0.01), crossover=ga.Blend(), select=ga.Universal()),
    "exchange, some signs": dict(mutate=ga.Sparse(fs.Rademacher(0.1), 0.02), crossover=ga.Exchange()),
    "exchange of nodes, new values": dict(mutate=ga.Reset(-1, 1, 0.01), crossover=ga.Exchange("a"), elite=3),
    "nothing": dict(mutate=None, select=ga.Truncation(0.5), elite=0),
}


@pytest.fixture(params=["loops", "kernels"])
def kind(request, monkeypatch):
    """Which breeding a population on this machine's device has."""
    if request.param == "kernels":
        monkeypatch.setattr(TorchPopulation, "breeding", TorchPopulation.breeding_on_card)
    elif DEVICE != "cpu":
        pytest.skip("the host's loops do not reach a card")
    return request.param


def a_tree():
    rng = np.random.default_rng(0)
    sizes = {"d": (300, "f8"), "e": (0, "f4"), "g": (411, "f2"), "h": (500, "bfloat16")}
    leaves = {path: rng.normal(0, 0.02, size).astype(dtype) for path, (size, dtype) in sizes.items()}
    tied = rng.normal(0, 0.02, (30, 33)).astype("f4")
    return leaves | {"a": {"b": rng.normal(size=33).astype("f4"), "w": tied}, "n": np.int32(3), "other": tied}


def both(tree=None):
    here, there = (fs.Population.from_tree(tree or a_tree(), SIZE, **on) for on in ({}, {"device": DEVICE}))
    rng = np.random.default_rng(1)
    for path, leaf in here.layout.by_path.items():
        if leaf.trainable and leaf.tied is None:
            here[path][...] += rng.normal(0, 0.1, here[path].shape).astype(leaf.dtype)
    there.assign(here.tree)
    return here, there


def same(there, here):
    return all(array_of(there[path].cpu()).tobytes() == here[path].tobytes() for path in here.layout.by_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_generation_has_the_bits_of_the_host(kind, way):
    here, there = both()
    fitness = np.random.default_rng(2).normal(size=SIZE)
    places = {path: x.data_ptr() for path, x in there.items()}
    for number in range(2):
        family, expected = (ga.step(pop, fitness, seed=(1, number), **WAYS[way]) for pop in (there, here))
        assert all((a == b).all() for a, b in zip(family, expected, strict=True))
        assert same(there, here)
    assert {path: x.data_ptr() for path, x in there.items()} == places


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # the interpreter computes by NumPy
def test_genes_that_are_no_numbers_or_infinite_are_brought_back_as_on_the_host(kind):
    here, there = both({"w": np.zeros(40, "f4"), "h": np.zeros(40, "bfloat16")})
    odd = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3.4e38, 1e-40, -0.0]
    for pop in (here, there):
        pop.assign({path: np.tile(np.float32(odd).astype(here[path].dtype), (SIZE, 5)) for path in here.layout.by_path})
    for bounds in (ga.Bounds({"w": (-1, 2), "h": (0, np.inf)}, "reflect"), ga.Bounds({"*": (-1, 2)})):
        for pop in (here, there):
            ga.step(pop, np.arange(SIZE), seed=3, mutate=None, bounds=bounds, elite=0)
        assert same(there, here)


def test_blocks_of_genes_that_are_smaller_than_a_leaf_make_no_difference(monkeypatch):
    monkeypatch.setattr(TorchPopulation, "breeding", TorchPopulation.breeding_on_card)
    monkeypatch.setattr(breeding, "SCRATCH", SIZE * 1024 * 4 * 2)
    monkeypatch.setattr(breeding, "CHILDREN", 2)
    here, there = both({"w": np.zeros(4000, "f4"), "x": np.zeros(3000, "f4")})
    for pop in (here, there):
        ga.step(pop, np.arange(SIZE), seed=3, mutate=fs.Normal(0.1), crossover=ga.Points(2))
    assert same(there, here)


def test_scratch_for_fewer_genes_than_a_tile_is_enough(monkeypatch):
    monkeypatch.setattr(TorchPopulation, "breeding", TorchPopulation.breeding_on_card)
    monkeypatch.setattr(breeding, "SCRATCH", SIZE * 300 * 4 * 4 // 3)
    here, there = both({"a": np.zeros(4, "f4"), "w": np.zeros(1100, "f4")})
    for pop in (here, there):
        ga.step(pop, np.arange(SIZE), seed=3, mutate=fs.Normal(0.1))
    assert same(there, here)


def test_a_part_of_what_is_asked_cannot_be_done_on_a_card(monkeypatch):
    monkeypatch.setattr(TorchPopulation, "breeding", TorchPopulation.breeding_on_card)
    _, pop = both()
    before = [array_of(x.cpu()).tobytes() for x in pop.homes.values()]
    own = ga.Mutate(lambda gene, scale, draw: gene + scale, bits=0)
    for how, kind, words in (
        (dict(mutate=own), TypeError, "expected an operator of this package on a card, got Mutate"),
        (dict(mutate=ga.Sparse(own, 0.1)), TypeError, "expected an operator of this package on a card"),
        (
            dict(mutate=None, crossover=ga.PerGene(lambda a, b, draw: a, bits=0)),
            TypeError,
            "expected an operator of this package on a card, got PerGene",
        ),
        (dict(mutate=fs.Normal({"*": 0.1, "no": 1})), ValueError, "'no'"),
        (dict(mutate=None, elite=SIZE), ValueError, "expected elite in 0 .. 4"),
        (dict(mutate=None, left=()), ValueError, "left: expected None for a population on a device"),
    ):
        with pytest.raises(kind, match=words) as error:
            ga.step(pop, np.arange(SIZE), seed=0, **how)
        says(error)
    assert [array_of(x.cpu()).tobytes() for x in pop.homes.values()] == before


class CompiledUpTo:
    """A kernel as a card has it: for constants and sizes of another kind it is compiled again, which fails at last."""

    def __init__(self, kernel, variants):
        self.kernel, self.variants, self.seen = kernel, variants, set()

    def __getitem__(self, grid):
        def launch(*given, **constants):
            sizes = tuple((x == 1, x % 16 == 0) for x in given if isinstance(x, int))
            places = tuple(x.data_ptr() % 16 == 0 for x in given if isinstance(x, torch.Tensor))
            self.seen.add((sizes, places, *constants.items()))
            if len(self.seen) > self.variants:
                raise MemoryError
            self.kernel[grid](*given, **constants)

        return launch


def test_a_kernel_that_cannot_be_compiled_leaves_no_generation_half_made(monkeypatch):
    monkeypatch.setattr(TorchPopulation, "breeding", TorchPopulation.breeding_on_card)
    monkeypatch.setattr(breeding, "SCRATCH", SIZE * 100 * 4 * 4 // 3)
    here, there = both({"a": np.zeros(4, "f4"), "d": np.zeros(30), "h": np.zeros(411, "f2"), "w": np.zeros(250, "f4")})
    before, kernel, variants = [array_of(x.cpu()).tobytes() for x in there.homes.values()], generation.replace, 0
    while True:
        monkeypatch.setattr(generation, "replace", CompiledUpTo(kernel, variants))
        try:
            ga.step(there, np.arange(SIZE), seed=3, mutate=fs.Normal(0.1))
            break
        except MemoryError:
            assert [array_of(x.cpu()).tobytes() for x in there.homes.values()] == before, variants
        variants += 1
    ga.step(here, np.arange(SIZE), seed=3, mutate=fs.Normal(0.1))
    assert 3 <= variants and same(there, here)


def test_a_population_that_is_lent_is_not_replaced(kind):
    _, pop = both({"w": jnp.zeros(4)})
    with pop.lend("jax"), pytest.raises(fs.LentError, match="lent"):
        ga.step(pop, np.arange(SIZE), seed=0, mutate=fs.Normal(0.1))


def test_evolve_comes_to_the_same_population_as_on_the_host(kind, tmp_path):
    tree = {"w": np.linspace(-1, 1, 65, dtype="f4").reshape(13, 5)}
    here, there = both(tree)
    for pop, root in ((here, jnp), (there, torch)):

        def evaluate(members, number, root=root):
            return np.asarray(-root.square(members["w"] - 0.25).sum((1, 2))).round(3)

        for _ in ga.evolve(pop, evaluate, seed=1, mutate=fs.Normal(0.1), generations=3, run=tmp_path / root.__name__):
            pass
    assert same(there, here)
