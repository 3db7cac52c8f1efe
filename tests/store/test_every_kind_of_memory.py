"""What memory a store lies in makes no difference to its verbs: the same results, the same bits in every leaf."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.es.groups import zeros_beside
from tests.kinds import F4, KINDS, ON_HOST, a_tree, addresses, as_array, heap, kept, same

NOISE = fs.Normal({"*bias": 0.05, "*": 0.02})


@jax.jit
def score_of(leaves):
    return -sum(jnp.square(x.astype(F4) - 0.25).sum() for x in leaves)


def floats(params):
    return [x for x in map(as_array, jax.tree.leaves(params)) if x.dtype != np.int32]


def score(params, step):
    return score_of(floats(params))


def rated(stacked, generation):
    return jax.vmap(lambda *leaves: score_of(leaves))(*floats(stacked))


def journal(moves):
    return [move.entry for move in moves]


def there_and_back(store):
    es.snap(store, NOISE)
    log = es.perturb(store, NOISE, 7)
    beside = kept(store)
    log = es.perturb(store, NOISE, 7, sign=-2, undo=log)
    across = kept(store)
    es.perturb(store, NOISE, 7, sign=1, undo=log)
    return beside, across, log is None


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
    members = zeros_beside(store, 6)
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
    return [*store], len(store)


def read(store):
    is_mixed = as_array(store["b"]).dtype == "bfloat16"  # which is not promoted beside float16
    vectors = [] if is_mixed else [store.to_vector()]
    with store.lend() as params:
        given = jax.tree.map(lambda x: np.array(as_array(x)), params)
    store.verify()
    return given, kept(store.copy()), vectors, [np.array(as_array(x)) for x in jax.tree.leaves(store.tree)]


def written_as_views(store):
    store.tree["a.weight"][0] = 5
    store["c.weight"][:100] *= 2
    return [path for path, _ in store.modules()], store.select("*.weight")["a.weight"]


def read_as_views(store):
    vectors = []
    if store["b"].dtype != "bfloat16":
        flat, rebuild = fs.destructure(store)
        vectors = [np.array(flat), jax.tree.map(np.array, rebuild(flat))]
    with store.lend() as params:
        there = [x.unsafe_buffer_pointer() == store[path].ctypes.data for path, x in params.items() if x.size]
    assert all(there)
    return kept(fs.transfer(store, store.layout)), vectors


CASES = [
    *(there_and_back, perturbed, updated, updated_from_the_side, sampled_from_it, sampled_into_it),
    *(climbed, evolved, optimised, replayed, assigned, read),
]
ON_VIEWS = [written_as_views, read_as_views]
DTYPES = {"float32": (F4,), "mixed": ("bfloat16", F4, "f2")}
ALL = [
    *[(kind, case, dtypes) for kind in ON_HOST for case in CASES + ON_VIEWS for dtypes in DTYPES],
    *[(kind, case, "mixed") for kind in KINDS if kind not in ON_HOST for case in CASES],  # each compiles
]


@pytest.mark.parametrize(("kind", "case", "dtypes"), ALL, ids=lambda x: getattr(x, "__name__", x))
def test_a_verb_does_the_same_to_the_bit(kind, case, dtypes, tmp_path):
    tree = a_tree(DTYPES[dtypes])
    store, plain = KINDS[kind](tree, tmp_path), heap(tree, tmp_path)
    assert store.layout == plain.layout
    places = addresses(store)
    assert same(case(store), case(plain))
    assert same(kept(store), kept(plain)) and addresses(store) == places


@pytest.mark.parametrize("kind", ON_HOST)
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
    near = 31.9999 if as_array(store["d.e.weight"]).dtype == F4 else 0
    for path, at, value in (("d.e.weight", 5, near), ("a.weight", -1, np.inf)):
        leaf = np.array(as_array(store[path]))
        leaf.reshape(-1)[at] = value
        store[path] = leaf
    before = kept(store)
    move = {
        "perturb": lambda: es.perturb(store, NOISE, 3),
        "update": lambda: es.update(store, NOISE, [3], [1.0]),
    }[verb]
    with pytest.raises(ValueError, match=r"'(a\.weight|d\.e\.weight)': expected"):
        move()
    assert same(kept(store), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_by_no_seeds_changes_no_bit(kind, tmp_path):
    tree = a_tree((ml_dtypes.bfloat16, np.float16))
    for path in ("a.bias", "a.weight"):  # of both dtypes
        tree[path][:1] = -0.0
    store = KINDS[kind](tree, tmp_path)
    es.update(store, NOISE, [], [])
    assert same(kept(store), kept(heap(tree, tmp_path)))
