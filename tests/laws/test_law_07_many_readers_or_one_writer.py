"""Law 7: many readers or one writer. While a buffer is lent nothing writes it, and a lend outlasts its last reader."""

import signal
import threading
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import flatstore as fs

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def store_of(dtype, leaves=3):
    return fs.Store.from_tree({f"w{i}": (np.arange(64 * 64) % 7).reshape(64, 64).astype(dtype) for i in range(leaves)})


def slow(rounds):
    """A jitted function that computes for a while, and then reads the leaves: where, the computation has decided."""

    @jax.jit
    def run(tree, x):
        x = jax.lax.fori_loop(0, rounds, lambda _, x: jnp.tanh(x @ x) * 0.5, x)
        start = (x[0, 0] > 2).astype(int)  # always 0, but XLA cannot know before the loop is over
        return sum(jax.lax.dynamic_slice_in_dim(leaf, start, 63).astype(jnp.float32).sum() for leaf in tree.values())

    return run


@pytest.fixture(scope="module")
def rounds():
    """How many rounds of `slow` take over a second here, found by measuring."""
    x = jnp.ones((400, 400), jnp.float32)
    tree = {"w": jnp.ones((64, 64))}
    count, taken = 100, 0.0
    while taken <= 1:
        count = max(2 * count, int(1.5 * count / taken)) if taken else count
        run = slow(count).lower(tree, x).compile()
        start = time.perf_counter()
        run(tree, x).block_until_ready()
        taken = time.perf_counter() - start
    return count


@pytest.mark.long(but="float32")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_write_right_after_a_lend_does_not_tear_a_computation_that_still_runs(dtype, rounds):
    store, x, run = store_of(dtype), jnp.ones((400, 400), jnp.float32), slow(rounds)
    with store.lend() as tree:
        expected = np.asarray(run(tree, x))
        result = run(tree, x)
        assert not result.is_ready(), "the computation must outlive the block for this test to say anything"
    assert result.is_ready()
    store["w0"] = np.zeros((64, 64), dtype)
    assert np.asarray(result) == expected


@pytest.mark.long(but="float32")
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_without_the_wait_the_same_program_is_torn(dtype, rounds):
    store, x, run = store_of(dtype), jnp.ones((400, 400), jnp.float32), slow(rounds)
    tree = store.alias()
    expected = np.asarray(run(tree, x))
    result = run(tree, x)
    store["w0"] = np.zeros((64, 64), dtype)
    assert np.asarray(result) != expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_lent_leaf_shows_the_very_bytes_of_the_store(dtype):
    store = store_of(dtype)
    with store.lend() as tree:
        for path, leaf in tree.items():
            assert leaf.dtype == dtype
            assert leaf.unsafe_buffer_pointer() == store[path].__array_interface__["data"][0]
            assert jnp.array_equal(leaf, store[path])


def test_writes_through_the_store_raise_while_it_is_lent_and_work_again_afterwards():
    store = store_of(np.float32)
    before = store.buffer.tobytes()
    view, flat, buffer, tree = store["w0"], store.flat, store.buffer, store.tree
    with store.lend():
        with pytest.raises(fs.LentError, match=r"expected a buffer that nobody reads, got one that is lent.*'w0'.*fix"):
            store["w0"] = np.zeros((64, 64), np.float32)
        with pytest.raises(fs.LentError):
            store.assign(store.to_vector())
        for cached in (view, flat, buffer, tree["w2"], store["w1"]):
            assert not cached.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                cached[...] = 0
        assert store.buffer.tobytes() == before
    for cached in (view, flat, buffer, tree["w2"], store["w1"]):
        cached[...] = 0
    assert not store.buffer.any()


def test_a_view_first_asked_for_during_a_lend_is_read_only_until_it_ends():
    store = store_of(np.float32)
    with store.lend():
        view = store["w1"]
        assert not view.flags.writeable
    assert view.flags.writeable


def test_two_stores_over_one_buffer_know_of_each_others_lends():
    layout = fs.Layout.from_tree({"w": np.zeros(64, np.float32)})
    memory = fs.Store.zeros(layout).buffer
    a, b = fs.Store.wrap(memory, layout), fs.Store.wrap(memory, layout)
    view = b["w"]
    with a.lend():
        assert not view.flags.writeable
        with pytest.raises(fs.LentError):
            b["w"] = np.ones(64, np.float32)
    b["w"] = np.ones(64, np.float32)
    assert (a["w"] == 1).all()


def test_stores_over_parts_of_a_buffer_that_do_not_overlap_do_not_disturb_each_other():
    layout = fs.Layout.from_tree({"w": np.zeros(64, np.float32)})
    memory = fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(192, np.float32)})).buffer
    a, b, both = fs.Store.wrap(memory, layout), fs.Store.wrap(memory[256:], layout), fs.Store.wrap(memory[128:], layout)
    with a.lend():
        b["w"] = np.ones(64, np.float32)
        with pytest.raises(fs.LentError):
            both["w"] = np.ones(64, np.float32)


def test_lends_nest_and_the_buffer_is_free_only_after_the_last():
    store = store_of(np.float32)
    with store.lend() as one:
        with store.lend() as two:
            assert jnp.array_equal(one["w0"], two["w0"])
        assert not store["w0"].flags.writeable
        with pytest.raises(fs.LentError):
            store["w0"] = store["w1"]
    store["w0"] = np.zeros((64, 64), np.float32)


def test_several_threads_read_at_once():
    store = store_of(np.float32)
    expected = float(store["w0"].sum())
    together = threading.Barrier(6)
    seen = []

    def read():
        for _ in range(20):
            together.wait(timeout=60)
            with store.lend() as tree:
                seen.append(float(tree["w0"].sum()))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 120
    store["w0"] = np.zeros((64, 64), np.float32)


def test_readers_and_a_writer_in_different_threads_never_see_half_a_write():
    store = fs.Store.zeros(fs.Layout.from_tree({"w": np.zeros(1 << 20, np.float32)}))
    stop, torn, refused, written = threading.Event(), [], [], []

    def read():
        while not stop.is_set():
            try:
                with store.lend() as tree:
                    low, high = float(tree["w"].min()), float(tree["w"].max())
                    if low != high:
                        torn.append((low, high))
            except fs.LentError:
                refused.append("reader")
            time.sleep(0.002)  # leave the writer a chance

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    values = [np.full(1 << 20, i, np.float32) for i in range(4)]
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline or not written and time.monotonic() < deadline + 60:
        try:
            store["w"] = values[len(written) % 4]
            written.append(1)
        except fs.LentError:
            refused.append("writer")
            time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert written
    assert not torn


def test_a_lend_cannot_begin_in_the_middle_of_a_write():
    store = store_of(np.float32)

    def leaves():
        yield "w0", np.zeros((64, 64), np.float32)
        with store.lend():
            pass

    with pytest.raises(fs.LentError, match="being written") as caught:
        store.assign(leaves())
    assert "written before this error: 'w0'" in caught.value.__notes__[0]
    store["w0"] = np.ones((64, 64), np.float32)


def struck(handler, work, enough=lambda: True, seconds=1.0):
    """Call `work` again and again, while a handler is called once in each, now early and now late.

    For some seconds, and until it is enough, which may take a minute on a busy machine.
    """
    before = signal.signal(signal.SIGALRM, handler)
    try:
        end, i = time.monotonic() + seconds, 0
        while time.monotonic() < end or not enough() and time.monotonic() < end + 60:
            signal.setitimer(signal.ITIMER_REAL, 2e-5 + 1e-5 * (i % 40))
            i += 1
            work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_handler_does_not_write_what_the_code_that_it_interrupts_reads():
    store = fs.Store.from_tree({f"leaf{i}": np.zeros(50, np.float32) for i in range(40)})
    seen, values = {"written": 0, "refused": 0}, [np.full(2000, k, np.float32) for k in (0, 1)]

    def handler(number, frame):
        try:
            store.assign(values[seen["written"] % 2])
            seen["written"] += 1
        except fs.LentError:
            seen["refused"] += 1

    def work():
        assert len(np.unique(store.to_vector())) == 1

    struck(handler, work, lambda: all(seen.values()))
    assert seen["written"]
    assert seen["refused"]


def test_a_lend_that_a_handler_begins_is_not_forgotten():
    store, lends = store_of(np.float32), []

    def handler(number, frame):
        if not lends:  # a second signal may interrupt this very handler: each keeps a lend of its own
            lend = store.lend()
            lend.__enter__()
            lends.append(lend)

    def work():
        store.to_vector()
        if lends:
            with pytest.raises(fs.LentError):
                store["w0"] = np.ones((64, 64), np.float32)
            lends.pop().__exit__(None, None, None)

    struck(handler, work)


def test_a_verb_in_a_handler_gets_its_own_error_and_not_that_of_the_verb_that_it_interrupts():
    good, bad = (fs.Store.from_tree({"w": np.full(300, x, np.float32)}) for x in (0, 0.1))
    noise, failed = fs.Rademacher(0.5), []

    def handler(number, frame):
        try:
            fs.es.perturb(good, noise, 1)
            fs.es.perturb(good, noise, 1, sign=-1)
        except ValueError as error:
            failed.append(error)

    def work():
        with pytest.raises(ValueError, match="on the grid"):
            fs.es.perturb(bad, noise, 1)

    struck(handler, work)
    assert not failed
    assert not good["w"].any()
