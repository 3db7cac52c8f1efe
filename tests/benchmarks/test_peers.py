"""Peers that are compared do the same work: what each makes is what plain NumPy makes."""

import inspect

import jax
import numpy as np
import pytest

from benchmarks.peers import PEERS, genetic, holding, installed, named, noise, sixteen, strategies, whole
from benchmarks.peers.peer import SCALE, Peer, tree_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # EvoTorch uses it
torch_is_there = pytest.mark.skipif(not sixteen.Sixteen.installed(), reason="torch is not installed")


def there(question, *but):
    """The peers of a question that are installed, by name; the others are n/a here, too."""
    return pytest.mark.parametrize("name", [name for name in installed(PEERS[question]) if name not in but])


def random_tree(leaves=5):
    """Leaves of multiples of 64 bytes, between which flatstore has no gaps."""
    rng = np.random.default_rng(0)
    return {name: {"w": rng.normal(size=(4, 4 * i + 4)).astype("f4")} for i, name in enumerate(tree_of(leaves, 1))}


def vector_of(tree):
    return np.concatenate([layer["w"].reshape(-1) for layer in tree.values()])


def test_a_peer_without_its_library_is_not_applicable():
    class Absent(Peer):
        library = "no_such_library"

    assert installed({"absent": Absent, "there": holding.NumPy}) == {"there": holding.NumPy}
    with pytest.raises(NotImplementedError, match="no_such_library is not installed"):
        Absent()


def test_each_question_has_flatstore_first_and_one_base_class():
    for question, peers in PEERS.items():
        assert next(iter(peers)).startswith("flatstore"), question
        assert all(issubclass(peer, Peer) and inspect.getdoc(peer) for peer in peers.values()), question
    assert list(named("generation", "es")) == list(strategies.PEERS)


@there("conversion")
def test_a_flat_vector_and_its_tree_are_the_same(name):
    tree = random_tree()
    peer = PEERS["conversion"][name](tree)
    assert np.array_equal(np.asarray(peer.flatten()), vector_of(tree))
    found = peer.unflatten()
    assert list(found) == list(tree)
    for path, layer in tree.items():
        value = found[path]["w"]
        assert np.array_equal(value.detach() if hasattr(value, "detach") else value, layer["w"]), path
    last = peer.access()
    assert np.array_equal(last.detach() if hasattr(last, "detach") else last, tree["layer_00004"]["w"])


@there("conversion", "torch")
def test_a_vector_that_is_made_leaf_by_leaf_is_the_same(name):
    assert np.array_equal(np.asarray(PEERS["conversion"][name].fill(5, 80)), np.repeat(np.arange(5, dtype="f4"), 16))


@there("lending")
def test_what_is_lent_is_the_same_and_copies_are_counted(name):
    tree, seen = random_tree(), []
    peer = PEERS["lending"][name](tree)
    peer.lend(lambda lent: seen.extend(np.asarray(x).copy() for x in jax.tree.leaves(lent)))
    assert len(seen) == 5
    assert np.array_equal(np.concatenate([x.reshape(-1) for x in seen]), vector_of(tree))
    nbytes = vector_of(tree).nbytes
    expected = {"flatstore": [0], "dlpack": [0], "ravel_pytree": [nbytes]}
    assert peer.copied() in expected.get(name, range(nbytes + 1))


def test_populations_that_xla_evaluates_have_the_same_fitness():
    rows = 0.1 * np.random.default_rng(0).normal(size=(3, 2 * 20)).astype("f4")
    function, population, inputs = holding.RavelPytree.evaluated(2, 4, 3, 7)
    x = np.random.default_rng(1).normal(size=inputs.shape).astype("f4")
    assert population.shape == rows.shape
    matrix = np.asarray(function(rows, x))
    function, population, _ = holding.Flatstore.evaluated(2, 4, 3, 7)
    tree, at = {}, 0
    for layer, shapes in holding.perceptron(2, 4).items():
        tree[layer] = {}
        for kind in sorted(shapes):
            size = shapes[kind].size
            tree[layer][kind] = rows[:, at : at + size].reshape(3, *shapes[kind].shape)
            at += size
    assert jax.tree.map(np.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, population)
    np.testing.assert_allclose(np.asarray(function(tree, x)), matrix, rtol=1e-5)
    for layer in tree.values():
        x = np.tanh(x @ layer["kernel"] + layer["bias"][:, None])
    np.testing.assert_allclose(matrix, x.mean((1, 2)), rtol=1e-4)


SIZE = 100_000


def has_noise(values, deviation):
    """Whether values look like noise around zero of such a deviation, as far as so many can tell."""
    values = np.asarray(values, float)
    mean = abs(values.mean()) < 5 * deviation / values.size**0.5
    return mean and values.std() == pytest.approx(deviation, rel=0.02)


@there("perturbation", "stored noise", "roof")
def test_perturbing_adds_noise_of_the_same_deviation(name):
    peer = PEERS["perturbation"][name](SIZE)
    peer.perturb()
    assert np.shape(peer.x) == (SIZE,) and has_noise(peer.x, SCALE)


@there("perturbation", "numpy", "roof")
def test_updating_adds_the_weighted_noise_of_all_seeds(name):
    peer = PEERS["perturbation"][name](SIZE)
    peer.update()
    assert np.shape(peer.x) == (SIZE,) and has_noise(peer.x, SCALE * np.linalg.norm(noise.weights()))


def test_the_roof_moves_every_byte_and_changes_none():
    peer = noise.Roof(SIZE)
    peer.x[:] = np.arange(SIZE)
    peer.perturb()
    assert np.array_equal(peer.x, np.arange(SIZE, dtype="f4"))
    with pytest.raises(NotImplementedError, match="does not update"):
        peer.update()


@torch_is_there
@there("sixteen_bits", "roof")
def test_sixteen_bits_get_noise_of_the_same_deviation_and_lose_it_again(name):
    model = sixteen.vector(SIZE)
    peer = PEERS["sixteen_bits"][name](model)
    (before,) = (x.detach().clone() for x in model.parameters())
    peer.perturb()
    (moved,) = (x.detach().float().numpy() - before.float().numpy() for x in model.parameters())
    assert moved.std() == pytest.approx(sixteen.SCALE, rel=0.05) and abs(moved.mean()) < 1e-5
    peer.undo()
    (after,) = (x.detach() for x in model.parameters())
    off = (after.float() - before.float()).numpy()
    assert not off.any() if name == "flatstore" else 0 < off.std() < sixteen.SCALE / 2


@there("generation")
def test_a_generation_is_noise_around_its_parents(name):
    peer = PEERS["generation"][name](32, 2000)
    peer.run(1)
    rows = peer.rows()
    assert rows.shape == (32, 2000) and rows.dtype == np.float32
    if name.endswith("es"):  # around a centre, in pairs; one that asks has moved it already
        rows = rows - rows.mean(0)
    elif name == "flatstore, ga":
        (elite,) = np.flatnonzero(~rows.any(1))
        rows = np.delete(rows, elite, 0)
    assert has_noise(rows, SCALE)


@there("evaluation")
def test_the_fitness_of_whole_generations_is_that_of_plain_numpy(name):
    members, units = 4, 16
    kernels = {"hidden": (whole.INPUTS, units), "output": (units, whole.OUTPUTS)}
    genes = whole.parameters(1300)
    assert whole.hidden(1300) == units
    peer = PEERS["evaluation"][name](members, 1300)
    rows = 0.3 * np.random.default_rng(0).normal(size=(members, genes)).astype("f4")
    tree, at = {}, 0
    for layer, (inputs, outputs) in kernels.items():
        bias, kernel = np.split(rows[:, at : at + outputs * (inputs + 1)], [outputs], axis=1)
        tree[layer] = {"bias": bias, "kernel": kernel.reshape(members, inputs, outputs)}
        at += outputs * (inputs + 1)
    x, y = whole.batch()
    hidden = np.tanh(x @ tree["hidden"]["kernel"] + tree["hidden"]["bias"][:, None])
    logits = hidden @ tree["output"]["kernel"] + tree["output"]["bias"][:, None]
    expected = (logits - np.log(np.exp(logits).sum(2, keepdims=True)))[:, np.arange(len(y)), y].mean(1)
    if name.startswith("evotorch"):
        import torch

        found = peer.rated(torch.from_numpy(rows)).numpy()
    elif "transposed" in name:
        for layer in tree.values():
            layer["kernel"] = layer["kernel"].swapaxes(1, 2)
        found = peer.evaluate(tree)
    else:
        found = peer.evaluate(tree)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4)


def test_the_fitness_of_a_genetic_algorithm_is_the_same_for_all():
    peers = [peer(32, 100) for name, peer in installed(genetic.PEERS).items() if name != "evotorch"]
    assert all(np.array_equal(peer.fitness, genetic.fitness(32)) for peer in peers)


@there("files")
def test_what_was_saved_is_loaded(name):
    peer = PEERS["files"][name](1 << 16)
    peer.save()
    loaded = peer.load()
    expected = np.concatenate([view.view(np.uint8) for view in peer.store.values()])
    if name != "roof":
        loaded = np.concatenate([loaded[path].view(np.uint8) for path in peer.store])
    assert np.array_equal(loaded, expected)
    assert (peer.beyond() == 0) == (name == "roof")
    folder = peer.path.parent
    del peer
    assert not folder.exists()
