"""A store whose leaves JAX keeps on a device: arrays that verbs donate and replace where they are."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.store import JaxPopulation, JaxStore
from tests.example_trees import Pair, says

DEVICE = jax.devices()[0]
NOISE = fs.Normal(0.02)


def a_tree():
    rng = np.random.default_rng(0)
    tied = rng.normal(size=(4, 3)).astype("f4")
    return {
        "a": Pair(rng.normal(size=7).astype("f4"), rng.normal(size=(31, 23)).astype("bfloat16")),
        "frozen": np.arange(5, dtype="i4"),
        "none": None,
        "one": tied,
        "other": tied,
        "z": np.float32(3),
        "empty": np.zeros((0, 2), "f4"),
    }


def addresses(store):
    return {path: x.unsafe_buffer_pointer() for path, x in store.items() if x.size}


def test_it_is_a_tree_of_arrays_of_jax_with_the_layout_and_the_values_of_a_store_on_the_host():
    host, store = fs.Store.from_tree(a_tree()), fs.Store.from_tree(a_tree(), device=DEVICE)
    assert isinstance(store, JaxStore) and store.layout == host.layout and list(store) == list(host)
    assert all(isinstance(x, jax.Array) and x.devices() == {DEVICE} for x in store.values())
    assert jax.tree.structure(store.tree) == jax.tree.structure(host.tree)
    for path, view in host.items():
        assert np.array(store[path]).tobytes() == view.tobytes() and store[path].dtype == view.dtype
    assert store["one"] is store["other"] and store["a/left"] is store[("a", "left")]
    assert "JaxStore on" in repr(store) and hex(addresses(store)["one"]) in repr(store)


def test_what_is_assigned_is_written_where_the_leaves_are():
    store = fs.Store.from_tree(a_tree(), device=DEVICE)
    before, old = addresses(store), store["z"]
    store["z"] = 5.0
    store.assign(store.copy())
    store.assign(jax.tree.map(lambda x: x, fs.Store.from_tree(a_tree()).tree))
    assert addresses(store) == before and old.is_deleted() and float(store["z"]) == 3
    with pytest.raises(fs.StructureError, match="'z': expected float32") as error:
        store["z"] = np.zeros(2)
    says(error)
    copied = store.copy()
    store["one"] = np.zeros((4, 3))
    assert np.array(copied["one"]).any() and not np.array(store["other"]).any()


def test_a_vector_has_all_parameters_in_the_order_of_their_index():
    tree = {"b": np.arange(3, dtype="f4"), "w": np.ones((2, 2), "f4"), "n": np.int32(7)}
    assert fs.Store.from_tree(tree, device=DEVICE).to_vector().tolist() == fs.Store.from_tree(tree).to_vector().tolist()
    pop = fs.Population.from_tree(tree, 3, device=DEVICE)
    assert pop.to_vector().tolist() == fs.Population.from_tree(tree, 3).to_vector().tolist()
    assert isinstance(pop, JaxPopulation) and len(pop) == 3 and pop.axes == {"b": 0, "n": None, "w": 0}


def test_while_it_is_lent_nothing_is_replaced_and_a_computation_reads_what_it_was_given():
    store = fs.Store.from_tree({"w": np.ones(1 << 16, "f4")}, device=DEVICE)
    es.snap(store, NOISE)
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda i, y: y + jnp.sin(x).sum() * 0 + x.mean(), 0.0))
    with store.lend() as params:
        for write in (lambda: es.perturb(store, NOISE, 1), lambda: store.__setitem__("w", np.zeros(1 << 16))):
            with pytest.raises(fs.LentError, match="one that is lent"):
                write()
        running = slow(params["w"])
    es.perturb(store, NOISE, 1)
    assert abs(float(running) - 200) < 1e-2
    with pytest.raises(RuntimeError, match="deleted"):
        _ = params["w"] + 1
    with pytest.raises(ValueError, match="expected 'jax', got 'torch'"):
        store.lend("torch")


def test_a_leaf_that_moved_since_a_view_of_it_is_held_is_named_and_has_the_right_bits():
    tree = {"a": np.ones(9, "f4"), "w": np.ones(4096, "f4")}
    store, host = fs.Store.from_tree(tree, device=DEVICE), fs.Store.from_tree(tree)
    for x in (store, host):
        es.snap(x, NOISE)
    held = np.asarray(store["w"])
    es.perturb(host, NOISE, 7)
    with pytest.raises(fs.StructureError, match="1 leaf elsewhere than before") as error:
        es.perturb(store, NOISE, 7)
    says(error, "'w': expected address", "drop NumPy")
    assert (held == 1).all() and np.array(store["w"]).tobytes() == host["w"].tobytes()
    del held
    store.verify()
    es.perturb(store, NOISE, 7, sign=-1)
    assert (np.array(store["w"]) == 1).all()


def test_two_threads_do_not_replace_the_same_leaves():
    store = fs.Store.from_tree({"w": np.zeros(10, "f4")}, device=DEVICE)
    inside, done, refused = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        try:
            es.snap(store, NOISE)
        except fs.LentError as error:
            refused.append(error)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    store.write(lambda: (inside.set(), done.wait(10)))
    thread.join()
    assert len(refused) == 1


def test_leaves_that_were_lost_to_a_failure_are_reported_and_can_be_assigned_anew():
    store = fs.Store.from_tree({"w": np.zeros(10, "f4")}, device=DEVICE)
    spoilt = jax.jit(lambda homes: {"w": homes["w"] + 1}, donate_argnums=0)

    def fails(homes):
        spoilt(homes)
        raise MemoryError("no room")

    with pytest.raises(MemoryError) as error:
        store.write(lambda: store.replace(fails))
    assert "are lost; fix: store.assign(values)" in str(error.value.__notes__)
    store.assign({"w": np.ones(10)})
    assert np.array(store["w"]).tolist() == [1] * 10


def evolved(store, **how):
    return es.evolve(store, lambda *_: 0, seed=0, noise=NOISE, rate=1.0, **how)


def test_what_needs_host_memory_says_so():
    tree = {"w": np.zeros(4, "f4")}
    store = fs.Store.from_tree({"w": np.zeros(4, "f4")}, device=DEVICE)
    pop = fs.Population.from_tree({"w": np.zeros(4, "f4")}, 4, device=DEVICE)
    for call, kind, words in (
        (lambda: store.flat, ValueError, "arrays of JAX, one per leaf"),
        (lambda: store.segment, BufferError, "leave workers= out"),
        (lambda: next(evolved(store, members=2, workers=1)), BufferError, "leave workers= out"),
        (lambda: next(evolved(store, members=fs.Population.from_tree(tree, 4))), TypeError, "got a Population beside"),
        (lambda: next(ga.evolve(pop, lambda *_: 0, seed=0, mutate=NOISE, workers=1)), BufferError, "attach to"),
        (lambda: fs.Store.from_tree({"w": np.zeros(4)}, device=DEVICE), ValueError, "64-bit types off"),
        (lambda: fs.Store.from_tree({"w": np.zeros(4, "f4")}, device=3), TypeError, "expected a device of JAX"),
        (
            lambda: fs.Population.from_tree({"w": np.zeros(4, "f4")}, 0, device=DEVICE),
            ValueError,
            "at least one member",
        ),
        (lambda: fs.Population.from_tree(tree, 2, order="member", device=DEVICE), ValueError, "order='leaf'"),
        (JaxStore, TypeError, "a named constructor"),
    ):
        with pytest.raises(kind, match="expected") as error:
            call()
        says(error, words)
