"""Lends: how they begin and end, what they give, and what they fence."""

import gc
import threading

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import lending


def store_of(dtype, leaves=3):
    return fs.Store.from_tree({f"w{i}": (np.arange(64 * 64) % 7).reshape(64, 64).astype(dtype) for i in range(leaves)})


def test_a_lend_is_entered_once():
    store = store_of(np.float32)
    lend = store.lend()
    with lend:
        pass
    with pytest.raises(RuntimeError, match="fix: call lend"), lend:
        pass


def test_an_exception_of_the_body_comes_out_and_the_store_is_free_again():
    store = store_of(np.float32)
    with pytest.raises(ZeroDivisionError), store.lend() as tree:
        print(1 / 0, tree)
    store["w0"] = np.zeros((64, 64), np.float32)


def test_a_lend_that_is_struck_as_it_begins_lends_nothing_though_the_exception_is_kept(monkeypatch):
    class Struck(dict):
        def values(self):
            raise TimeoutError

    real = lending.import_views
    monkeypatch.setattr(
        lending, "import_views", lambda *given: (lambda views, arrays: (views, Struck(arrays)))(*real(*given))
    )
    store = fs.Store.from_tree({"w": np.zeros(16, "f4")})
    with pytest.raises(TimeoutError) as kept, store.lend():
        pass
    store["w"] = np.ones(16, "f4")
    assert store["w"].flags.writeable
    del kept


def test_a_lend_of_a_chunk_fences_the_whole_population():
    pop = fs.Population.from_tree({"w": np.ones(16, np.float32)}, 8)
    chunk = next(pop.chunks(4))
    with chunk.lend() as stacked:
        assert stacked["w"].shape == (4, 16)
        with pytest.raises(fs.LentError):
            pop[7]["w"] = np.zeros(16, np.float32)
        with pytest.raises(fs.LentError):
            pop["w"] = np.zeros((8, 16), np.float32)
    pop["w"] = np.zeros((8, 16), np.float32)


def test_the_tree_keeps_its_nodes_ties_and_riders():
    shared = np.ones((4, 4), np.float32)
    store = fs.Store.from_tree([{"a": shared, "name": "relu"}, (shared, None, 3)])
    with store.lend() as tree:
        assert tree[0]["name"] == "relu"
        assert tree[1][1] is None
        assert tree[0]["a"] is tree[1][0]
        assert tree[1][2] == 3


def test_only_lends_the_leaves_that_match():
    store = fs.Store.from_tree({"w": np.ones(4, np.float32), "count": np.int64(3)})
    with store.lend(only="w") as tree:
        assert tree["count"] is None
        assert tree["w"].shape == (4,)


def test_views_of_an_alias_show_later_writes_and_are_the_same_each_time():
    store = store_of(np.float32)
    alias = store.alias()
    assert store.alias() is alias
    store["w0"] = np.full((64, 64), 7, np.float32)
    assert (alias["w0"] == 7).all()
    alias["w1"].delete()
    assert store.alias() is not alias


def test_lent_leaves_of_size_zero_and_without_axes():
    store = fs.Store.from_tree({"none": np.zeros((0, 3), np.float32), "one": np.float32(2)})
    with store.lend() as tree:
        assert tree["none"].shape == (0, 3)
        assert tree["one"].shape == ()
        assert float(tree["one"]) == 2


def test_the_memory_outlives_the_store_while_it_is_aliased():
    alias = store_of(np.float32).alias()
    gc.collect()
    assert float(alias["w0"][0, 1]) == 1


def test_a_view_is_fenced_also_when_the_member_it_came_from_is_gone():
    pop = fs.Population.from_tree({"w": np.ones(16, np.float32)}, 32)
    before = pop[1]["w"]
    with pop.lend():
        during = pop[2]["w"]
        assert not before.flags.writeable
        assert not during.flags.writeable
    assert before.flags.writeable
    assert during.flags.writeable


def test_a_view_that_was_made_read_only_by_hand_stays_so_after_a_lend():
    store = store_of(np.float32)
    store["w0"].flags.writeable = False
    with store.lend():
        pass
    assert not store["w0"].flags.writeable
    assert store["w1"].flags.writeable


def test_a_lend_that_is_abandoned_does_not_stand_in_the_way_of_anybody():
    store = store_of(np.float32)
    lend = store.lend()
    tree = lend.__enter__()
    del lend
    with pytest.raises(fs.LentError):
        store["w0"] = np.zeros((64, 64), np.float32)
    del tree
    gc.collect()
    store["w0"] = np.zeros((64, 64), np.float32)
    lend = store.lend()
    lend.__enter__()
    del lend, store
    gc.collect()
    for _ in range(50):
        store_of(np.float32)


def test_a_store_of_no_bytes_is_lent_too():
    with fs.Store.from_tree({"w": np.zeros((0, 3), np.float32)}).lend() as tree:
        assert tree["w"].shape == (0, 3)


def test_a_slice_that_does_not_start_where_jax_can_take_it_has_no_chunks():
    pop = fs.Population.from_tree({"w": np.ones(3, np.float32)}, 64)
    assert [chunk.size for chunk in pop[16:].chunks(20)] == [16, 16, 16]
    with pytest.raises(
        ValueError, match="expected a population that starts at a multiple of 16 members, got a slice from 3"
    ):
        next(pop[3:40].chunks(16))
    with pytest.raises(ValueError, match="expected at_most >= 16, .* got 5; fix"):
        next(pop.chunks(5))


@pytest.mark.parametrize("patience", ["5", float("nan"), -1])
def test_patience_is_checked_before_anything_is_lent(patience):
    store = store_of(np.float32)
    with pytest.raises(ValueError, match="expected patience >= 0 in seconds, got .*; fix"):
        store.lend(patience=patience)
    store["w0"] = np.zeros((64, 64), np.float32)


def test_an_owner_who_takes_write_permission_away_meanwhile_does_not_hide_the_body_s_exception():
    owner = np.zeros(256 + 64, np.uint8)
    owner = owner[-owner.ctypes.data % 64 :][:256]
    store = fs.Store.wrap(owner, fs.Layout.from_tree({"w": np.zeros(64, np.float32)}))
    view = store["w"]
    with pytest.raises(KeyError, match="mine"), store.lend():
        owner.base.flags.writeable = False
        owner.flags.writeable = False
        raise KeyError("mine")
    assert view.shape == (64,)


def test_a_second_writer_in_another_thread_is_refused_and_a_nested_one_is_not():
    store = store_of(np.float32)
    inside, go_on, caught = threading.Event(), threading.Event(), []

    def leaves():
        store["w2"] = np.ones((64, 64), np.float32)
        yield "w0", np.ones((64, 64), np.float32)
        inside.set()
        go_on.wait(30)

    writer = threading.Thread(target=lambda: store.assign(leaves()))
    writer.start()
    inside.wait(30)
    try:
        store["w1"] = np.zeros((64, 64), np.float32)
    except fs.LentError as error:
        caught.append(str(error))
    go_on.set()
    writer.join()
    assert "got one that another thread writes; fix" in caught[0]
    assert (store["w2"] == 1).all()
    store["w1"] = np.zeros((64, 64), np.float32)


def test_a_store_can_be_shown_while_other_threads_lend():
    stores, stop, failed = [store_of(np.float32, 1) for _ in range(3)], threading.Event(), []

    def lend(store):
        while not stop.is_set():
            with store.lend():
                pass

    threads = [threading.Thread(target=lend, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for _ in range(3000):
        try:
            repr(stores[0])
        except RuntimeError as error:
            failed.append(error)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed


def test_wrapping_the_buffer_of_a_lent_store_says_that_it_is_lent():
    store = store_of(np.float32)
    with store.lend(), pytest.raises(fs.LentError, match="got one that is lent; fix: wrap it after the lend"):
        fs.Store.wrap(store.buffer, store.layout)


def test_an_exit_that_is_asked_for_before_the_lend_and_not_called_ends_it_as_it_is_dropped():
    store = store_of(np.float32)
    lend = store.lend()
    leave = lend.__exit__
    del leave  # nothing has begun
    leave = lend.__exit__
    tree = lend.__enter__()
    assert not store["w0"].flags.writeable
    del leave
    assert store["w0"].flags.writeable
    assert tree["w0"].is_deleted()


def test_a_view_that_is_kept_is_an_error_in_an_except_clause_too():
    store = store_of(np.float32)
    try:
        raise KeyError("outer")
    except KeyError as outer:
        with pytest.raises(fs.LentError, match="expected all lent leaves back"), store.lend(patience=0) as tree:
            kept = np.asarray(tree["w0"])
        assert not hasattr(outer, "__notes__")
    assert kept.shape == (64, 64)
