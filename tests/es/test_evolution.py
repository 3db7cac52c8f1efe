"""OpenAI's strategy: a generator equals the loop written by hand, stops anywhere, goes on to the bit, and climbs."""

import pickle
import signal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE = fs.Normal({"b": 0.1, "*": 0.2})
TREE = {"b": np.zeros(3, "f4"), "n": np.int32(5), "w": np.zeros((5, 3), "f4")}


def a_centre():
    return fs.Store.from_tree(TREE)


@jax.jit
def evaluate(stacked, generation):
    """A fitness that depends on the generation too, and on a leaf that does not train."""
    score = jax.vmap(lambda w, b: -jnp.square(w - 1).sum() - jnp.square(b).sum())
    return score(stacked["w"], stacked["b"]) * (stacked["n"] + generation)


def run(centre, **changes):
    arguments = {"seed": (4, 2), "noise": NOISE, "members": 16, "rate": 3.0, "generations": 5} | changes
    return es.evolve(centre, arguments.pop("evaluate", evaluate), **arguments)


def by_hand(centre, generations, rate=3.0, optimiser=None, members=16):
    """The published loop, over the verbs: the members in pairs, a gradient of ranks."""
    pop = fs.Population.from_tree(TREE, members)
    for number in range(generations):
        keys = fs.seeds((4, 2, number), members // 2)
        es.sample(pop, centre, NOISE, keys, antithetic=True)
        with pop.lend() as stacked:
            ranks = es.centred_ranks(np.array(evaluate(stacked, number)))
        weights = (ranks[::2] - ranks[1::2]) / members
        if optimiser is None:
            es.update(centre, NOISE, keys, weights * rate)
        else:
            gradient = fs.Store.zeros(centre.layout)
            es.update(gradient, NOISE, keys, weights, exact=False)
            optimiser.step(gradient, rate)
        yield keys, weights


@pytest.mark.parametrize("rule", [None, es.Adam, es.Momentum])
def test_the_generator_is_the_loop_written_by_hand_to_the_bit(rule):
    centre, other = a_centre(), a_centre()
    mine, its = (rule(x) if rule else None for x in (centre, other))
    hand = by_hand(other, 5, 3.0 if rule is None else 0.1, its)
    for number, move in enumerate(run(centre, rate=3.0 if rule is None else 0.1, optimiser=mine)):
        keys, weights = next(hand)
        assert centre.buffer.tobytes() == other.buffer.tobytes()
        assert (move.number, move.rate) == (number, 0.1 if rule else None)
        np.testing.assert_array_equal(move.seeds, keys)
        np.testing.assert_array_equal(move.weights, weights * (1 if rule else 3.0))
    assert number == 4
    assert centre["w"].any()


def test_the_move_is_along_the_natural_gradient_of_ranks():
    centre = a_centre()
    pop = fs.Population.from_tree(TREE, 64)
    move = next(run(centre, members=pop, generations=1, rate=1.0))
    ranks, w = es.centred_ranks(move.fitness), pop["w"].astype("f8")  # the members stand, around the first centre: 0
    np.testing.assert_allclose(centre["w"], np.tensordot(ranks, w, 1) / 64, atol=2 * NOISE.step)
    np.testing.assert_allclose(
        move.fitness, -5 * (np.square(w - 1).sum((1, 2)) + np.square(pop["b"]).sum(1)), rtol=1e-5
    )


def test_the_rate_may_fade_and_the_shape_be_yours():
    rates, centre, other = [3.0, 0.5], a_centre(), a_centre()
    moves = list(run(centre, rate=lambda n: rates[n], generations=2, shape=lambda f: f))
    for move, rate in zip(moves, rates, strict=True):
        np.testing.assert_array_equal(move.weights, (move.fitness[::2] - move.fitness[1::2]) / 16 * rate)
    es.replay(other, NOISE, moves)
    assert centre.buffer.tobytes() == other.buffer.tobytes()


def test_after_break_the_centre_is_as_the_last_move_made_it():
    centre, other = a_centre(), a_centre()
    for move in run(centre, generations=None):
        if move.number == 2:
            break
    list(run(other, generations=3))
    assert centre.buffer.tobytes() == other.buffer.tobytes()


@pytest.mark.parametrize("chunk", [16, 32, 1000])
def test_chunks_change_nothing_and_each_is_lent(chunk):
    whole, parts, sizes = a_centre(), a_centre(), []
    pop = fs.Population.from_tree(TREE, 48)

    def by_chunks(stacked, generation):
        sizes.append(len(stacked["w"]))
        with pytest.raises(fs.LentError):
            pop["b"] = np.zeros((48, 3), "f4")
        return evaluate(stacked, generation)

    list(run(whole, members=48))
    list(run(parts, members=pop, evaluate=by_chunks, chunk=chunk))
    assert whole.buffer.tobytes() == parts.buffer.tobytes()
    assert sizes == 5 * [part.size for part in pop.chunks(chunk)]


@pytest.mark.parametrize("resume", ["record", "number"])
@pytest.mark.parametrize("rule", [None, es.Adam])
def test_a_run_goes_on_from_a_pickled_record_or_a_number_to_the_bit(resume, rule):
    centre, again = a_centre(), a_centre()
    first = rule(centre) if rule else None
    for move in run(centre, optimiser=first, rate=0.1):
        if move.number == 2:
            again.assign(centre)
            second = rule(again) if rule else None
            if rule:
                second.mean.assign(first.mean), second.square.assign(first.square)
                second.count = first.count
            saved = pickle.loads(pickle.dumps(move))
    assert not saved.weights.flags.writeable
    rest = list(run(again, optimiser=second, rate=0.1, resume=saved if resume == "record" else 3))
    assert [move.number for move in rest] == [3, 4]
    assert again.buffer.tobytes() == centre.buffer.tobytes()


def test_what_evaluate_raises_leaves_the_centre_and_tells_how_to_go_on():
    def flaky(stacked, generation):
        if generation == 3 and not failed:
            failed.append(generation)
            raise KeyboardInterrupt
        return evaluate(stacked, generation)

    failed, centre, other = [], a_centre(), a_centre()
    with pytest.raises(KeyboardInterrupt) as caught:
        list(run(centre, evaluate=flaky))
    assert caught.value.__notes__ == ["the centre is as generation 3 found it; fix: evolve(..., resume=3) goes on"]
    list(run(other, generations=3))
    assert centre.buffer.tobytes() == other.buffer.tobytes()
    list(run(centre, evaluate=flaky, resume=3))
    list(run(other, resume=3))
    assert centre.buffer.tobytes() == other.buffer.tobytes()


class Pressed(es.Adam):
    """Somebody presses Ctrl-C as it steps."""

    def step(self, gradient, rate):
        signal.raise_signal(signal.SIGINT)
        super().step(gradient, rate)


def test_an_interrupt_while_the_centre_moves_comes_after_the_record():
    centre, other = a_centre(), a_centre()
    moves = run(centre, optimiser=Pressed(centre), rate=0.1)
    move = next(moves)
    list(run(other, optimiser=es.Adam(other), rate=0.1, generations=1))
    assert move.number == 0
    assert centre.buffer.tobytes() == other.buffer.tobytes()
    with pytest.raises(KeyboardInterrupt) as caught:
        next(moves)
    assert caught.value.__notes__[-1] == "generation 0 has moved the centre; fix: evolve(..., resume=1) goes on"
    assert centre.buffer.tobytes() == other.buffer.tobytes()


def test_a_move_that_is_refused_leaves_the_centre():
    centre = a_centre()
    moves = run(centre, rate=lambda n: 1.0 if n < 2 else 1e6, seed=0)
    next(moves), next(moves)
    before = centre.buffer.tobytes()
    with pytest.raises(ValueError, match="expected a move below the bound 32") as caught:
        next(moves)
    assert centre.buffer.tobytes() == before
    assert caught.value.__notes__ == ["the centre is as generation 2 found it; fix: evolve(..., resume=2) goes on"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rule", [None, es.Adam])
def test_16_bit_centres_climb_and_are_replayed_to_the_bit(dtype, rule):
    centre, other = (fs.Store.from_tree({"w": np.zeros(8, dtype)}) for _ in range(2))
    score = jax.jit(lambda stacked, n: -jnp.square(stacked["w"].astype("f4") - 1).sum(1))
    rate, noise = (3.0 if rule is None else 0.05), fs.Normal(0.2)
    mine, its = (rule(x) if rule else None for x in (centre, other))
    moves = list(es.evolve(centre, score, seed=1, noise=noise, members=32, rate=rate, optimiser=mine, generations=60))
    assert np.abs(centre["w"].astype("f4") - 1).max() < 0.4
    es.replay(other, noise, moves, optimiser=its)
    assert centre.buffer.tobytes() == other.buffer.tobytes()


def sphere(x):
    return -jnp.square(x - 1).sum()


def rosenbrock(x):
    return -(100 * jnp.square(x[1:] - jnp.square(x[:-1])) + jnp.square(1 - x[:-1])).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_solves_the_sphere_in_10_dimensions_without_an_optimiser(seed):
    centre = fs.Store.from_tree({"x": np.zeros(10, "f4")})
    score = jax.jit(lambda stacked, n: jax.vmap(sphere)(stacked["x"]))
    list(es.evolve(centre, score, seed=seed, noise=fs.Normal(0.05), members=32, rate=5.0, generations=300))
    assert np.square(centre["x"] - 1).sum() < 1e-3  # from 10; each member is at about 0.025


@pytest.mark.long
def test_it_solves_rosenbrock_in_10_dimensions_with_adam():
    centre = fs.Store.from_tree({"x": np.zeros(10, "f4")})
    score, noise, n = jax.jit(lambda stacked, n: jax.vmap(rosenbrock)(stacked["x"])), fs.Normal(0.005), 2000
    moves = es.evolve(
        centre, score, seed=0, noise=noise, members=32, generations=n,
        rate=lambda number: 0.03 * (1 - number / n), optimiser=es.Adam(centre),
    )  # fmt: skip
    list(moves)
    assert -rosenbrock(centre["x"]) < 0.02  # from 9
    assert np.abs(centre["x"] - 1).max() < 0.1


def off_grid():
    centre = a_centre()
    centre["w"][0, 0] = 0.1
    return centre


def not_finite():
    centre = a_centre()
    centre["b"][1] = np.nan
    return centre


BAD = [
    ({"evaluate": None}, TypeError, "expected a function to evaluate with, got NoneType; fix"),
    ({"generations": 0}, ValueError, "expected a whole number of generations >= 1, got 0; fix"),
    ({"members": 7}, ValueError, "expected an even number of members, 2 or more, got 7; fix"),
    ({"members": 8.0}, ValueError, "expected an even number of members, 2 or more, got 8.0; fix"),
    ({"members": 0}, ValueError, "expected an even number of members, 2 or more, got 0; fix"),
    ({"members": fs.Population.from_tree({"w": np.zeros(3, "f4")}, 4)}, ValueError, "members unlike the store's layou"),
    ({"chunk": 0}, ValueError, "expected at_most >= 1, got 0; fix"),
    ({"seed": -1}, ValueError, "expected a seed of non-negative integers"),
    ({"noise": fs.Normal({"none": 1.0})}, ValueError, "expected globs that match a leaf, got 'none'; fix"),
    ({"noise": fs.Normal(1e-6)}, ValueError, "'b': expected a scale of 3.05e-05 .. 7.28 for the bound 32, got 1e-06"),
    ({"rate": np.inf}, ValueError, "expected a finite rate, got inf; fix"),
    ({"rate": lambda n: "fast"}, ValueError, "expected a finite rate, got fast; fix"),
    ({"shape": 3}, TypeError, "expected a function of fitness to shape with, got 3; fix"),
    ({"optimiser": es.Adam(a_centre())}, ValueError, "expected an optimiser of this store, got <.*Adam.*; fix"),
    ({"resume": -1}, ValueError, "expected resume >= 0, got -1; fix"),
    ({"centre": off_grid()}, ValueError, "'w': expected parameters on the grid of the noise .*; fix: es.snap"),
    ({"centre": not_finite()}, ValueError, "'b': expected finite numbers in a centre, got nan at 1 of"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_arguments_are_checked_when_it_is_called(change, kind, message):
    change = dict(change)
    centre = change.pop("centre", a_centre())
    before = centre.buffer.tobytes()
    with pytest.raises(kind, match=message):
        run(centre, **change)
    assert centre.buffer.tobytes() == before


def test_a_lent_centre_and_members_in_the_same_memory_are_refused():
    pop = fs.Population.from_tree(TREE, 4)
    with pytest.raises(ValueError, match="expected members apart from the centre, got the same memory; fix"):
        run(pop[0], members=pop)
    centre = a_centre()
    for optimiser in (None, es.Adam(centre)):
        with centre.lend(), pytest.raises(fs.LentError):
            run(centre, optimiser=optimiser)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda f: f > 0, r"expected 16 finite numbers from shape, got bool of shape \(16,\) with others; fix"),
        (lambda f: f[:3], r"expected 16 finite numbers from shape, got float64 of shape \(3,\); fix"),
        (lambda f: f * np.inf, r"expected 16 finite numbers from shape, got float64 of shape \(16,\) with others; fix"),
    ],
)
def test_a_shape_that_is_none_is_an_error_and_the_centre_as_it_was(shape, message):
    centre = a_centre()
    with pytest.raises(ValueError, match=message):
        next(run(centre, shape=shape))
    assert centre.buffer.tobytes() == a_centre().buffer.tobytes()


def test_a_shape_that_gives_a_mask_is_refused():
    with pytest.raises(TypeError, match="'shape': expected an array without a mask"):
        next(run(a_centre(), shape=lambda f: np.ma.array(f, mask=f > 0)))


def test_nan_is_worst_and_only_nan_an_error():
    def unknown(members):
        return lambda stacked, n: np.where(np.arange(16) < members, np.nan, 1.0)

    move = next(run(a_centre(), evaluate=unknown(3)))
    assert move.weights[0] == 0 and move.weights[1] < 0
    with pytest.raises(ValueError, match="a number in it for the members 0 .. 15, got only NaN; fix"):
        next(run(a_centre(), evaluate=unknown(16)))


def test_a_step_of_one_s_own_that_fails_may_have_moved_the_centre_and_the_note_says_so():
    class Decay(es.Adam):
        def step(self, gradient, rate):
            super().step(gradient, rate)
            raise RuntimeError("mine")

    centre = a_centre()
    with pytest.raises(RuntimeError, match="mine") as caught:
        next(run(centre, optimiser=Decay(centre), rate=0.1))
    assert "may have moved the centre" in caught.value.__notes__[-1]
