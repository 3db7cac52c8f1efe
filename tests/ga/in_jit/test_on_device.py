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


@jax.jit
def score(stacked, generation):
    return -jax.numpy.square(stacked["a"] - 1).sum(1) - jax.numpy.square(stacked["one"]).sum((1, 2)) * generation


RUN = {"seed": 3, "mutate": fs.Normal(0.1)}


@pytest.mark.parametrize("chunk", [None, 5], ids=["at once", "in chunks"])
def test_a_run_has_the_records_of_the_host_and_is_resumed(chunk):
    host, pop = both()
    places = {path: x.unsafe_buffer_pointer() for path, x in pop.items()}
    expected = list(ga.evolve(host, score, generations=4, **RUN))
    first = list(ga.evolve(pop, score, generations=2, chunk=chunk, **RUN))
    rest = list(ga.evolve(pop, score, generations=4, chunk=chunk, resume=first[-1], **RUN))
    for record, want in zip([*first, *rest], expected, strict=True):
        assert record.number == want.number and record.fitness.tolist() == want.fitness.tolist()
        assert want.parents is None or record.parents.tolist() == want.parents.tolist()
    assert all(np.array(pop[path]).tobytes() == host[path].tobytes() for path in host.layout.by_path)
    assert {path: x.unsafe_buffer_pointer() for path, x in pop.items()} == places


def test_a_run_in_a_folder_goes_on_from_what_either_kind_has_left(tmp_path):
    host, pop = both()
    expected = list(ga.evolve(host, score, generations=4, **RUN))
    list(ga.evolve(pop, score, generations=2, run=tmp_path / "run", **RUN))
    other = both()[0]
    *_, last = ga.evolve(other, score, generations=3, run=tmp_path / "run", **RUN)
    assert last.fitness.tolist() == expected[2].fitness.tolist()
    *_, last = ga.evolve(pop, score, generations=4, run=tmp_path / "run", **RUN)
    assert last.fitness.tolist() == expected[3].fitness.tolist()
    assert all(np.array(pop[path]).tobytes() == host[path].tobytes() for path in host.layout.by_path)


def test_chunks_are_those_of_the_host_and_copies_of_members():
    tree = {"w": np.zeros(1 << 18, "f4"), "n": np.arange(3, dtype="i4")}
    host, pop = fs.Population.from_tree(tree, 50), fs.Population.from_tree(tree, 50, device=DEVICE)
    pop["w"] = np.broadcast_to(np.arange(50, dtype="f4")[:, None], (50, 1 << 18))
    chunks = list(pop.chunks())
    assert [chunk.size for chunk in chunks] == [chunk.size for chunk in host.chunks()] == [25, 25]
    with chunks[1].lend() as stacked:
        assert stacked["w"][:, 7].tolist() == list(range(25, 50)) and stacked["n"].shape == (3,)
        with pytest.raises(fs.LentError, match="one that is lent"):
            pop["n"] = np.zeros(3, "i4")
    with next(pop.chunks(50)).lend() as stacked:
        assert stacked["w"] is pop["w"]
    with pytest.raises(ValueError, match="expected at_most >= 1, got 0; fix"):
        pop.chunks(0)


def test_a_run_refuses_operators_that_do_not_suit_before_anything_runs():
    _, pop = both(4)

    def never(stacked, generation):
        raise AssertionError("it was evaluated")

    for how, kind, words in (
        (dict(mutate=fs.Normal({"b": 0.1})), ValueError, "expected globs that match"),
        (dict(mutate=None, crossover=ga.Exchange("b")), ValueError, "'b'"),
        (dict(mutate=None, elite=4), ValueError, "expected elite"),
    ):
        with pytest.raises(kind, match=words):
            ga.evolve(pop, never, seed=0, **how)


def test_what_evaluation_raises_leaves_the_generation_and_says_how_to_go_on():
    _, pop = both(4)

    def fails(stacked, generation):
        if generation:
            raise KeyError("broken")
        return score(stacked, generation)

    run = ga.evolve(pop, fails, **RUN)
    first = next(run)
    with pytest.raises(KeyError) as error:
        next(run)
    assert "the population holds generation 1, not yet evaluated" in str(error.value.__notes__)
    *_, last = ga.evolve(pop, score, generations=2, resume=1, **RUN)
    other = both(4)[1]
    *_, expected = ga.evolve(other, score, generations=2, **RUN)
    assert last.fitness.tolist() == expected.fitness.tolist() and first.number == 0
