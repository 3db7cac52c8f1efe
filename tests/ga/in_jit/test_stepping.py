"""`ga.stepped` inside jit has the bits of `ga.step`, for every operator and dtype, in the memory of what is donated."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.ga.in_jit import stepping
from flatstore.trees.paths import by_path
from tests.example_trees import says
from tests.ga.oracle import mutated, population

S = jax.ShapeDtypeStruct
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
BY_TOURNAMENT = ga.Tournament()
FITNESS = np.random.default_rng(1).normal(size=13)
SOME = fs.Normal({"*/bias": 0, "a/*": 0.5, "*": 0.01})


def tree(dtype):
    """Sizes that are multiples of nothing, a frozen leaf between others, 0-d and size 0."""
    return {
        "a": {"bias": S((7,), dtype), "empty": S((0, 3), dtype), "frozen": S((37,), np.int32)},
        "b": S((), dtype),
        "c": {"kernel": S((31, 23), dtype)},
    }


def same(made, pop):
    leaves = by_path(made)
    assert leaves.keys() == pop.layout.by_path.keys()
    for path, value in leaves.items():
        assert np.asarray(value).tobytes() == pop[path].tobytes(), path


def both(pop, mutate, seed=(3, 5), elite=2, select=BY_TOURNAMENT, **how):
    """The next generation inside jit, and then in the population."""
    crossover = how.get("crossover", ga.Uniform())
    born = ga.births(pop, FITNESS[: pop.size], seed=seed, elite=elite, select=select, crossover=crossover)
    step = jax.jit(lambda stacked, born: ga.stepped(stacked, born, mutate=mutate, layout=pop.layout, **how))
    with jax.enable_x64(any(leaf.dtype == np.float64 for leaf in pop.layout.homes)):
        after = jax.tree.map(np.asarray, step(jax.tree.map(jnp.asarray, pop.tree), born))
    ga.step(pop, FITNESS[: pop.size], seed=seed, mutate=mutate, elite=elite, select=select, **how)
    same(after, pop)


def small_blocks(monkeypatch, genes=13 * 100):
    monkeypatch.setattr(stepping, "GENES", genes)


CROSSOVERS = [
    ga.Uniform(),
    ga.Blend(0.5),
    ga.Blend(-0.5),
    ga.Points(1),
    ga.Points(2),
    ga.Points(7),
    ga.Exchange(),
    ga.Exchange(["a", "c/*"]),
    None,
]
MUTATIONS = [
    fs.Normal(0.1),
    SOME,
    fs.Rademacher(0.1),
    ga.Sparse(fs.Normal(0.1), 0.02),
    ga.Sparse(fs.Rademacher({"*/kernel": 0.3, "*": 0}), 0.5),
    ga.Sparse(fs.Normal(0.1), 1.0),
    ga.Sparse(fs.Normal(0.1), 1e-5),
    ga.Reset(-1.0, 2.0, 0.05),
    None,
]
BOUNDS = [
    ga.Bounds({"*": (-0.3, 0.7)}),
    ga.Bounds({"*": (-0.3, 0.7)}, "reflect"),
    ga.Bounds({"a/*": (-np.inf, 0.1), "b": (0.25, 0.25), "c/kernel": (-0.1, np.inf)}),
    ga.Bounds({"a/*": (-np.inf, 0.1), "b": (0.25, 0.25), "c/kernel": (0.01, 0.03)}, "reflect"),
]


@pytest.mark.long(but="float32")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("crossover", CROSSOVERS, ids=repr)
def test_every_crossover_has_the_bits_of_step(crossover, dtype, monkeypatch):
    small_blocks(monkeypatch)
    both(population("leaf", tree=tree(dtype)), fs.Normal(0.1), crossover=crossover)


@pytest.mark.long(but="bfloat16")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("mutate", MUTATIONS, ids=repr)
def test_every_mutation_has_the_bits_of_step(mutate, dtype, monkeypatch):
    small_blocks(monkeypatch)
    both(population("leaf", tree=tree(dtype)), mutate)


@pytest.mark.long(but="float32")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("bounds", BOUNDS, ids=["clip", "reflect", "some clipped", "some reflected"])
def test_bounds_have_the_bits_of_step(bounds, dtype):
    pop = population("leaf", tree=tree(dtype))
    pop["c/kernel"][:, 0, :4] = [np.nan, np.inf, -np.inf, 2.5]
    both(pop, fs.Normal(0.5), bounds=bounds)


@pytest.mark.parametrize(
    ("select", "elite"), [(ga.Tournament(2), 0), (ga.Truncation(0.3), 1), (ga.Universal(), 12)], ids=str
)
def test_every_selection_and_elite_has_the_bits_of_step(select, elite):
    both(population("leaf", tree=tree(np.float32)), fs.Normal(0.1), select=select, elite=elite)


@pytest.mark.parametrize("genes", [16, 13 * 256, 1 << 17])
@pytest.mark.parametrize("mutate", [fs.Normal(0.1), ga.Sparse(fs.Normal(0.1), 0.1)], ids=["all", "some"])
def test_the_size_of_a_block_makes_no_difference(genes, mutate, monkeypatch):
    small_blocks(monkeypatch, genes)
    both(population("leaf", tree=tree(np.float32)), mutate, crossover=ga.Points(3))


def test_generations_follow_each_other_without_being_compiled_again():
    pop = population("leaf", tree=tree(np.float32))
    traced = []

    def one(stacked, born):
        traced.append(0)
        return ga.stepped(stacked, born, mutate=ga.Sparse(fs.Normal(0.1), 0.2), layout=pop.layout)

    step, stacked = jax.jit(one, donate_argnums=0), jax.tree.map(jnp.array, pop.tree)
    for n in range(4):
        fitness = pop["a/bias"].sum(1)
        stacked = step(stacked, ga.births(pop, fitness, seed=(7, n)))
        ga.step(pop, fitness, seed=(7, n), mutate=ga.Sparse(fs.Normal(0.1), 0.2))
        same(stacked, pop)
    assert len(traced) == 1


def test_a_population_that_is_lent_is_read_where_it_lies():
    pop = fs.Population.from_tree({"w": np.linspace(-1, 1, 64, dtype="f4")}, 16)
    fitness = np.arange(16.0)
    step = jax.jit(lambda stacked, born: ga.stepped(stacked, born, mutate=fs.Normal(0.1)))
    with pop.lend() as stacked:
        after = np.array(step(stacked, ga.births(pop, fitness, seed=1))["w"])
    ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1))
    assert after.tobytes() == pop["w"].tobytes()


@pytest.mark.parametrize("mutate", [fs.Normal(0.1), ga.Sparse(fs.Normal(0.1), 0.1)], ids=["all", "some"])
def test_a_leaf_behind_the_first_four_billion_draws_by_all_64_bits_of_its_index(mutate):
    old = np.random.default_rng(0).standard_normal((6, 700)).astype("f4")
    after = []
    for before in (7, 1 << 32, (1 << 32) + 7 * 128, (1 << 40) + 256):
        tree = {"a": S((before,), np.int8), "b": S((700,), np.float32)}
        layout = fs.Layout.from_tree(tree, trainable="b")
        born = ga.births(layout, FITNESS[:6], seed=2, elite=1)
        leaf = layout.by_path["b"]
        assert leaf.index == before

        def step(b, born, layout=layout, leaf=leaf):
            return stepping._moved(b, born, mutate, ga.Points(1), None, layout, leaf, jnp.uint32(0))

        born = born._replace(cuts=ga.births(layout, FITNESS[:6], seed=2, crossover=ga.Points(1)).cuts)
        after.append(np.asarray(jax.jit(step)(old, born)))
        for slot, key in zip(born.slots.tolist(), fs.seeds(2, 7)[born.slots].tolist(), strict=True):
            row = born.slots.tolist().index(slot)
            cut = int(born.cuts[row, 0, 0]) + (int(born.cuts[row, 0, 1]) << 32)
            index = before + np.arange(700)
            mother, father = old[born.mothers[row]], old[born.fathers[row]]
            genes = np.where(index < cut, mother, father)
            expected = mutated(mutate, leaf, key, genes, index)
            assert after[-1][slot].tobytes() == expected.tobytes()
    assert len({x.tobytes() for x in after}) == 4


OWN = {
    "crossover by a table": dict(
        crossover=ga.PerGene(lambda a, b, draw: jnp.where(draw > 0.5, a, b), bits=8, table=np.linspace(0, 1, 256))
    ),
    "crossover by a number": dict(crossover=ga.PerGene(lambda a, b, draw: jnp.where(draw < 85, a, b), bits=8)),
    "crossover without a draw": dict(crossover=ga.PerGene(lambda a, b, draw: jnp.maximum(a, b), bits=0)),
    "mutation by a number": dict(
        mutate=ga.Mutate(lambda gene, scale, draw: jnp.where(draw < 77, scale - gene, gene), bits=8, scale=0.5)
    ),
    "some genes": dict(
        mutate=ga.Sparse(ga.Mutate(lambda gene, scale, draw: scale - gene, bits=0, scale={"*/bias": 0, "*": 2.0}), 0.3)
    ),
}
FOR_NUMBA = {
    "crossover by a table": dict(
        crossover=ga.PerGene(lambda a, b, draw: a if draw > 0.5 else b, bits=8, table=np.linspace(0, 1, 256))
    ),
    "crossover by a number": dict(crossover=ga.PerGene(lambda a, b, draw: a if draw < 85 else b, bits=8)),
    "crossover without a draw": dict(crossover=ga.PerGene(lambda a, b, draw: max(a, b), bits=0)),
    "mutation by a number": dict(
        mutate=ga.Mutate(lambda gene, scale, draw: scale - gene if draw < 77 else gene, bits=8, scale=0.5)
    ),
    "some genes": dict(
        mutate=ga.Sparse(ga.Mutate(lambda gene, scale, draw: scale - gene, bits=0, scale={"*/bias": 0, "*": 2.0}), 0.3)
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_functions_of_ones_own_are_traced_and_draw_the_same_numbers(name, monkeypatch):
    small_blocks(monkeypatch)
    pop = population("leaf", tree=tree(np.float32))
    inside, outside = ({"mutate": None, "crossover": ga.Uniform(), **which[name]} for which in (OWN, FOR_NUMBA))
    born = ga.births(pop, FITNESS, seed=4, crossover=inside["crossover"])
    after = jax.jit(lambda stacked, born: ga.stepped(stacked, born, layout=pop.layout, **inside))(pop.tree, born)
    ga.step(pop, FITNESS, seed=4, **outside)
    same(after, pop)


@pytest.mark.parametrize(
    "how",
    [
        dict(mutate=fs.Normal(0.02)),
        dict(mutate=fs.Normal(0.02), crossover=ga.Points(2)),
        dict(mutate=ga.Sparse(fs.Normal(0.02), 0.01)),
        dict(mutate=ga.Reset(-1, 1, 0.01), crossover=ga.Blend()),
        dict(mutate=fs.Normal(0.02), bounds=ga.Bounds({"*": (-1, 1)}, "reflect")),
    ],
    ids=str,
)
def test_temporaries_are_those_of_a_block_and_the_donated_leaves_keep_their_places(how):
    members, genes = 64, 1 << 18
    shapes = {f"l{i}": {"b": S((members, 300), "f4"), "w": S((members, genes), "f4")} for i in range(3)}
    layout = fs.Layout.from_tree(jax.tree.map(lambda x: S(x.shape[1:], x.dtype), shapes))
    born = ga.births(layout, np.arange(members), seed=1, crossover=how.get("crossover", ga.Uniform()))
    step = jax.jit(lambda stacked, born: ga.stepped(stacked, born, layout=layout, **how), donate_argnums=0)
    compiled = step.lower(shapes, born).compile()
    memory, nbytes = compiled.memory_analysis(), 4 * members * layout.size
    assert memory.temp_size_in_bytes <= 64 * stepping.GENES < nbytes / 20
    assert memory.alias_size_in_bytes == nbytes
    stacked = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    jax.block_until_ready(stacked)
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(stacked)]
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(compiled(stacked, born))] == places


def test_what_does_not_fit_is_refused_before_anything_is_traced():
    pop = population("leaf", tree=tree(np.float32))
    born = ga.births(pop, FITNESS, seed=1)
    stacked = dict(pop.tree)

    def refused(kind, words, stacked=stacked, born=born, mutate=None, **how):
        with pytest.raises(kind, match="expected") as error:
            jax.jit(lambda x, y: ga.stepped(x, y, mutate=mutate, **how))(stacked, born)
        says(error, *words)

    refused(TypeError, ["got tuple", "ga.births(...)"], born=tuple(born))
    refused(ValueError, ["with 3 cuts for each child, got 0"], crossover=ga.Points(3), layout=pop.layout)
    refused(TypeError, ["mutate with, got 0.1"], mutate=0.1)
    less = {path: value for path, value in stacked.items() if path != "b"}
    refused(fs.StructureError, ["'b': expected float32[13], got nothing"], less, layout=pop.layout)
    refused(ValueError, ["globs that match a leaf", "'x'"], bounds=ga.Bounds({"x": (0, 1)}), layout=pop.layout)
    wide = population("leaf", tree={"w": S((3,), np.float64)})
    refused(ValueError, ["'w'", "64-bit types off"], wide.tree, layout=wide.layout)

    class Own:
        def crossing(self, layout, keys, dtype):
            raise NotImplementedError

    refused(TypeError, ["a crossover that JAX can trace"], crossover=Own(), layout=pop.layout)
