"""What memory a store lies in makes no difference to its verbs: the same results, the same bits in every leaf."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es
from flatstore.interop.torch import from_numpy

F4 = np.float32
NOISE = fs.Normal({"*bias": 0.05, "*": 0.02})
SHAPES = {"b": (), "a.bias": (16,), "a.weight": (32, 24), "c.empty": (0, 3), "c.weight": (5_008,), "d.e.weight": (64,)}


def a_tree(dtypes=(F4,)):
    """Leaves by torch's names: of several sizes, one of no parameter, one 0-d, one that does not train."""
    rng = np.random.default_rng(0)
    shapes = enumerate(SHAPES.items())
    tree = {path: rng.uniform(-1, 1, shape).astype(dtypes[i % len(dtypes)]) for i, (path, shape) in shapes}
    return OrderedDict(tree, steps=np.arange(16, dtype="i4"))


def a_module(tree):
    """A module whose parameters, and buffers where they are integers, have these names and values."""
    root = torch.nn.Module()
    for path, value in tree.items():
        *owners, name = path.split(".")
        module = root
        for owner in owners:
            if owner not in dict(module.named_children()):
                module.add_module(owner, torch.nn.Module())
            module = module.get_submodule(owner)
        tensor = from_numpy(np.array(value)).clone()  # in memory of torch's
        if tensor.is_floating_point():
            module.register_parameter(name, torch.nn.Parameter(tensor))
        else:
            module.register_buffer(name, tensor)
    return root


def heap(tree, folder):
    return fs.Store.from_tree(tree)


def wrapped(tree, folder):
    layout = fs.Layout.from_tree(tree)
    buffer = np.zeros(layout.nbytes + 64, np.uint8)
    store = fs.Store.wrap(buffer[-buffer.ctypes.data % 64 :], layout)
    store.assign(tree)
    return store


def file(tree, folder):
    fs.save(folder / "kind.safetensors", fs.Store.from_tree(tree))
    return fs.open(folder / "kind.safetensors", mode="r+")


def member(tree, folder):
    return fs.Population.from_tree(tree, 64)[32]  # where JAX can take it


def adopted(tree, folder):
    return fs.adopt(a_module(tree))


def spans(tree, folder):
    return fs.adopt(a_module(tree), move=False)


KINDS = {kind.__name__: kind for kind in (wrapped, file, member, adopted, spans)}


def kept(store):
    """A copy of every leaf."""
    return {path: np.array(store.leaf_view(path)) for path in store.layout.by_path}


@jax.jit
def score(params, step):
    return -sum(jnp.square(x.astype(F4) - 0.25).sum() for x in jax.tree.leaves(params) if x.dtype != np.int32)


def rated(stacked, generation):
    return jax.vmap(lambda *leaves: score(leaves, generation))(*(x for x in stacked.values() if x.dtype != np.int32))


def journal(moves):
    return [move.entry for move in moves]


def there_and_back(store):
    es.snap(store, NOISE)
    log = es.perturb(store, NOISE, 7)
    beside = kept(store)
    log = es.perturb(store, NOISE, 7, sign=-2, undo=log)
    across = kept(store)
    es.perturb(store, NOISE, 7, sign=1, undo=log)
    return beside, across, log and log.nbytes


def perturbed(store):
    es.snap(store, NOISE)
    before = kept(store)
    with es.perturbed(store, NOISE, 8), es.perturbed(store, NOISE, 9, sign=-1):
        inside = kept(store)
    assert same(kept(store), before)
    return inside


def updated(store):
    es.snap(store, NOISE)
    es.update(store, NOISE, fs.seeds(1, 5), [0.5, -0.25, 1e-9, 0.3, 2.0])
    moved = kept(store)
    log = es.update(store, NOISE, fs.seeds(2, 2), [1.0, -0.5], keep=True)
    es.update(store, NOISE, fs.seeds(2, 2), [1.0, -0.5], sign=-1, undo=log)
    assert same(kept(store), moved)


def updated_from_the_side(store):
    es.snap(store, NOISE)
    log = es.perturb(store, NOISE, 7)
    es.update(store, NOISE, [7], [0.25], perturbed=1, undo=log)


def sampled_from_it(store):
    members = fs.Population.zeros(store.layout, 6)
    es.sample(members, store, NOISE, fs.seeds(3, 3), antithetic=True)
    return kept(members)


def sampled_into_it(store):
    es.sample(store, store.copy(), NOISE, [11])


def climbed(store):
    es.snap(store, NOISE)
    return journal(es.mezo(store, score, seed=0, noise=NOISE, rate=2.0, steps=5))


def evolved(store):
    es.snap(store, NOISE)
    return journal(es.evolve(store, rated, seed=0, noise=NOISE, members=16, rate=2.0, generations=3))


def optimised(store):
    run = {"seed": 0, "noise": NOISE, "members": 16, "rate": 0.01, "generations": 3}
    moves = journal(es.evolve(store, rated, optimiser=es.Adam(store), **run))
    es.Momentum(store).step(store.copy(), 0.1)
    return moves


def replayed(store):
    es.snap(store, NOISE)
    es.replay(store, NOISE, [(fs.seeds(i, 4), np.linspace(-1, 1, 4)) for i in range(3)])


def assigned(store):
    store.assign({path: value // 2 for path, value in kept(store).items()} | {"steps": store["steps"]})
    store["a.bias"] = np.arange(16)
    store.assign(iter([("d.e.weight", np.linspace(0, 1, 64)), ("b", 3)]))
    store.tree["a.weight"][0] = 5
    store["c.weight"][:100] *= 2
    return [*store], [path for path, _ in store.modules()], store.select("*.weight")["a.weight"]


def read(store):
    copied = fs.transfer(store, store.layout)
    vectors = []
    if store["b"].dtype != "bfloat16":  # which NumPy does not promote together with float16
        flat, rebuild = fs.destructure(store)
        vectors = [store.to_vector(), np.array(flat), jax.tree.map(np.array, rebuild(flat))]
    with store.lend() as params:
        given = jax.tree.map(np.array, params)
        there = [x.unsafe_buffer_pointer() == store[path].ctypes.data for path, x in params.items() if x.size]
    assert all(there)
    store.verify()
    return given, kept(copied), vectors, [*jax.tree.leaves(store.tree)]


CASES = [
    *(there_and_back, perturbed, updated, updated_from_the_side, sampled_from_it, sampled_into_it),
    *(climbed, evolved, optimised, replayed, assigned, read),
]


def same(one, other):
    """Whether two results have the same bits."""
    (leaves, tree), (others, their) = jax.tree.flatten(one), jax.tree.flatten(other)
    pairs = zip(leaves, others, strict=True)
    return tree == their and all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("dtypes", [(F4,), ("bfloat16", F4, "f2")], ids=["float32", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_verb_does_the_same_to_the_bit(kind, case, dtypes, tmp_path):
    tree = a_tree(dtypes)
    store, plain = KINDS[kind](tree, tmp_path), heap(tree, tmp_path)
    assert store.layout == plain.layout
    addresses = {path: view.ctypes.data for path, view in store.items()}
    assert same(case(store), case(plain))
    for path, view in plain.items():
        assert store[path].tobytes() == view.tobytes(), path
    assert {path: view.ctypes.data for path, view in store.items()} == addresses


@pytest.mark.parametrize("kind", KINDS)
def test_while_it_is_lent_nothing_writes_it_and_afterwards_everything_does(kind, tmp_path):
    store = KINDS[kind](a_tree(), tmp_path)
    es.snap(store, NOISE)
    view, before = store["c.weight"], kept(store)
    with store.lend() as params:
        for write in (
            lambda: es.perturb(store, NOISE, 1),
            lambda: es.update(store, NOISE, [1], [1.0]),
            lambda: es.sample(store, store, NOISE, [1]),
            lambda: store.assign(before),
            lambda: store.__setitem__("b", 1.0),
        ):
            with pytest.raises(fs.LentError, match="nobody reads"):
                write()
        assert not view.flags.writeable and not store["c.weight"].flags.writeable
        assert not any(x.flags.writeable for x in store.tree.values() if x.size)
        total = params["c.weight"].sum()
    assert same(kept(store), before) and float(total) == float(jnp.sum(before["c.weight"]))
    assert params["c.weight"].is_deleted() and view.flags.writeable
    es.perturb(store, NOISE, 1)
    assert not same(kept(store), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_a_folder_goes_on_in_another_store(kind, tmp_path):
    run = {"seed": 0, "noise": NOISE, "rate": 2.0}

    def a_store(name, make):
        (tmp_path / name).mkdir()
        store = make(a_tree(), tmp_path / name)
        es.snap(store, NOISE)
        return store

    for steps, name in ((3, "first"), (6, "second")):
        store = a_store(name, KINDS[kind])
        *_, last = es.mezo(store, score, steps=steps, run=tmp_path / "run", **run)
    plain = a_store("plain", heap)
    *_, expected = es.mezo(plain, score, steps=6, **run)
    assert last.entry == expected.entry and same(kept(store), kept(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_the_same_file(kind, tmp_path):
    tree = a_tree(("bfloat16", F4, "f2"))
    store = KINDS[kind](tree, tmp_path)
    fs.save(tmp_path / "a.safetensors", store)
    fs.save(tmp_path / "b.safetensors", heap(tree, tmp_path))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["perturb", "update"])
def test_a_move_that_is_refused_leaves_every_bit_and_names_the_leaf(kind, verb, tmp_path):
    tree = a_tree(("bfloat16", F4))
    store = KINDS[kind](tree, tmp_path)
    es.snap(store, NOISE)
    store["d.e.weight"][5] = 31.9999 if store["d.e.weight"].dtype == F4 else 0
    store["a.weight"][31, 23] = np.inf
    before = [view.tobytes() for view in store.values()]
    move = {
        "perturb": lambda: es.perturb(store, NOISE, 3),
        "update": lambda: es.update(store, NOISE, [3], [1.0]),
    }[verb]
    with pytest.raises(ValueError, match=r"'(a\.weight|d\.e\.weight)': expected"):
        move()
    assert [view.tobytes() for view in store.values()] == before
