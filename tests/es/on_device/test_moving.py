"""The verbs of `es` on a store that JAX keeps on a device: the bits of the host, in the place of the leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es
from flatstore.es.on_device import donating, looking
from tests.example_trees import says

DEVICE = jax.devices()[0]
NOISE, SIGNS = fs.Normal(0.02), fs.Rademacher(0.5)
NOISES = [fs.Rademacher(0.1), fs.Normal({"*bias": 0, "*": 0.02}, bound=16)]


def a_tree(dtype=np.float32):
    rng = np.random.default_rng(0)
    tied = rng.uniform(-1, 1, (5, 3)).astype(dtype)
    shapes = {"bias": (7,), "kernel": (31, 23), "empty": (0, 3), "scalar": (), "long": (9_001,)}
    leaves = {path: rng.uniform(-1, 1, shape).astype(dtype) for path, shape in shapes.items()}
    return {"a": leaves, "frozen": np.arange(9, dtype="i4"), "one": tied, "other": tied}


def both(dtype=np.float32, noise=NOISE):
    host, store = fs.Store.from_tree(a_tree(dtype)), fs.Store.from_tree(a_tree(dtype), device=DEVICE)
    for x in (host, store):
        es.snap(x, noise)
    return host, store


def same(store, host):
    return all(
        np.array(store[path]).tobytes() == np.array(host.leaf_view(path)).tobytes() for path in host.layout.by_path
    )


def kept(store):
    return {path: np.array(x) for path, x in store.items()}


def addresses(store):
    return {path: x.unsafe_buffer_pointer() for path, x in store.items() if x.size}


def there_and_across_and_back(x, noise):
    es.perturb(x, noise, 7)
    es.perturb(x, noise, 7, sign=-2)
    es.perturb(x, noise, 7)


def several(x, noise):
    es.perturb(x, noise, 7)
    es.perturb(x, noise, (1, 2), sign=-1)


def updates(x, noise):
    es.update(x, noise, fs.seeds(1, 5), [0.5, -0.25, 1e-9, 0.3, 2.0])
    es.update(x, noise, fs.seeds(2, 2), [1.0, -0.5])
    es.update(x, noise, fs.seeds(2, 2), [1.0, -0.5], sign=-1)


def update_from_the_side(x, noise):
    es.perturb(x, noise, 7, sign=-1)
    es.update(x, noise, [7], [0.25], perturbed=-1)


def inside_a_context(x, noise):
    with es.perturbed(x, noise, 8), es.perturbed(x, noise, 9, sign=-1):
        es.update(x, noise, [3], [1.0])


def replay(x, noise):
    es.replay(x, noise, [(fs.seeds(i, 4), np.linspace(-1, 1, 4)) for i in range(3)])


def rounded_sums(x, noise):
    es.perturb(x, noise, 7, exact=False)
    es.update(x, noise, fs.seeds(1, 3), [0.1, 0.2, 0.3], exact=False)


VERBS = [there_and_across_and_back, several, updates, update_from_the_side, inside_a_context, replay, rounded_sums]


@pytest.mark.parametrize("noise", NOISES, ids=["signs", "some"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_has_the_bits_of_the_host_and_the_leaves_keep_their_places(verb, noise):
    host, store = both(noise=noise)
    assert same(store, host)
    places, before = addresses(store), kept(store)
    verb(host, noise)
    verb(store, noise)
    assert same(store, host) and addresses(store) == places
    assert ("back" in verb.__name__) == all((np.array(store[path]) == x).all() for path, x in before.items())


@pytest.mark.parametrize("dtype", ["bfloat16", np.float16])
def test_leaves_of_16_bits_move_by_rounded_sums_and_are_sampled(dtype):
    host, store = both(dtype)
    rounded_sums(host, NOISE)
    rounded_sums(store, NOISE)
    assert same(store, host)
    out, beside = host.copy(), store.copy()
    es.sample(out, host, NOISE, [5])
    es.sample(beside, store, NOISE, [5])
    assert same(beside, out)
    es.update(host, NOISE, [1], [1.0])
    es.update(store, NOISE, [1], [1.0])
    assert same(store, host)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_a_population_is_sampled_member_by_member_in_its_place(dtype, antithetic):
    host, store = both(dtype)
    members, pop = fs.Population.zeros(host.layout, 6), fs.Population.from_tree(a_tree(dtype), 6, device=DEVICE)
    members.assign(pop.tree)
    places = addresses(pop)
    keys = fs.seeds(3, 3 if antithetic else 6)
    es.sample(members, host, NOISE, keys, sign=-1, antithetic=antithetic)
    es.sample(pop, store, NOISE, keys, sign=-1, antithetic=antithetic)
    assert same(pop, members) and addresses(pop) == places
    es.sample(store, store, NOISE, [1])
    es.sample(host, host, NOISE, [1])
    assert same(store, host)


def test_mezo_climbs_as_on_the_host_and_its_journal_moves_either():
    host, store = both()
    score = jax.jit(lambda params, step: -jnp.square(params["a"]["long"] - 0.25).sum())
    run = {"seed": 0, "noise": NOISE, "rate": 2.0, "steps": 4}
    entries = [[move.entry for move in es.mezo(x, score, **run)] for x in (host, store)]
    assert entries[0] == entries[1] and same(store, host)
    one, other = both()
    es.replay(other, NOISE, entries[0])
    es.replay(one, NOISE, entries[1])
    assert same(other, host) and same(store, one)


def test_what_is_off_the_grid_or_reaches_the_bound_is_refused_and_nothing_moves():
    _, store = both()
    for value, words in (
        (0.1, "expected parameters on the grid"),
        (np.nan, "expected finite parameters"),
        (33.0, "below the bound 32, got a largest magnitude of 33"),
        (32 - 2**-19, "below the bound 32 after the move"),
    ):
        kernel = np.array(store["a/kernel"])
        kernel[3] = value
        store["a/kernel"] = kernel
        before, places = kept(store), addresses(store)
        for verb in (
            lambda: [es.perturb(store, NOISE, 1), es.perturb(store, NOISE, 1, sign=-2)],
            lambda: [es.update(store, NOISE, [1], [w]) for w in (5.0, -10.0)],
        ):
            with pytest.raises(ValueError, match="'a/kernel'") as error:
                verb()
            says(error, words)
            store.assign(before)
        assert addresses(store) == places
    store["a/kernel"] = np.full((31, 23), 32.0)
    with pytest.raises(ValueError, match="'a/kernel': expected parameters below the bound"):
        es.snap(store, NOISE)


def test_a_move_past_the_bound_is_taken_back_to_the_bit():
    _, store = both()
    store["a/scalar"] = 32 - 2**-19
    before = kept(store)
    refused = 0
    for sign in (1, -1):
        try:
            es.perturb(store, NOISE, 3, sign=sign)
        except ValueError:
            refused += 1
            assert all((np.array(store[path]) == x).all() for path, x in before.items())
        else:
            es.perturb(store, NOISE, 3, sign=-sign)
    assert refused == 1


def notes_of(error):
    return " ".join(getattr(error.value, "__notes__", []))


@pytest.mark.parametrize(
    "move",
    [
        lambda store: es.perturb(store, SIGNS, 3),
        lambda store: es.update(store, SIGNS, [3, 4], [1.0, 0.5]),
        lambda store: es.update(store, SIGNS, [3, 4], [1e5, 0.5]),
        lambda store: es.update(store, SIGNS, [5, 4], [1e5, 0.5], perturbed=1),
        lambda store: es.update(store, SIGNS, [5], [1e5], perturbed=-1),
    ],
)
def test_a_move_past_the_bound_leaves_every_leaf_as_it_was(move):
    """Past the bound sums are rounded, so that what is subtracted from them is not what was there."""
    digits = np.arange(1, 65, dtype="f4") * np.float32(SIGNS.step)
    tree = {"near": 32 - digits, "odd": digits, "far": np.full((3, 5), 0.5, "f4")}
    store = fs.Store.from_tree(tree, device=DEVICE)
    before, places = kept(store), addresses(store)
    with pytest.raises(ValueError, match="below the bound 32 after the move"):
        move(store)
    assert all(np.array(store[path]).tobytes() == x.tobytes() for path, x in before.items())
    assert addresses(store) == places


def test_a_step_that_is_refused_gives_the_store_back():
    store = fs.Store.from_tree({"w": np.zeros(8, "f4")}, device=DEVICE)
    noise = fs.Rademacher(0.25, bound=1.0)
    moves = es.mezo(store, lambda params, n: params["w"].sum(), seed=0, noise=noise, rate=50.0)
    with pytest.raises(ValueError, match="below the bound 1 after the move") as error:
        list(moves)
    assert "the store is as the step found it" in notes_of(error)
    assert not store.to_vector().any()
    es.perturb(store, SIGNS, 3)
    before = kept(store)
    with pytest.raises(ValueError, match="expected float32 or float64 leaves on a grid .*, got exact=False"):
        es.update(store, SIGNS, [3], [0.5], perturbed=1, exact=False)
    assert all((np.array(store[path]) == x).all() for path, x in before.items())


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_a_step_in_which_a_leaf_moves_leaves_the_store_as_its_notes_say(when):
    store, host = (fs.Store.from_tree({"w": np.zeros(8192, "f4")}, **how) for how in ({"device": DEVICE}, {}))
    held, calls = [], 0

    def holds(params, n):
        nonlocal calls
        calls += 1
        if calls == when:
            held.append(np.asarray(params["w"]))
        return float(params["w"].sum())

    run = {"seed": 0, "noise": SIGNS, "rate": 0.001}
    with pytest.raises(fs.StructureError, match="1 leaf elsewhere than before") as error:
        list(es.mezo(store, holds, **run, steps=2))
    made = when // 2  # the second evaluation of a step is followed by its move
    state = f"step {made - 1} has moved the store" if when % 2 == 0 else "the store is as the step found it"
    assert state in notes_of(error) and f"resume={made})" in notes_of(error)
    for _ in es.mezo(host, lambda params, n: float(params["w"].sum()), **run, steps=made) if made else ():
        pass
    assert same(store, host)


def test_a_context_in_which_a_leaf_moves_is_left_at_the_centre():
    def a_store():
        return fs.Store.from_tree({"w": np.zeros(8192, "f4")}, device=DEVICE)

    store = a_store()
    held = np.asarray(store["w"])
    with pytest.raises(fs.StructureError, match="elsewhere than before"), es.perturbed(store, SIGNS, 3):
        pass
    assert not store.to_vector().any() and not held.any()
    store = a_store()
    with pytest.raises(fs.StructureError, match="elsewhere than before") as error, es.perturbed(store, SIGNS, 3):
        held = np.asarray(store["w"])
    assert not store.to_vector().any() and held.all() and not hasattr(error.value, "__notes__")
    store = a_store()
    with pytest.raises(KeyError, match="of the block") as raised, es.perturbed(store, SIGNS, 3):
        held = np.asarray(store["w"])
        raise KeyError("of the block")
    assert not store.to_vector().any() and held.all()
    assert "elsewhere than before" in notes_of(raised)


def test_a_replay_in_which_a_leaf_moves_counts_the_entry_that_moved_it():
    store = fs.Store.from_tree({"w": np.zeros(8192, "f4")}, device=DEVICE)
    held = np.asarray(store["w"])
    with pytest.raises(fs.StructureError, match="elsewhere than before") as error:
        es.replay(store, SIGNS, [([1], [1.0]), ([2], [1.0])])
    assert "1 of 2 entries were replayed" in notes_of(error)
    assert store.to_vector().all() and not held.any()


def test_an_update_from_the_side_that_is_refused_leaves_the_store_at_the_side():
    for value, weight in ((31.99, 40.0), (0.1, 1.0)):
        _, store = both()
        es.perturb(store, NOISE, 7)
        kernel = np.array(store["a/kernel"])
        kernel[3] = value
        store["a/kernel"] = kernel
        if value > 1:
            es.snap(store, NOISE)
        before = kept(store)
        with pytest.raises(ValueError, match="'a/kernel': expected"):
            es.update(store, NOISE, [7, 8], [weight, -weight], perturbed=1)
        assert all((np.array(store[path]) == x).all() for path, x in before.items())


def test_a_run_with_an_optimiser_goes_on_in_its_folder(tmp_path):
    score = jax.jit(lambda stacked, n: -jnp.square(stacked["w"] - 3).sum(1))

    def run(generations, make=lambda tree: fs.Store.from_tree(tree, device=DEVICE), **how):
        centre = make({"w": np.zeros(9, "f4")})
        optimiser = es.Adam(centre)
        how |= {"seed": 0, "noise": NOISE, "members": 4, "rate": 0.1, "optimiser": optimiser}
        *_, last = es.evolve(centre, score, generations=generations, **how)
        return last.entry, optimiser.count, [np.array(x["w"]).tobytes() for x in (centre, *optimiser.states.values())]

    expected = run(4, fs.Store.from_tree)
    run(2, run=tmp_path / "run")
    assert run(4, run=tmp_path / "run") == expected
    assert es.centre_of(tmp_path / "run", 4)["w"].tobytes() == expected[2][0]


def test_what_is_no_centre_is_refused_before_anything_runs():
    _, store = both()
    run = {"seed": 0, "noise": NOISE, "members": 2, "rate": 1.0}
    for value, words in ((0.1, "on the grid"), (np.inf, "expected finite numbers in a centre, got inf at 0 of 7")):
        store["a/bias"] = np.full(7, value)
        with pytest.raises(ValueError, match=words):
            es.evolve(store, lambda *_: 0, **run)
    store["a/bias"] = np.full(7, 0.1)
    es.evolve(store, lambda *_: 0, optimiser=es.Momentum(store), **run).close()
    with pytest.raises(TypeError, match="expected a Store as centre, got JaxPopulation; fix"):
        es.evolve(fs.Population.from_tree(a_tree(), 2, device=DEVICE), lambda *_: 0, **run)
    gradient = store.copy()
    gradient["a/bias"] = np.full(7, np.nan)
    with pytest.raises(
        ValueError, match="'a/bias': expected finite numbers in a gradient, got nan at 0 of 7; fix: corr"
    ):
        es.Adam(store).step(gradient, 0.1)


def test_many_moves_are_no_nearer_to_the_bound_than_the_parameters_are():
    store, noise = fs.Store.from_tree({"w": np.zeros(9, "f4")}, device=DEVICE), fs.Rademacher(0.25, bound=1.0)
    for _ in range(5):
        es.perturb(store, noise, 7)
        es.perturb(store, noise, 7, sign=-2)
        es.perturb(store, noise, 7)
        assert not np.array(store["w"]).any()
    for _ in range(3):
        es.perturb(store, noise, 7)
    with pytest.raises(ValueError, match="below the bound 1 after the move, got a largest magnitude of 1; fix"):
        es.perturb(store, noise, 7)
    store["w"] = np.full(9, 0.1)
    with pytest.raises(ValueError, match="expected parameters on the grid"):
        es.perturb(store, noise, 7)
    store["w"] = np.full(9, 1 - 2.0**-24)
    step = noise.step
    with pytest.raises(ValueError, match="below the bound 1 after the move"):
        for seed in range(64):  # rounded up at random, to the bound
            es.update(store, noise, [seed], [step])


def test_temporaries_are_none_for_a_perturbation_and_those_of_a_chunk_for_an_update():
    layout = fs.Layout.from_tree({f"w{i}": jax.ShapeDtypeStruct((1 << 20,), "f4") for i in range(4)})
    homes = {leaf.path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in layout.homes}
    key, number = np.zeros(2, np.uint32), np.float32(1)
    weighted = es.weighted_seeds(NOISE, fs.seeds(1, 4), [1.0, 2.0, 3.0, 4.0])

    def taken(function, *arguments):
        memory = function.lower(homes, *arguments).compile().memory_analysis()
        return memory.temp_size_in_bytes, memory.alias_size_in_bytes

    assert taken(donating.perturbing(layout, NOISE, False), key, number) == (0, layout.nbytes)
    assert taken(donating.sampling(layout, NOISE, None), homes, key[None], number[None], np.int32(0)) == (
        0,
        layout.nbytes,
    )
    assert taken(donating.snapping(layout, NOISE)) == (0, layout.nbytes)
    temporaries, aliased = taken(donating.updating(layout, NOISE, 1, True, False), weighted)
    assert temporaries <= 4 << 20 and aliased == layout.nbytes
    assert taken(looking._looking(layout, tuple(homes), NOISE))[0] <= layout.nbytes // 1000


def test_what_does_not_belong_together_is_refused():
    host, store = both()
    pop = fs.Population.from_tree(a_tree(), 4, device=DEVICE)
    for call, kind, words in (
        (lambda: es.perturb(store, 0.1, 1), TypeError, "expected a noise"),
        (lambda: es.perturb(pop, NOISE, 1), TypeError, "got JaxPopulation"),
        (lambda: es.perturb(store, NOISE, 1, sign=3), ValueError, "sign"),
        (lambda: es.sample(host, store, NOISE, [1]), TypeError, "sample into a device, got Store"),
        (lambda: es.sample(store, host, NOISE, [1]), TypeError, "got Store"),
        (lambda: es.sample(pop, store, NOISE, [1]), ValueError, "expected 4 seeds"),
        (lambda: es.replay(store, NOISE, [([1], [1.0], 0.1)], optimiser=es.Adam(host)), ValueError, "of this store"),
        (lambda: es.Adam(store).step(host, 0.1), TypeError, "expected a gradient on the device, got a Store"),
    ):
        with pytest.raises(kind, match="expected") as error:
            call()
        says(error, words)
