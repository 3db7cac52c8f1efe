"""Spans: ranges of addresses that others own, used as one memory. What lies between them is never touched."""

import gc
import threading
import weakref

import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.memory import Spans, memories_of
from tests.example_trees import says

F4 = np.float32
NOISE = fs.Normal(0.02)
SIZES = [16, 48, 5, 1, 0, 333]


def spread(dtypes=(F4,), sizes=SIZES):
    """One array with a page of others' numbers around each part, and the parts."""
    whole = np.full(2 * 4096 * (len(sizes) + 1), 0xA5, np.uint8)
    at = -whole.ctypes.data % 64
    parts = []
    for i, size in enumerate(sizes):
        dtype = np.dtype(dtypes[i % len(dtypes)])
        at += 4096
        parts.append(whole[at : at + size * dtype.itemsize].view(dtype))
        at += -(-size * dtype.itemsize // 64) * 64
    return whole, parts


def over(parts, moved=list):
    """A store over arrays where they are, and the store of their values in a buffer of its own."""
    tree = {f"{i:02}": part for i, part in enumerate(parts)}
    layout = fs.Layout.from_tree(tree)
    memory = Spans([part.view(np.uint8) for part in parts], moved)
    starts = {path: part.ctypes.data - memory.start if part.size else 0 for path, part in tree.items()}
    return fs.Store.in_place(memory, layout, starts)


@pytest.mark.parametrize("dtypes", [(F4,), ("f8", F4, "bfloat16", "f2", "i4")])
def test_verbs_write_the_parts_and_not_a_byte_between_them(dtypes):
    whole, parts = spread(dtypes)
    for i, part in enumerate(parts):
        part[...] = np.linspace(-1, 1, part.size) if part.dtype != np.int32 else i
    store = over(parts)
    between = np.ones(whole.size, bool)
    for part in parts:
        if part.size:
            at = part.ctypes.data - whole.ctypes.data
            between[at : at + part.nbytes] = False
    plain = store.copy()
    for x in (store, plain):
        es.snap(x, NOISE)
        es.update(x, NOISE, fs.seeds(1, 3), [0.5, -0.25, 0.125])
        log = es.perturb(x, NOISE, 7)
        es.perturb(x, NOISE, 7, sign=-1, undo=log)
        es.Adam(x).step(x.copy(), 0.01)
        x["00"] = np.ones(SIZES[0])
        x.assign(x.copy())
    assert all(store[path].tobytes() == plain[path].tobytes() for path in plain)
    assert all(store[f"{i:02}"].ctypes.data == part.ctypes.data for i, part in enumerate(parts) if part.size)
    assert (whole[between] == 0xA5).all() and between.sum() > 4096


def test_ranges_next_to_each_other_are_one_part_and_others_are_their_own():
    whole = np.zeros(100, F4)
    bytes_of = [whole[a:b].view(np.uint8) for a, b in ((0, 10), (10, 30), (40, 41), (99, 100), (50, 50))]
    memory = Spans(bytes_of[::-1], list)
    first = whole.ctypes.data
    found = [((part.start - first) // 4, (part.stop - first) // 4) for part in memory.parts]
    assert found == [(0, 30), (40, 41), (99, 100)]
    assert [part.start for part in memory.parts_at(first + 119, first + 161)] == [first, first + 160]
    assert memory.parts_at(first + 120, first + 160) == ()
    assert memory.may_show(whole[29:35]) and not memory.may_show(whole[30:40]) and not memory.may_show(whole[5:5])


def test_a_store_between_the_parts_is_lent_and_written_as_if_they_were_not_there():
    whole, parts = spread()
    gap = whole[parts[0].ctypes.data - whole.ctypes.data + 1024 :][:64].view(F4)
    store, other = over(parts), fs.Store.wrap(gap, fs.Layout.from_tree({"w": np.zeros(16, F4)}))
    assert not store.memory.overlaps(other.memory) and memories_of([gap]) == [other.memory]
    with store.lend():
        other["w"] = np.ones(16)
        assert other["w"].flags.writeable and not store["00"].flags.writeable
    with other.lend():
        store["00"] = np.ones(16)
        assert store["00"].flags.writeable and store.tree["01"].flags.writeable
    store.assign(np.zeros(sum(SIZES)))
    members = fs.Population.zeros(store.layout, 4)
    assert [move.number for move in es.evolve(store, ranked, seed=0, noise=NOISE, members=members, **RUN)] == [0]


RUN = {"rate": 1.0, "generations": 1}


def ranked(stacked, generation):
    return np.array(stacked["00"]).sum(1)


@pytest.mark.parametrize("path", ["00", "02", "05"])
def test_a_part_that_another_store_lends_or_writes_is_not_written_by_this_one(path):
    _, parts = spread()
    store, twin = over(parts), over(parts[int(path) :][:1])
    assert store.memory.overlaps(twin.memory) and twin.memory.overlaps(store.memory)
    views = {name: store[name] for name in store}
    with twin.lend() as lent:
        assert lent["00"].unsafe_buffer_pointer() == store[path].ctypes.data
        for write in (lambda: es.perturb(store, NOISE, 1), lambda: store.__setitem__("01", np.ones(48))):
            with pytest.raises(fs.LentError, match="nobody reads"):
                write()
        assert [name for name, view in views.items() if not view.flags.writeable] == [path]
        assert [name for name, view in store.tree.items() if not view.flags.writeable] == [path]
        assert store.to_vector().size == sum(SIZES)
    assert all(view.flags.writeable for view in views.values())
    es.snap(store, NOISE)


def test_a_lend_of_it_ends_when_nobody_holds_any_leaf():
    _, parts = spread()
    store = over(parts)
    with pytest.raises(fs.LentError, match="'05'"):
        with store.lend(patience=0.05) as params:
            kept = np.asarray(params["05"])
    with pytest.raises(fs.LentError, match="of '05'"):
        store["00"] = np.ones(16)
    del kept, params
    store["00"] = np.ones(16)
    assert store["05"].flags.writeable


def test_a_writer_in_another_thread_is_in_the_way_of_readers_of_any_part():
    _, parts = spread()
    store, twin = over(parts), over(parts[5:])
    inside, done = threading.Event(), threading.Event()

    def each():
        inside.set()
        assert done.wait(10)
        yield "00", np.ones(333)

    thread = threading.Thread(target=lambda: twin.assign(each()))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(fs.LentError, match="being written"):
        store.to_vector()
    with pytest.raises(fs.LentError, match="another thread writes"):
        es.snap(store, NOISE)
    done.set()
    thread.join()
    assert (store["05"] == 1).all() and store.to_vector().sum() != 0


def test_values_that_lie_in_it_are_copied_before_they_are_written_and_others_are_not():
    _, parts = spread(sizes=[8, 8])
    store = over(parts)
    store.assign({"00": np.arange(8), "01": np.arange(8) + 10})
    store.assign({"00": store["01"], "01": store["00"]})
    assert store["00"].tolist() == [*range(10, 18)] and store["01"].tolist() == [*range(8)]


def test_the_owners_live_as_long_as_a_view_of_the_store():
    class Owner(np.ndarray):
        pass

    array = np.ones(16, F4).view(Owner)
    alive = weakref.ref(array)
    store = over([array])
    view = store["00"]
    del array, store
    gc.collect()
    assert alive() is not None and view.sum() == 16
    del view
    gc.collect()
    assert alive() is None


def test_memory_that_has_moved_is_refused_by_every_verb_and_named():
    _, parts = spread()
    gone = []
    store = over(parts, lambda: gone)
    store.verify()
    gone.append(fs.trees.Difference("02", "address 0x10", "address 0x20", "bring it back"))
    before = [part.tobytes() for part in parts]
    verbs = {
        "verify": store.verify,
        "snap": lambda: es.snap(store, NOISE),
        "perturb": lambda: es.perturb(store, NOISE, 1),
        "update": lambda: es.update(store, NOISE, [1], [1.0]),
        "sample": lambda: es.sample(store.copy(), store, NOISE, [1]),
        "assign": lambda: store.assign(np.zeros(sum(SIZES))),
        "set": lambda: store.__setitem__("00", np.ones(16)),
        "lend": lambda: store.lend().__enter__(),
        "to_vector": store.to_vector,
        "copy": store.copy,
        "step": lambda: es.Momentum(store).step(fs.Store.zeros(store.layout), 0.1),
    }
    for verb in verbs.values():
        with pytest.raises(fs.StructureError, match="1 leaf elsewhere than where the store was made") as error:
            verb()
        says(error, "'02': expected address 0x10, got address 0x20; fix: bring it back")
    assert [part.tobytes() for part in parts] == before
    gone.clear()
    es.snap(store, NOISE)
    with pytest.raises(fs.StructureError, match="elsewhere") as error:
        with es.perturbed(store, NOISE, 7):
            gone.append(fs.trees.Difference("02", "address 0x10", "address 0x20", "bring it back"))
    assert "the store is still perturbed; fix: mend that, then es.perturb(store, noise, 7, sign=-1)" in str(
        error.value.__notes__
    )


def test_without_a_buffer_there_is_no_flat_vector_and_the_error_says_what_there_is():
    _, parts = spread()
    store = over(parts)
    for read in (lambda: store.flat, lambda: store.flats, lambda: dict(store.modules())[""].flat):
        with pytest.raises(ValueError, match="leaves in one buffer") as error:
            read()
        says(error, "store.to_vector()", "adopt(module)")
    with pytest.raises(ValueError, match="leaves in one buffer") as error:
        _ = store.buffer
    says(error, "store.copy().buffer")
    assert store.copy().flat.size and str(hex(parts[0].ctypes.data)) in repr(store)
    with store.lend():
        assert "where others keep it (lent)" in repr(store)
