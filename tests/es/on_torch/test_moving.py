"""The verbs of `es` on a store of torch: the bits of the host, by the host's loops and by kernels in Triton.

Without a card the kernels run in Triton's interpreter.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es
from flatstore.es.on_torch import launches, logged
from flatstore.es.on_torch.tables import TILES
from flatstore.kernels.triton import logged_moves, moves
from flatstore.noise import as_keys
from flatstore.store import OnTorch, TorchPopulation, array_of
from tests.example_trees import says

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISES = {"normal": fs.Normal(0.02), "signs": fs.Rademacher(0.1), "some": fs.Normal({"*bias": 0, "*": 0.02}, bound=16)}
NOISE = NOISES["normal"]


@pytest.fixture(params=["loops", "kernels"])
def kind(request, monkeypatch):
    """Which moves a store on this machine's device has."""
    if request.param == "kernels":
        monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    elif DEVICE != "cpu":
        pytest.skip("the host's loops do not reach a card")
    return request.param


def a_tree(dtype=np.float32):
    rng = np.random.default_rng(0)
    tied = rng.uniform(-1, 1, (5, 3)).astype(dtype)
    shapes = {"bias": (7,), "kernel": (31, 23), "empty": (0, 3), "scalar": (), "long": (2_100,)}
    leaves = {path: rng.uniform(-1, 1, shape).astype(dtype) for path, shape in shapes.items()}
    return {"a": leaves, "frozen": np.arange(9, dtype="i4"), "one": tied, "other": tied}


def both(dtype=np.float32, noise=NOISE, tree=None):
    host = fs.Store.from_tree(tree or a_tree(dtype))
    store = fs.Store.from_tree(tree or a_tree(dtype), device=DEVICE)
    for x in (host, store):
        es.snap(x, noise)
    return host, store


def bits_of(store, path):
    return array_of(store[path].cpu()).tobytes()


def same(store, host):
    return all(bits_of(store, path) == np.array(host.leaf_view(path)).tobytes() for path in host.layout.by_path)


def there_and_across_and_back(x, noise):
    log = es.perturb(x, noise, 7)
    log = es.perturb(x, noise, 7, sign=-2, undo=log)
    es.perturb(x, noise, 7, undo=log)


def several(x, noise):
    es.perturb(x, noise, 7)
    es.perturb(x, noise, (1, 2), sign=-1)


def updates(x, noise):
    es.update(x, noise, fs.seeds(1, 5), [0.5, -0.25, 1e-9, 0.3, 2.0])
    es.update(x, noise, fs.seeds(2, 2), [1.0, -0.5])


def update_from_the_side(x, noise):
    log = es.perturb(x, noise, 7, sign=-1)
    es.update(x, noise, [7], [0.25], perturbed=-1, undo=log)


def inside_a_context(x, noise):
    with es.perturbed(x, noise, 8), es.perturbed(x, noise, 9, sign=-1):
        pass
    es.update(x, noise, [3], [1.0])


def rounded_sums(x, noise):
    es.perturb(x, noise, 7, exact=False)
    es.update(x, noise, fs.seeds(1, 3), [0.1, 0.2, 0.3], exact=False)


VERBS = [there_and_across_and_back, several, updates, update_from_the_side, inside_a_context, rounded_sums]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_verb_has_the_bits_of_the_host_and_the_leaves_keep_their_places(kind, verb, dtype):
    host, store = both(dtype)
    assert same(store, host)
    before = [bits_of(store, path) for path in store]
    verb(host, NOISE)
    verb(store, NOISE)
    store.verify()
    assert same(store, host)
    assert ("back" in verb.__name__) == ([bits_of(store, path) for path in store] == before)


@pytest.mark.parametrize("noise", ["signs", "some"])
def test_so_has_another_noise(kind, noise):
    host, store = both(noise=NOISES[noise])
    for verb in VERBS:
        for x in (host, store):
            verb(x, NOISES[noise])
        assert same(store, host)
    for x in (host, store):
        x.assign(a_tree())
        es.snap(x, NOISES[noise])
        es.update(x, NOISES[noise], fs.seeds(2, 2), [1.0, -0.5])
        es.update(x, NOISES[noise], fs.seeds(2, 2), [1.0, -0.5], sign=-1)
    assert same(store, host)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_population_is_sampled_row_by_row(kind, antithetic, dtype):
    noise = NOISES["some"]
    host, store = both(dtype, noise)
    members, pop = fs.Population.zeros(host.layout, 4), TorchPopulation.zeros(host.layout, DEVICE, 4)
    keys = fs.seeds(3, 2 if antithetic else 4)
    for out, x in ((members, host), (pop, store)):
        es.sample(out, x, noise, keys, sign=-1, antithetic=antithetic)
        es.sample(out[2], out[1], noise, [9])  # of one member into another
        es.sample(out, out[0], noise, keys, antithetic=antithetic)  # and into all, itself among them
        es.sample(x, x, noise, [1])
    assert same(pop, members) and same(store, host)


def test_more_members_than_a_launch_has_are_sampled(monkeypatch):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    monkeypatch.setattr("flatstore.es.on_torch.launches.MEMBERS", 2)
    tree = {"w": np.linspace(-1, 1, 30, dtype="f4")}
    host, store = both(tree=tree)
    members, pop = fs.Population.zeros(host.layout, 5), TorchPopulation.zeros(host.layout, DEVICE, 5)
    es.sample(members, host, NOISE, fs.seeds(1, 5))
    es.sample(pop, store, NOISE, fs.seeds(1, 5))
    assert same(pop, members)


def spoilt(path, value):
    def spoil(x):
        x[path].reshape(-1)[-1:] = value

    return spoil


@pytest.mark.parametrize(
    "spoil, words",
    [
        (spoilt("a/long", float("nan")), "'a/long': expected finite"),
        (spoilt("a/long", 40.0), "'a/long': expected parameters below the bound 32, got a largest magnitude of 40"),
        (spoilt("a/long", 0.123456789), "'a/long': expected parameters on the grid of the noise"),
    ],
    ids=["not finite", "past the bound", "off the grid"],
)
def test_what_cannot_be_moved_exactly_is_named_and_nothing_is_moved(kind, spoil, words):
    _, store = both()
    spoil(store)
    before = [bits_of(store, path) for path in store]
    for call in (
        lambda: es.perturb(store, NOISE, 1),
        lambda: es.update(store, NOISE, [1, 2], [1.0, 1.0]),
    ):
        with pytest.raises(ValueError, match=words):
            call()
        assert [bits_of(store, path) for path in store] == before


def test_a_move_that_reaches_the_bound_is_taken_back_wherever_it_was_made(kind):
    noise = fs.Normal(0.4, bound=2.0)
    tree = {"a": np.full(2 * TILES[4], 0.1, "f4"), "b": np.zeros(5), "w": np.full(3 * TILES[4], 1.9, "f4")}
    _, store = both(noise=noise, tree=tree)
    before = [bits_of(store, path) for path in store]
    with pytest.raises(ValueError, match=r"'w': expected parameters below the bound 2 after the move"):
        es.perturb(store, noise, 1)
    with pytest.raises(ValueError, match=r"bound 2|smaller weights") as error:
        es.update(store, noise, fs.seeds(1, 3), [2.0, 2.0, 2.0])
    says(error, "weights")
    assert [bits_of(store, path) for path in store] == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_log_leads_back_whatever_the_parameters_are(kind, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    most = float(jnp.finfo(dtype).max)
    tree = {
        "constant": np.full(1500, 0.3, dtype),
        "far": (rng.normal(size=3000) * 10.0 ** rng.uniform(-7, 0, 3000)).astype(dtype),
        "large": np.array([most, -most, most / 2, 1e-6, 0.0], dtype),
        "mixed": np.concatenate([np.zeros(1100), rng.normal(0, 0.02, 1000)]).astype(dtype),
        "one": np.array(-0.0, dtype),
        "zeros": np.zeros(2500, dtype),
    }
    monkeypatch.setattr(logged, "SHARE", 1 << 20)  # the first pool is too small
    host, store = both(dtype, tree=tree)
    before = [bits_of(store, path) for path in store]
    for seed, sign in ((1, 1), (2, -1)):
        here, there = es.perturb(host, NOISE, seed, sign=sign), es.perturb(store, NOISE, seed, sign=sign)
        assert same(store, host)
        if seed == 2:
            here, there = (es.perturb(x, NOISE, 2, sign=2, undo=u) for x, u in ((host, here), (store, there)))
            assert same(store, host) and there.at == 1
        es.perturb(host, NOISE, seed, sign=-1, undo=here)
        es.perturb(store, NOISE, seed, sign=-1, undo=there)
        assert [bits_of(store, path) for path in store] == before and "taken back" in repr(there)
    with pytest.raises(ValueError, match="expected an undo log that was not used"):
        es.perturb(store, NOISE, 2, sign=-1, undo=there)


def test_a_log_is_a_few_per_cent_of_the_bytes(kind):
    weights = np.random.default_rng(0).normal(0, 0.02, 50_000).astype("bfloat16")
    _, store = both("bfloat16", tree={"w": weights})
    log = es.perturb(store, fs.Normal(1e-3), 1)
    assert log.nbytes < 0.075 * weights.nbytes  # 6.2 % of the weights are lost to rounding


def test_a_store_that_is_not_as_its_log_left_it_is_refused(kind):
    _, store = both("bfloat16")
    log = es.perturb(store, NOISE, 1)
    store["a/long"][3] += 1
    before = [bits_of(store, path) for path in store]
    for call in (
        lambda: es.perturb(store, NOISE, 1, sign=-1, undo=log),
        lambda: es.update(store, NOISE, [1], [1.0], perturbed=1, undo=log),
    ):
        with pytest.raises(ValueError, match=r"'a/long'.*: expected parameters as the undo log left them, got others"):
            call()
    assert [bits_of(store, path) for path in store] == before
    store["a/long"][3] -= 1
    es.perturb(store, NOISE, 1, sign=-1, undo=log)


def test_a_move_of_16_bits_that_would_not_be_finite_moves_nothing(kind):
    noise = fs.Normal(4.0, bound=64)
    tree = {"a": np.full(4000, 0.5, "f4"), "h": np.full(3000, 65500, "f2"), "z": np.zeros(50, "f2")}
    _, store = both(noise=noise, tree=tree)
    before = [bits_of(store, path) for path in store]
    with pytest.raises(ValueError, match="'h': expected parameters that stay finite in float16, got .* 655"):
        es.perturb(store, fs.Normal({"h": 14.0, "*": 0.5}, bound=64), 1)
    assert [bits_of(store, path) for path in store] == before


def test_the_leaf_that_would_not_be_finite_is_named_and_not_one_that_was_moved_and_taken_back(kind):
    noise = fs.Normal(14.0, bound=64)
    _, store = both(noise=noise, tree={"a": np.full(1, 65472, "f2"), "h": np.full(1, 65504, "f2")})
    added = [noise.delta(leaf, as_keys([75]), 0, 1)[0, 0] for leaf in store.layout.leaves]
    assert added[1] < added[0] and 65472 + added[0] < 65520 <= 65504 + added[1] < 65472 + 2 * added[0]
    with pytest.raises(ValueError, match="'h': expected parameters that stay finite in float16, got .* 65521 after"):
        es.perturb(store, noise, 75)


def test_an_update_by_no_seeds_changes_no_bit(kind):
    _, store = both(tree={"w": np.array([-0.0, 0.0, 0.5], "bfloat16"), "h": np.array([-0.0, 1.0], "f2")})
    before = [bits_of(store, path) for path in store]
    es.update(store, NOISE, [], [])
    assert [bits_of(store, path) for path in store] == before


def test_a_failure_on_the_way_takes_all_back(monkeypatch):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    tree = {"a": np.linspace(-1, 1, 3000, dtype="f4"), "g": np.ones(900, "f2"), "h": np.zeros(3000, "bfloat16")}
    _, store = both(tree=tree)
    before = [bits_of(store, path) for path in store]
    log = es.perturb(store, NOISE, 1)
    there = [bits_of(store, path) for path in store]
    fill, calls = logged.LoggedMoves._fill, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) >= 2:
            raise MemoryError
        return fill(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(logged.LoggedMoves, "_fill", failing)
        es.perturb(store, NOISE, 1, sign=-2, undo=log)
    assert [bits_of(store, path) for path in store] == there
    es.perturb(store, NOISE, 1, sign=-1, undo=log)
    assert [bits_of(store, path) for path in store] == before


@pytest.mark.parametrize("verb", ["perturb", "update"])
def test_a_launch_that_fails_takes_those_before_it_back(monkeypatch, verb):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    tree = {"a": np.linspace(-1, 1, 3000, dtype="f4"), "d": np.linspace(-1, 1, 50)}
    _, store = both(tree=tree)
    es.perturb(store, NOISE, 3)
    before = [bits_of(store, path) for path in store]
    real = getattr(launches.Launch, verb)

    def failing(self, table, *arguments):
        if table.dtype == "float64":
            raise MemoryError
        return real(self, table, *arguments)

    move = {
        "perturb": lambda: es.perturb(store, NOISE, 1),
        "update": lambda: es.update(store, NOISE, [3, 4], [0.5, 0.25], perturbed=1),
    }
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(launches.Launch, verb, failing)
        move[verb]()
    assert [bits_of(store, path) for path in store] == before


class Compiled:
    """A kernel that a card compiles at its first launch with other constants: that may fail, and later ones do not."""

    def __init__(self, kernel, seen, step):
        self.kernel, self.seen, self.step = kernel, seen, step

    def __getitem__(self, grid):
        def launch(*given, **constants):
            variant = (self.kernel, *constants.items())
            if variant not in self.seen:
                self.step(lambda: self.seen.add(variant))()
            self.kernel[grid](*given, **constants)

        return launch


def steps_that_fail(n, patch, only):
    """Have the n-th of what the card is asked for fail, `only` that or those after it, too.

    It is asked to hold an array, and to compile a kernel.
    """
    calls, seen = [], set()

    def failing(real):
        def step(*arguments, **how):
            calls.append(real)
            if len(calls) == n or (len(calls) > n and not only):
                raise MemoryError
            return real(*arguments, **how)

        return step

    for module in (launches, logged):
        patch.setattr(module, "on_device", failing(module.on_device))
    for name in ("zeros", "empty"):
        patch.setattr(torch, name, failing(getattr(torch, name)))
    for module, names in ((moves, ("perturb", "sample", "update")), (logged_moves, ("add", "check", "take_back"))):
        for name in names:
            patch.setattr(module, name, Compiled(getattr(module, name), seen, failing))


@pytest.mark.parametrize("only", [True, False], ids=["once", "from then on"])
@pytest.mark.parametrize("verb", ["back", "across", "update"])
def test_what_fails_at_any_step_leaves_the_store_at_its_side_and_its_log_good(monkeypatch, verb, only):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    tree = {"a": np.linspace(-1, 1, 300, dtype="f4"), "g": np.ones(90, "f2"), "h": np.linspace(-1, 1, 1500)}
    host, store = both(tree=tree | {"h": tree["h"].astype("bfloat16")})
    centre = [bits_of(store, path) for path in store]
    move = {
        "back": lambda x, log: es.perturb(x, NOISE, 1, sign=-1, undo=log),
        "across": lambda x, log: es.perturb(x, NOISE, 1, sign=-2, undo=log),
        "update": lambda x, log: es.update(x, NOISE, [1, 2], [0.5, -0.25], perturbed=1, undo=log),
    }[verb]
    log, n = es.perturb(store, NOISE, 1), 0
    beside = [bits_of(store, path) for path in store]
    while True:
        n += 1
        with monkeypatch.context() as patch:
            steps_that_fail(n, patch, only)
            try:
                move(store, log)
                break
            except MemoryError:
                pass
        assert [bits_of(store, path) for path in store] == beside and log.at == 1, n
        es.perturb(store, NOISE, 1, sign=-1, undo=log)
        assert [bits_of(store, path) for path in store] == centre, n
        log = es.perturb(store, NOISE, 1)
    move(host, es.perturb(host, NOISE, 1))
    assert n > 10 and same(store, host)


@pytest.mark.parametrize("verb", ["the bound", "too large"])
def test_what_may_not_be_and_fails_on_the_way_leaves_the_bits(monkeypatch, verb):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    tree = {"a": np.zeros(300, "f4"), "d": np.full(300, 63.99), "h": np.zeros(50, "f2")}
    tree["h"][10:] = {"the bound": 0, "too large": 65500}[verb]
    tree["d"] -= {"the bound": 0, "too large": 30}[verb]
    noise, n = fs.Normal({"h": 14.0, "*": 0.5}, bound=64), 0
    _, store = both(noise=noise, tree=tree)
    before = [bits_of(store, path) for path in store]
    while True:
        n += 1
        with monkeypatch.context() as patch, pytest.raises((MemoryError, ValueError)) as error:
            steps_that_fail(n, patch, False)
            es.perturb(store, noise, 1)
        assert [bits_of(store, path) for path in store] == before, n
        if error.type is ValueError:
            break
    assert n > 5


@pytest.mark.parametrize("only", [True, False], ids=["once", "from then on"])
def test_a_sample_that_fails_writes_no_member(monkeypatch, only):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    tree = {"a": np.linspace(-1, 1, 3000, dtype="f4"), "b": np.ones(5, "f4"), "h": np.ones(90, "f2")}
    noise, n = fs.Normal({"b": 0, "*": 0.02}), 0
    _, store = both(noise=noise, tree=tree)
    pop = TorchPopulation.zeros(store.layout, DEVICE, 3)
    while True:
        n += 1
        with monkeypatch.context() as patch:
            steps_that_fail(n, patch, only)
            try:
                es.sample(pop, store, noise, fs.seeds(1, 3))
                break
            except MemoryError:
                assert not pop.to_vector().any(), n
    assert n > 5 and pop.to_vector().all()


def test_a_log_on_another_device_is_refused(monkeypatch):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    _, store = both("bfloat16")
    log = es.perturb(store, NOISE, 1)
    log.parts[:] = [part._replace(done=part.done.to("meta")) for part in log.parts]
    for call in (
        lambda: es.perturb(store, NOISE, 1, sign=-1, undo=log),
        lambda: es.update(store, NOISE, [1], [1.0], perturbed=1, undo=log),
    ):
        with pytest.raises(ValueError, match=f"expected an undo log on {DEVICE}.*, got one on meta") as error:
            call()
        says(error)


def test_what_a_card_cannot_do_says_so(monkeypatch):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    host, store = both("bfloat16")
    log = es.perturb(host, NOISE, 1)
    es.perturb(store, NOISE, 1)
    for call, kind, words in (
        (lambda: es.perturb(store, NOISE, 1, sign=-1, undo=log), ValueError, "an undo log of a store of this kind"),
        (lambda: es.update(store, NOISE, [1], [1.0], keep=True), ValueError, "expected keep=False"),
        (lambda: es.update(store, NOISE, [1], [1.0], sign=-1), ValueError, "expected the undo log of bfloat16 leaves"),
        (lambda: es.update(store, NOISE, [1], [1.0], perturbed=1, exact=False), ValueError, "got exact=False"),
        (lambda: es.update(store, NOISE, [], [], perturbed=1), ValueError, "expected the seed that the store is"),
        (lambda: es.sample(fs.Store.zeros(store.layout), store, NOISE, [1]), TypeError, "to sample into a device"),
        (lambda: es.sample(store, store, NOISE, [1, 2]), ValueError, "expected 1 seeds for 1 members, got 2"),
        (lambda: es.perturb(store, "noise", 1), TypeError, "expected a noise"),
        (lambda: es.perturb(TorchPopulation.zeros(store.layout, DEVICE, 2), NOISE, 1), TypeError, "a TorchStore"),
    ):
        with pytest.raises(kind, match=words) as error:
            call()
        says(error)


def test_mezo_climbs_with_functions_of_torch_as_on_the_host(kind):
    host, store = both()
    entries = [
        [move.entry for move in es.mezo(x, score, seed=0, noise=NOISE, rate=2.0, steps=3)]
        for x, score in (
            (host, lambda params, step: -float(jnp.square(params["a"]["long"][0] - 0.25))),
            (store, lambda params, step: -float((params["a"]["long"][0] - 0.25).square())),
        )
    ]
    assert entries[0] == entries[1] and same(store, host)


@pytest.mark.parametrize("optimiser", [None, es.Adam, es.Momentum])
def test_evolve_comes_to_the_same_centre_as_on_the_host(kind, optimiser, tmp_path):
    tree = {"b": np.zeros(7, "f4"), "w": np.linspace(-1, 1, 65, dtype="f4").reshape(13, 5)}
    host, store = both(tree=tree)
    found = []
    for x, root in ((host, jnp), (store, torch)):

        def evaluate(members, number, root=root):
            return np.asarray(-root.square(members["w"] - 0.25).sum((1, 2)))

        how = {"seed": 1, "noise": NOISE, "members": 6, "rate": 0.1}
        own = optimiser and optimiser(x)
        records = [*es.evolve(x, evaluate, generations=2, optimiser=own, run=tmp_path / root.__name__, **how)]
        again = x.copy()
        own = optimiser and optimiser(again)
        records += es.evolve(again, evaluate, generations=3, optimiser=own, run=tmp_path / root.__name__, **how)
        found.append(([record.fitness.round(5).tolist() for record in records], again))
    assert np.allclose(found[0][0], found[1][0], rtol=1e-4)
    if optimiser is None:  # ranks, which are the same
        assert same(found[1][1], found[0][1]) and same(store, host)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_optimisers_have_the_bits_of_the_host(kind, dtype):
    for optimiser in (es.Adam, es.Momentum):
        host, store = both(dtype)
        own = [optimiser(x) for x in (host, store)]
        for number in range(3):
            for x, optimised in ((host, own[0]), (store, own[1])):
                slope = x.copy()
                es.perturb(slope, NOISE, number, exact=False)
                optimised.step(slope, 0.01)
        assert same(store, host) and own[1].count == 3


def test_files_are_loaded_to_the_device_and_saved_from_it(tmp_path):
    tree = a_tree("bfloat16")
    host = fs.Store.from_tree(tree)
    fs.save(tmp_path / "model", host)
    store = fs.load(tmp_path / "model", device=torch.device(DEVICE))
    assert same(store, host)
    fs.save(tmp_path / "again", store)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    members = fs.Population.from_tree(tree, 3)
    fs.save(tmp_path / "members", members)
    pop = fs.load(tmp_path / "members", device=DEVICE)
    assert isinstance(pop, TorchPopulation) and same(pop, members)
    fs.save(tmp_path / "again", pop)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "members").read_bytes()


def test_a_log_takes_back_the_store_that_it_is_given_and_no_other(kind):
    _, store = both("bfloat16")
    before = [bits_of(store, path) for path in store]
    log = es.perturb(store, NOISE, 7)
    there = [bits_of(store, path) for path in store]
    beside = store.copy()
    es.perturb(beside, NOISE, 7, sign=-1, undo=log)
    assert [bits_of(beside, path) for path in store] == before and [bits_of(store, path) for path in store] == there


def test_tables_of_noises_that_come_and_go_are_not_kept(monkeypatch):
    monkeypatch.setattr(OnTorch, "moves", OnTorch.moves_on_card)
    _, store = both()
    for number in range(1, 40):
        es.perturb(store, fs.Normal(0.02 * number / 40, bound=16), 1, exact=False)
    assert len(store.cache) <= 17
