"""A store on a device of torch: one buffer, whose leaves are torch views, lent to JAX by DLPack."""

import gc
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es, ga
from flatstore.store import OnTorch, TorchPopulation, TorchStore, array_of, host_of, torch_lends
from flatstore.store.torch_store import ALIGN
from tests.example_trees import Pair, says

NOISE = fs.Normal(0.02)


def a_tree():
    rng = np.random.default_rng(0)
    tied = rng.normal(size=(4, 3)).astype("f4")
    return {
        "a": Pair(rng.normal(size=7).astype("f4"), rng.normal(size=(31, 23)).astype("bfloat16")),
        "double": rng.normal(size=5),
        "eight": rng.normal(size=9).astype("float8_e4m3fn"),
        "empty": np.zeros((0, 2), "f4"),
        "frozen": np.arange(5, dtype="i4"),
        "none": None,
        "one": tied,
        "other": tied,
        "z": np.float32(3),
    }


def test_it_is_one_buffer_with_the_layout_and_the_values_of_a_store_on_the_host():
    host, store = fs.Store.from_tree(a_tree()), fs.Store.from_tree(a_tree(), device="cpu")
    assert isinstance(store, TorchStore) and store.layout == host.layout and list(store) == list(host)
    assert jax.tree.structure(store.tree) == jax.tree.structure(host.tree)
    start = store.buffer.data_ptr()
    assert start % ALIGN == 0 and store.buffer.nbytes == host.buffer.nbytes
    for path, view in host.items():
        leaf = host.layout.by_path[path]
        assert array_of(store[path]).tobytes() == view.tobytes() and tuple(store[path].shape) == view.shape
        assert not view.size or store[path].data_ptr() == start + host.layout.by_path[leaf.tied or path].offset
    assert store["one"] is store["other"] and store["a/left"] is store[("a", "left")]
    assert store.device == torch.device("cpu") and "TorchStore on cpu" in repr(store)
    assert array_of(store.buffer).tobytes() == host.buffer.tobytes()


def test_the_flat_vector_shows_the_same_bytes():
    tree = {"b": np.zeros(3, "f4"), "w": np.ones((2, 2), "f4")}
    store, host = fs.Store.from_tree(tree, device="cpu"), fs.Store.from_tree(tree)
    assert store.flat.tolist() == host.flat.tolist()
    store.flat[:2] = 5
    assert store["b"].tolist() == [5, 5, 0]
    with pytest.raises(ValueError, match="expected trainable leaves of one dtype, got float32, bfloat16, float64"):
        _ = fs.Store.from_tree(a_tree(), device="cpu").flat
    pop = fs.Population.from_tree(tree, 3, device="cpu")
    with pytest.raises(ValueError, match="expected leaves that lie together") as error:
        _ = pop[1].flat
    says(error, "copy().flat")


def test_what_is_assigned_is_written_where_the_leaves_are():
    store, host = fs.Store.from_tree(a_tree(), device="cpu"), fs.Store.from_tree(a_tree())
    places = {path: x.data_ptr() for path, x in store.items()}
    store["z"] = 5.0
    assert float(store["z"]) == 5
    store.assign(store.copy())
    store.assign(host.tree)
    assert {path: x.data_ptr() for path, x in store.items()} == places and float(store["z"]) == 3
    with pytest.raises(fs.StructureError, match="'z': expected float32") as error:
        store["z"] = np.zeros(2)
    says(error)
    copied = store.copy()
    store["one"] = np.zeros((4, 3))
    assert copied["one"].any() and not store["other"].any()


def test_a_population_is_stacked_leaf_by_leaf_and_its_members_are_views():
    tree = {"b": np.arange(3, dtype="f4"), "w": np.ones((2, 2), "f4"), "n": np.int32(7)}
    pop, host = fs.Population.from_tree(tree, 3, device="cpu"), fs.Population.from_tree(tree, 3)
    assert isinstance(pop, TorchPopulation) and len(pop) == 3 and pop.axes == {"b": 0, "n": None, "w": 0}
    assert pop.to_vector().tolist() == host.to_vector().tolist() and tuple(pop["w"].shape) == (3, 2, 2)
    pop[1]["b"] = np.array([4, 5, 6], "f4")
    assert pop["b"].tolist() == [[0, 1, 2], [4, 5, 6], [0, 1, 2]] and pop[-2]["b"].tolist() == [4, 5, 6]
    assert [member["n"].item() for member in pop.members()] == [7, 7, 7]
    es.snap(pop[1], NOISE)
    es.perturb(pop[1], NOISE, 3)
    assert pop["b"][0].tolist() == [0, 1, 2] and pop["b"][1].tolist() != [4, 5, 6]
    with pytest.raises(ValueError, match="expected one model, got 3 members, stacked leaf by leaf") as error:
        _ = pop.flat
    says(error, "pop.to_vector()")
    with pytest.raises(IndexError, match="expected a member in 0 .. 2, got 3"):
        pop[3]
    with pytest.raises(TypeError, match="expected a member's number or a path, got float"):
        pop[0.5]


def test_jax_reads_the_same_bytes_and_meanwhile_nothing_is_written():
    tree = {"w": np.ones(1 << 16, "f4"), "h": jnp.ones(64, "bfloat16"), "e": np.zeros((0, 2), "f4")}
    store = fs.Store.from_tree(tree, device="cpu")
    es.snap(store, NOISE)
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda i, y: y + jnp.sin(x).sum() * 0 + x.mean(), 0.0))
    for _ in range(3):
        with store.lend("jax") as params:
            assert params["w"].unsafe_buffer_pointer() == store["w"].data_ptr() and params["h"].dtype == jnp.bfloat16
            for write in (lambda: es.perturb(store, NOISE, 1), lambda: store.__setitem__("w", np.zeros(1 << 16))):
                with pytest.raises(fs.LentError, match="one that is lent"):
                    write()
            running = slow(params["w"])
        log = es.perturb(store, NOISE, 1)  # which waits in the exit
        assert abs(float(running) - 200) < 1e-2
        es.perturb(store, NOISE, 1, sign=-1, undo=log)
        with pytest.raises(RuntimeError, match="deleted"):
            _ = params["w"] + 1


def test_a_view_that_is_held_keeps_the_store_lent():
    store = fs.Store.from_tree({"w": np.ones(64, "f4")}, device="cpu")
    with pytest.raises(
        fs.LentError, match=r"expected all lent leaves back, got 1 still read after 0.05 s: 'w'"
    ) as error:
        with store.lend("jax", patience=0.05) as params:
            held = np.asarray(params["w"])
    says(error, "drop the views")
    with pytest.raises(fs.LentError, match="one that is lent: 1 lend"):
        store["w"] = np.zeros(64)
    assert held.sum() == 64
    del held, params, error
    store["w"] = np.zeros(64)


def test_a_card_has_finished_before_what_jax_has_let_go_of_is_no_longer_lent(monkeypatch):
    """JAX lets go when it has asked the card for the last computation, not when that is done."""
    store, finished = fs.Store.from_tree({"w": np.ones(64, "f4"), "v": np.ones(64, "f4")}, device="cpu"), []

    def finish(device):
        finished.append((device, len(store.memory.lends)))

    monkeypatch.setattr(torch_lends, "finish", finish)
    with store.lend("jax"):
        assert not finished
    assert finished == [(store.device, 1)]  # once for all leaves
    with pytest.raises(fs.LentError, match="still read"), store.lend("jax", patience=0.05) as params:
        held = np.asarray(params["w"])
    assert finished[1:] == [(store.device, 1)]  # of what was not held
    del held, params
    gc.collect()
    store["w"] = np.zeros(64)
    assert finished[2:] == [(store.device, 1)]  # by who writes next
    with store.lend():
        pass
    assert len(finished) == 3


def test_views_of_torch_that_come_and_go_meanwhile_make_no_difference():
    store = fs.Store.from_tree({"w": np.ones(1 << 16, "f4")}, device="cpu")
    views = [store["w"][:5] for _ in range(3)]
    with store.lend("jax", patience=0.05) as params:
        kept = store["w"][:7]
        assert float(params["w"].sum()) == 1 << 16
    store["w"] = np.zeros(1 << 16)
    with pytest.raises(fs.LentError, match="still read"), store.lend("jax", patience=0.05) as params:
        held = np.asarray(params["w"])
        views.clear()
    assert kept.sum() == 0 and held.sum() == 0


def test_the_tree_is_lent_to_torch_as_it_is():
    store = fs.Store.from_tree({"w": np.ones(64, "f4")}, device="cpu")
    lent = store.lend()
    with lent as params, pytest.raises(fs.LentError, match=r"one that is lent: 1 lend\(s\); fix: leave"):
        assert params["w"] is store["w"]
        es.snap(store, NOISE)
    with pytest.raises(RuntimeError, match="a lend that was not entered before"):
        lent.__enter__()
    with pytest.raises(ValueError, match="expected 'jax' or 'torch', got 'numpy'"):
        store.lend("numpy")
    es.snap(store, NOISE)


def test_a_leaf_that_jax_cannot_view_is_named():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4"), "b": np.zeros(4, "f4")}, align=4, device="cpu")
    with pytest.raises(BufferError, match="that JAX cannot view without a copy") as error:
        store.lend("jax").__enter__()
    says(error, "'b': expected a view")
    store["b"] = np.ones(4)  # it is not lent


def test_two_threads_do_not_write_the_same_leaves():
    store = fs.Store.from_tree({"w": np.zeros(10, "f4")}, device="cpu")
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


def test_a_leaf_whose_data_were_replaced_is_named():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4"), "w": np.zeros(10, "f4")}, device="cpu")
    store["w"].data = torch.ones(10)
    with pytest.raises(fs.StructureError, match="1 leaf elsewhere than where the store was made") as error:
        store.verify()
    says(error, "'w': expected address")
    assert not host_of(store)["w"].any()  # what the store owns is where it was


def test_a_dtype_that_torch_does_not_have_is_named():
    with pytest.raises(ValueError, match="'w': expected a dtype that torch has, got float8_e3m4"):
        fs.Store.from_tree({"w": np.zeros(4, "float8_e3m4")}, device="cpu")


@pytest.mark.parametrize(
    ("device", "kind", "words"),
    [
        (0, TypeError, "expected a device of JAX or torch, got 0; fix: pass one, such as jax.devices()[0] or 'cuda'"),
        ("gpu", ValueError, "expected a device of torch, got 'gpu'; fix: pass 'cpu', 'cuda' or 'cuda:1' for torch"),
        ("meta", ValueError, "expected host memory or a card that Triton's kernels run on, got 'meta'; fix: pass"),
        ("cuda:99", ValueError, "expected a device that is there, got 'cuda:99', where torch finds"),
        (torch.device("cuda", 99), ValueError, "expected a device that is there"),
    ],
)
def test_a_device_that_is_not_there_is_refused_by_all_that_make_stores(device, kind, words, tmp_path):
    fs.save(tmp_path / "x.safetensors", fs.Store.from_tree({"w": np.zeros(4, "f4")}))
    for make in (
        lambda: fs.Store.from_tree({"w": np.zeros(4, "f4")}, device=device),
        lambda: fs.Population.from_tree({"w": np.zeros(4, "f4")}, 2, device=device),
        lambda: fs.load(tmp_path / "x.safetensors", device=device),
    ):
        with pytest.raises(kind, match=re.escape(words)) as error:
            make()
        says(error)


def test_it_costs_its_own_bytes_and_little_more():
    tree = {f"w{i}": np.ones(1 << 18, "f4") for i in range(16)}
    store = fs.Store.from_tree(tree, device="cpu")
    assert store.buffer.untyped_storage().nbytes() <= store.layout.nbytes + ALIGN


MADE = {
    "from_tree": lambda: fs.Store.from_tree({"h": np.ones(64, "f2"), "w": np.ones((16, 8), "f4")}, device="cpu"),
    "a copy": lambda: MADE["from_tree"]().copy(),
    "a member": lambda: fs.Population.from_tree(MADE["from_tree"]().tree, 3, device="cpu")[1],
    "spans": lambda: TorchStore.over((x := MADE["from_tree"]()).layout, {p: y.clone() for p, y in x.homes.items()}),
}


@pytest.mark.parametrize("on_card", [False, True])
@pytest.mark.parametrize("make", MADE)
def test_inference_mode_makes_no_difference(make, on_card, monkeypatch):
    if on_card:
        monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    expected = None
    for made, used in ((False, False), (False, True), (True, False), (True, True)):
        with torch.inference_mode(made):
            store = MADE[make]()
        with torch.inference_mode(used):
            es.snap(store, NOISE)
            es.perturb(store, NOISE, 1, sign=-1, undo=es.perturb(store, NOISE, 1))
            es.update(store, NOISE, [1, 2], [0.5, 0.5])
            store["h"] = torch.full((64,), 0.5, dtype=torch.float16)
            beside = store.copy()
            es.sample(beside, store, NOISE, [3])
            es.Adam(store).step(beside, 0.01)
            store["w"][0] += 1
            with store.lend("jax") as params:
                assert params["w"].shape == (16, 8)
        expected = store.to_vector() if expected is None else expected
        assert np.array_equal(store.to_vector(), expected)


def test_a_generation_of_a_population_of_inference_mode_is_the_same():
    stepped = []
    for made, used in ((False, False), (False, True), (True, False)):
        with torch.inference_mode(made):
            pop = fs.Population.from_tree({"w": np.ones((16, 8), "f4")}, 4, device="cpu")
        with torch.inference_mode(used):
            ga.step(pop, np.arange(4), seed=1, mutate=NOISE)
            es.sample(pop[0], pop[1].copy(), NOISE, [1])
        stepped.append(pop.to_vector())
    assert all(np.array_equal(x, stepped[0]) for x in stepped)
