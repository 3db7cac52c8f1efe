"""What rounding loses of 16-bit leaves on a device: kept in arrays of a size that is known before."""

import jax
import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.es.on_device import logged_leaves, undo_log
from flatstore.es.on_device.tiles import TILE, found, spread
from flatstore.store import OnJax
from tests.example_trees import says

DEVICE = jax.devices()[0]
NOISE = fs.Normal(0.01)
DTYPES = ["bfloat16", np.float16]


def a_tree(dtype):
    """Leaves that lose little, much, or all of a tile; of several tiles, of one parameter, of none; one on the grid."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=TILE) * 10.0 ** rng.uniform(-6, 1, TILE), np.zeros(TILE), rng.normal(size=TILE + 6) * 0.02
    leaves = {"long": np.concatenate(parts).reshape(-1, 2), "one": np.ones(()), "empty": np.zeros((0, 2))}
    return {path: x.astype(dtype) for path, x in leaves.items()} | {"on_grid": rng.normal(size=33).astype("f4")}


def both(dtype):
    host, store = fs.Store.from_tree(a_tree(dtype)), fs.Store.from_tree(a_tree(dtype), device=DEVICE)
    for x in (host, store):
        es.snap(x, NOISE)
    return host, store


def bits(x):
    return {path: np.array(x[path]).tobytes() for path in x.layout.by_path}


@pytest.mark.parametrize("dtype", DTYPES)
def test_leaves_have_the_bits_of_the_host_on_both_sides_and_are_given_back(dtype):
    host, store = both(dtype)
    before, places = bits(host), {path: x.unsafe_buffer_pointer() for path, x in store.items() if x.size}
    logs = [es.perturb(x, NOISE, 7) for x in (host, store)]
    assert bits(store) == bits(host) != before
    logs = [es.perturb(x, NOISE, 7, sign=-2, undo=log) for x, log in zip((host, store), logs, strict=True)]
    assert bits(store) == bits(host) and repr(logs[1]).startswith("UndoLog(seed 7, at -1, ")
    for x, log in zip((host, store), logs, strict=True):
        assert es.perturb(x, NOISE, 7, sign=1, undo=log) is None and log.at == 0
    assert bits(store) == bits(host) == before
    assert {path: x.unsafe_buffer_pointer() for path, x in store.items() if x.size} == places


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_are_taken_back_and_begin_at_a_side(dtype):
    host, store = both(dtype)
    before, seeds, weights = bits(host), fs.seeds(1, 3), [0.5, -0.25, 1e-9]
    logs = [es.update(x, NOISE, seeds, weights, keep=True) for x in (host, store)]
    assert bits(store) == bits(host) != before
    for x, log in zip((host, store), logs, strict=True):
        es.update(x, NOISE, seeds, weights, sign=-1, undo=log)
    assert bits(store) == bits(host) == before
    for x in (host, store):
        es.update(x, NOISE, [7], [0.25], perturbed=-1, undo=es.perturb(x, NOISE, 7, sign=-1))
    assert bits(store) == bits(host) != before


def test_a_log_is_a_few_per_cent_of_the_bytes_of_usual_weights():
    weights = (np.random.default_rng(0).normal(size=1 << 17) * 0.02).astype("bfloat16")
    for shift, share in ((0, 0.12), (1, 0.02)):
        store = fs.Store.from_tree({"w": weights + np.array(shift, "bfloat16")}, device=DEVICE)
        assert es.perturb(store, fs.Normal(1e-3), 7).nbytes < share * weights.nbytes


def test_what_does_not_fit_a_log_is_refused_and_nothing_moves():
    host, store = both("bfloat16")
    log = es.perturb(store, NOISE, 7)
    store["long"] = np.array(store["long"]) + np.array(1, "bfloat16")
    before = bits(store)
    for call, words in (
        (lambda: es.perturb(store, NOISE, 8, sign=-1, undo=log), "expected the seed of the undo log, 7"),
        (lambda: es.perturb(store, NOISE, 7, sign=1, undo=log), "expected sign -1"),
        (lambda: es.perturb(store, NOISE, 7, sign=-1, undo=log), "'long': expected parameters as the undo log left"),
        (
            lambda: es.update(store, NOISE, [7], [1.0], perturbed=1, undo=log),
            "'long': expected parameters as the undo",
        ),
        (lambda: es.update(store, NOISE, [7], [1.0], perturbed=1), "expected the undo log of bfloat16"),
        (lambda: es.update(store, NOISE, [7], [1.0], sign=-1), "to take an update back, got none"),
        (lambda: es.perturb(host, NOISE, 7, sign=-1, undo=log), "a store of this kind"),
    ):
        with pytest.raises(ValueError, match="expected") as error:
            call()
        says(error, words)
    assert bits(store) == before and log.at == 1


def test_leaves_that_would_not_stay_finite_are_left_as_they_were():
    store = fs.Store.from_tree({"w": np.full(99, 65_504, "f2"), "x": np.zeros(3, "f2")}, device=DEVICE)
    noise = fs.Normal({"w": 200.0, "x": 1.0}, bound=2.0**16)
    log = es.perturb(store, fs.Normal({"w": 0, "x": 1.0}), 7)
    before = bits(store)
    with pytest.raises(ValueError, match="'w': expected parameters that stay finite in float16") as error:
        es.perturb(store, noise, 7)
    says(error, "after the move; fix: pass a noise of a smaller scale")
    assert bits(store) == before and log.at == 1
    store["w"] = np.r_[[1, 2, np.nan], np.zeros(96)]
    with pytest.raises(ValueError, match="'w': expected finite parameters, got nan at 2 of 99"):
        es.perturb(store, noise, 7)


def test_what_is_refused_across_the_centre_is_still_at_its_side():
    store = fs.Store.from_tree({"w": np.full(1, 65_472, "f2")}, device=DEVICE)
    noise = fs.Rademacher(48.0, bound=2.0**16)  # to infinity on one side
    try:
        side, log = 1, es.perturb(store, noise, 1)
    except ValueError:
        side, log = -1, es.perturb(store, noise, 1, sign=-1)
    beside = bits(store)
    with pytest.raises(ValueError, match="stay finite"):
        es.perturb(store, noise, 1, sign=-2 * side, undo=log)
    assert bits(store) == beside
    es.perturb(store, noise, 1, sign=-side, undo=log)
    assert np.array(store["w"]).tolist() == [65_472]


def test_a_lack_of_memory_half_way_leaves_everything_as_it_was(monkeypatch):
    _, store = both("bfloat16")
    moved, calls = logged_leaves.moved, []

    def short(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("no room")
        return moved(*arguments)

    monkeypatch.setattr(logged_leaves, "moved", short)
    before = bits(store)
    for move in (
        lambda: es.perturb(store, NOISE, 7),
        lambda: es.update(store, NOISE, [1, 2, 3], [0.5, 0.25, 1.0], keep=True),
    ):
        calls.clear()
        with pytest.raises(MemoryError, match="no room"):
            move()
        assert len(calls) == 2 and bits(store) == before


SEEDS, WEIGHTS = [7, 2, 3], [0.5, 0.25, 1.0]
FROM_THE_SIDE = {
    "back": lambda x, log: es.perturb(x, NOISE, 7, sign=-1, undo=log),
    "across": lambda x, log: es.perturb(x, NOISE, 7, sign=-2, undo=log),
    "update": lambda x, log: es.update(x, NOISE, SEEDS, WEIGHTS, perturbed=1, undo=log),
}


def refuses_at(n, monkeypatch, only=True):
    """Have the n-th replacement of leaves fail for a lack of memory, `only` that or those after it, too.

    It fails before anything is donated to it.
    """
    replace, calls = OnJax.replace, []

    def short(self, *arguments):
        calls.append(arguments)
        if len(calls) == n or (len(calls) > n and not only):
            raise MemoryError("no room")
        return replace(self, *arguments)

    monkeypatch.setattr(OnJax, "replace", short)


@pytest.mark.parametrize("verb", FROM_THE_SIDE)
def test_a_lack_of_memory_at_any_step_leaves_the_store_at_its_side_and_its_log_good(verb, monkeypatch):
    _, store = both("bfloat16")
    centre = bits(store)
    log = es.perturb(store, NOISE, 7)
    beside, n = bits(store), 0
    while True:
        n += 1
        with monkeypatch.context() as patch:
            refuses_at(n, patch)
            try:
                FROM_THE_SIDE[verb](store, log)
                break
            except MemoryError:
                pass
        assert bits(store) == beside and log.at == 1, n
        es.perturb(store, NOISE, 7, sign=-1, undo=log)
        assert bits(store) == centre, n
        log = es.perturb(store, NOISE, 7)
    assert n > 3 and bits(store) != beside


@pytest.mark.parametrize("verb", FROM_THE_SIDE)
def test_a_lack_of_memory_that_goes_on_leaves_the_store_as_it_was_or_says_that_it_is_not(verb, monkeypatch):
    n, told = 0, []
    while True:
        _, store = both("bfloat16")
        log = es.perturb(store, NOISE, 7)
        beside, n = bits(store), n + 1
        with monkeypatch.context() as patch:
            refuses_at(n, patch, only=False)
            try:
                FROM_THE_SIDE[verb](store, log)
                break
            except MemoryError as error:
                notes = getattr(error, "__notes__", [])
                assert not hasattr(error, "undo") and len(notes) <= 1
                told.append(any("could not all be taken back" in note for note in notes))
        assert told[-1] == (bits(store) != beside)
    assert set(told) == {True, False}


def test_a_lack_of_memory_as_an_update_is_taken_back_leaves_it_there_and_its_log_good(monkeypatch):
    _, store = both("bfloat16")
    centre = bits(store)
    log = es.update(store, NOISE, SEEDS, WEIGHTS, keep=True)
    there = bits(store)
    for n in range(1, 4):
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            refuses_at(n, patch)
            es.update(store, NOISE, SEEDS, WEIGHTS, sign=-1, undo=log)
        assert bits(store) == there
    es.update(store, NOISE, SEEDS, WEIGHTS, sign=-1, undo=log)
    assert bits(store) == centre


def test_places_are_found_in_tiles_and_values_are_put_there():
    rng = np.random.default_rng(0)
    lost = rng.random((3, TILE)) < [[0.0], [0.01], [0.3]]
    words = np.packbits(lost, axis=1, bitorder="little").view("<u4")
    room = 40
    places = np.asarray(found(words, room))
    for row, place in zip(lost, places, strict=True):
        there = np.flatnonzero(row)[:room]
        assert place.tolist() == [*there, *[TILE] * (room - len(there))]
    values = rng.integers(1, 1 << 16, places.shape).astype("u2")
    where, put = (np.asarray(x) for x in spread(places, values, 3 * TILE - 5))
    expected = np.zeros((3, TILE + 1), "u2")
    np.put_along_axis(expected, places, values, 1)
    assert np.where(where, put, 0).tolist() == expected[:, :TILE].reshape(-1)[:-5].tolist()


def test_temporaries_are_those_of_a_log_and_the_leaf_is_written_in_its_place():
    size = 1 << 20
    kind, change = undo_log.Kind(NOISE, 0.01, "bfloat16"), undo_log.Seeded(np.zeros(2, "u4"), np.float32(1))
    leaf, index = jax.ShapeDtypeStruct((size,), "bfloat16"), np.zeros(2, "u4")

    def taken(function, *arguments):
        memory = function.lower(leaf, index, change, *arguments).compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.alias_size_in_bytes

    assert taken(undo_log._surveying(kind))[0] < size // 100
    near, far, whole = np.zeros((512, 64), "u2"), np.zeros((512, 4), "u4"), np.zeros((1, TILE), "u2")
    temporaries, aliased = taken(undo_log._moving(kind, undo_log.Room(64, 4, 1)), np.zeros(1, "i4"))
    assert temporaries < 2 * size == aliased
    log = undo_log.LeafLog(near, far, whole, np.zeros(1, "i4"), np.zeros(2, "u4"))
    temporaries, aliased = taken(undo_log._restoring(kind), log)
    assert temporaries < 2 * size == aliased
