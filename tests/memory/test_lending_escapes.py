"""What of a lent tree survives its lend, and what the exit does about it."""

import gc
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import flatstore as fs


def new_store(dtype=np.float32):
    return fs.Store.from_tree(
        {"w": np.arange(16, dtype=np.float32).astype(dtype).reshape(4, 4), "b": np.ones(4, dtype)}
    )


SAFE = {
    "what jit returns": lambda leaf: jax.jit(lambda t: t)(leaf),
    "what jit returns of a tree": lambda leaf: jax.jit(lambda t: {"w": t, "twice": t * 2})(leaf)["w"],
    "a sum": lambda leaf: leaf + 0,
    "jnp.array": lambda leaf: jnp.array(leaf),
}


@pytest.mark.parametrize("name", SAFE)
def test_a_fresh_array_survives_with_its_values(name):
    store = new_store()
    with store.lend() as tree:
        kept = SAFE[name](tree["w"])
    store.flat[:] = -1
    assert np.array_equal(kept, np.arange(16).reshape(4, 4))


ALIASES = {
    "the leaf": lambda leaf: leaf,
    "a whole slice": lambda leaf: leaf[:],
    "a reshape": lambda leaf: leaf.reshape(16),
    "a transpose": lambda leaf: leaf.T,
    "jnp.asarray": lambda leaf: jnp.asarray(leaf),
    "device_put": lambda leaf: jax.device_put(leaf),
    "device_put to the CPU": lambda leaf: jax.device_put(leaf, jax.devices("cpu")[0]),
    "a part": lambda leaf: leaf[1:3],
}


@pytest.mark.parametrize("name", ALIASES)
def test_a_jax_array_made_of_a_leaf_is_deleted_with_it_or_has_values_of_its_own(name):
    store = new_store()
    with store.lend() as tree:
        kept = ALIASES[name](tree["w"])
        before = np.array(kept)
    store.flat[:] = -1
    try:
        after = np.array(kept)
    except RuntimeError as error:
        assert "deleted" in str(error)
    else:
        assert after.tobytes() == before.tobytes()


def test_the_leaves_themselves_raise_jax_s_own_error_afterwards():
    store = new_store()
    with store.lend() as tree:
        pass
    with pytest.raises(RuntimeError, match="deleted"):
        tree["w"] + 1


def test_a_closure_over_a_leaf_raises_afterwards():
    store = new_store()
    with store.lend() as tree:

        def add(x, leaf=tree["w"]):
            return x + leaf

        assert add(1.0).shape == (4, 4)
    store.flat[:] = -1
    with pytest.raises(RuntimeError, match="deleted"):
        add(1.0)


def test_a_jitted_closure_keeps_the_value_it_was_traced_with_or_raises():
    store = new_store()
    with store.lend() as tree:
        add = jax.jit(lambda x, leaf=tree["w"]: x + leaf)
        before = np.array(add(1.0))
    store.flat[:] = -1
    try:
        assert np.array_equal(add(1.0), before)
    except RuntimeError as error:
        assert "deleted" in str(error)


def test_a_vjp_s_residuals_are_deleted_or_values_of_their_own():
    store = new_store()
    with store.lend() as tree:
        _, pull = jax.vjp(lambda w: (w * w).sum(), tree["w"])
        before = np.array(pull(jnp.float32(1))[0])
    store.flat[:] = -1
    try:
        assert np.array_equal(pull(jnp.float32(1))[0], before)
    except RuntimeError as error:
        assert "deleted" in str(error)


HELD = {
    "np.asarray": np.asarray,
    "a slice of np.asarray": lambda leaf: np.asarray(leaf)[1:],
    "np.from_dlpack": np.from_dlpack,
    "jax.device_get": jax.device_get,
    "torch.from_dlpack": torch.from_dlpack,
    "memoryview": lambda leaf: memoryview(np.asarray(leaf)),
}


@pytest.mark.long(but="from_dlpack")
@pytest.mark.parametrize("name", HELD)
def test_a_view_of_another_library_kept_past_the_exit_is_an_error_with_the_leaf_s_name(name):
    store = new_store()
    before = store.flat.tobytes()
    view = store["w"]
    lend = store.lend(patience=0.05)
    with pytest.raises(fs.LentError, match=r"got 1 still read after 0.05 s: 'w'; fix: drop the NumPy or torch views"):
        with lend as tree:
            kept = HELD[name](tree["w"])
    with pytest.raises(fs.LentError, match="is lent: 1 lend"):
        store["b"] = np.zeros(4, np.float32)
    assert not view.flags.writeable
    assert store.flat.tobytes() == before
    assert "(lent)" in repr(store)
    del kept, tree, lend
    gc.collect()
    store["b"] = np.zeros(4, np.float32)
    assert view.flags.writeable
    assert "(lent)" not in repr(store)


def test_a_cached_view_is_writable_again_at_its_next_use_once_the_last_holder_is_gone():
    store = new_store()
    view = store["w"]
    with pytest.raises(fs.LentError), store.lend(patience=0.01) as tree:
        kept = np.asarray(tree["w"])
    assert not store["w"].flags.writeable
    del kept, tree
    gc.collect()
    assert store["w"] is view
    assert view.flags.writeable


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_a_held_view_of_a_16_or_8_bit_float_is_noticed_too(dtype):
    store = new_store(dtype)
    with pytest.raises(fs.LentError, match="'w'"), store.lend(patience=0.05) as tree:
        kept = np.asarray(tree["w"])
    with pytest.raises(fs.LentError):
        store["b"] = np.ones(4, dtype)
    del kept, tree
    store["b"] = np.ones(4, dtype)


def test_every_held_leaf_is_named():
    store = new_store()
    with pytest.raises(fs.LentError, match="got 2 still read .*'b', 'w'"), store.lend(patience=0.01) as tree:
        kept = jax.device_get(tree)
    assert kept["w"].shape == (4, 4)


def test_an_exception_of_the_body_is_not_replaced_by_the_error_about_held_views():
    store = new_store()
    with pytest.raises(KeyError, match="mine") as caught, store.lend(patience=0.01) as tree:
        kept = np.asarray(tree["w"])
        raise KeyError("mine")
    assert "1 still read" in caught.value.__notes__[0]
    with pytest.raises(fs.LentError):
        store["w"] = np.zeros((4, 4), np.float32)
    assert kept.shape == (4, 4)


def test_a_view_in_a_reference_cycle_is_collected_not_waited_for():
    store = new_store()
    gc.disable()
    try:
        with store.lend(patience=20) as tree:
            cycle = {"view": np.asarray(tree["w"])}
            cycle["itself"] = cycle
            del cycle
    finally:
        gc.enable()
    store["w"] = np.zeros((4, 4), np.float32)


def test_a_view_that_another_thread_drops_in_time_is_waited_for():
    store = new_store()
    box = []
    with store.lend(patience=30) as tree:
        box.append(np.asarray(tree["w"]))
        dropper = threading.Timer(0.3, box.clear)
        dropper.start()
    assert not box
    dropper.join()
    store["w"] = np.zeros((4, 4), np.float32)


def test_donating_a_lent_leaf_leaves_the_store_alone():
    store = new_store()
    before = store.buffer.tobytes()
    with store.lend() as tree:
        out = jax.jit(lambda w: w * 0 - 1, donate_argnums=0)(tree["w"])
    assert store.buffer.tobytes() == before
    assert (out == -1).all()
    store["w"] = np.zeros((4, 4), np.float32)


def test_a_second_lend_is_possible_while_a_view_of_the_first_is_held():
    store = new_store()
    with pytest.raises(fs.LentError), store.lend(patience=0.01) as tree:
        kept = np.asarray(tree["w"])
    with store.lend() as again:
        assert np.array_equal(again["w"], kept)
    with pytest.raises(fs.LentError):
        store["w"] = np.zeros((4, 4), np.float32)
