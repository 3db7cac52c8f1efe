"""Numbers that a caller passes: what counts as one, and every setting that takes one refuses what is none."""

import math
import re
from array import array
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import es, ga
from flatstore.checks import real, whole
from flatstore.threads import set_threads, threads

TRUTH_VALUES = [True, False, np.True_, np.array(True), np.array(True, object), jnp.array(True), torch.tensor(True)]
TEXTS = ["1", b"1", bytearray(b"1"), memoryview(b"1"), array("b", b"1"), np.str_("1"), np.array("1"), np.array(b"1")]
TEXTS += [np.array("1", object), np.array("1", np.dtypes.StringDType()), np.void(b"1")]
NEITHER = [None, 1j, np.complex64(1), torch.tensor(1j), print, object()]
SEVERAL = [[1], np.array([1]), torch.tensor([1]), np.ma.masked, np.ma.array(1)]


@pytest.mark.parametrize("three", [3, np.int8(3), np.uint64(3), np.array(3), jnp.array(3), torch.tensor(3)])
def test_an_integer_of_any_type_is_whole_and_real(three):
    assert type(whole(three)) is int and whole(three) == 3
    assert type(real(three)) is float and real(three) == 3


@pytest.mark.parametrize(
    "half",
    [0.5, np.float32(0.5), np.longdouble(0.5), jnp.bfloat16(0.5), torch.tensor(0.5), Fraction(1, 2), Decimal("0.5")],
)
def test_a_real_number_of_any_type_is_a_float_and_not_whole(half):
    assert type(real(half)) is float and real(half) == 0.5
    assert math.isnan(whole(half))


def test_infinities_are_real_and_integers_beyond_floats_are_whole_alone():
    assert (real(-np.inf), real(np.float32(np.inf))) == (-math.inf, math.inf)
    assert math.isnan(real(10**400)) and whole(10**400) == 10**400


@pytest.mark.parametrize("value", [*TRUTH_VALUES, *TEXTS, *NEITHER, *SEVERAL], ids=lambda x: type(x).__name__)
def test_truth_values_texts_masks_and_arrays_with_axes_are_no_numbers(value):
    assert math.isnan(real(value)) and math.isnan(whole(value))


def a_store():
    return fs.Store.from_tree({"w": np.zeros(3, "f4")})


def a_population():
    return fs.Population.from_tree({"w": np.zeros(3, "f4")}, 4)


def a_step(**keywords):
    return ga.step(a_population(), [1.0, 2.0, 3.0, 4.0], **{"seed": 1, "mutate": None} | keywords)


NOISE = fs.Normal(0.1)
WHOLE = {  # a call with an integer in the place of {}, and what its error says
    "align": (lambda x: fs.Layout.from_tree([1.0], align=x), "align: expected a power of two in bytes, got {}"),
    "index": (lambda x: a_store().layout.locate(x), "expected an index in 0 .. 2, got {}"),
    "position": (lambda x: a_store().layout.index_of("w", (x,)), "'w': expected a position in shape (3,), got ({},)"),
    "size": (lambda x: fs.Population.zeros(a_store().layout, x), "expected at least one member, got size {}"),
    "member": (lambda x: a_population()[x], "expected a member's number, a slice or a path, got "),
    "at_most": (lambda x: a_population().chunks(x), "expected at_most >= 1, got {}"),
    "seed": (lambda x: fs.seeds(x, 2), "expected a seed of non-negative integers, got {}"),
    "seed of noise": (
        lambda x: es.perturb(a_store(), NOISE, x),
        "expected a seed of non-negative integers, got {}",
    ),
    "seeds": (lambda x: es.words([2, x]), "expected a vector of seeds in 0 .. 2**64 - 1, got "),
    "number of seeds": (lambda x: fs.seeds(1, x), "expected a number of seeds, 0 or more, got {}"),
    "generations": (
        lambda x: ga.evolve(a_population(), len, seed=1, mutate=None, generations=x),
        "expected a whole number of generations >= 1, got {}",
    ),
    "resume": (
        lambda x: ga.evolve(a_population(), len, seed=1, mutate=None, resume=x),
        "expected resume >= 0, got {}",
    ),
    "threads": (set_threads, "expected a whole number of threads, 1 or more, got {}"),
    "elite": (lambda x: a_step(elite=x), "expected an integer as elite, got "),
    "tournament": (ga.Tournament, "expected a tournament of k >= 1 members, got {}"),
    "points": (ga.Points, "expected k >= 1 cuts, got {}"),
    "bits": (lambda x: ga.PerGene(max, bits=x), "expected 0, 1, 8, 16 or 32 random bits per gene, got {}"),
    "at": (
        lambda x: es.virtual({"w": jnp.zeros(2)}, NOISE, 1, layout=a_store().layout, at=x),
        "at: expected integers, got {}",
    ),
}  # fmt: skip
REAL = {
    "seconds to wait": (fs.waiting, "expected seconds >= 0 to wait, got {}"),
    "patience": (lambda x: a_store().lend(patience=x), "expected patience >= 0 in seconds, got {}"),
    "scale": (fs.Normal, "expected a scale > 0 (0 for leaves to leave alone), got {}"),
    "scale of a leaf": (lambda x: fs.Rademacher({"w": x}), "expected a scale > 0 (0 for leaves to leave alone), got "),
    "bound": (lambda x: fs.Normal(0.1, bound=x), "expected a bound in 2 ** -64 .. 2 ** 64, got {}"),
    "scale of a function": (lambda x: ga.Mutate(max, scale=x), "expected a scale > 0 (0 for leaves to leave alone)"),
    "share": (ga.Truncation, "expected a share in (0, 1], got {}"),
    "pressure": (lambda x: ga.Universal(pressure=x), "expected a pressure in [1, 2], got {}"),
    "alpha": (ga.Blend, "expected a finite alpha >= -0.5, got {}"),
    "rate of genes": (lambda x: ga.Sparse(NOISE, x), "expected a rate in (0, 1], got {}"),
    "low": (lambda x: ga.Reset(x, 2), "expected finite bounds low <= high, got {} and 2"),
    "high": (lambda x: ga.Reset(-1, x), "expected finite bounds low <= high, got -1 and {}"),
    "bounds": (lambda x: ga.Bounds({"*": (x, 2)}), "'*': expected bounds (low, high), got ({}, 2)"),
    "rate": (
        lambda x: es.mezo(a_store(), len, seed=1, noise=NOISE, rate=x),
        "expected a finite rate, got {}",
    ),
    "rate of a number": (
        lambda x: es.mezo(a_store(), len, seed=1, noise=NOISE, rate=lambda number: x),
        "expected a finite rate, got {}",
    ),
    "rate of a step": (lambda x: es.Adam(a_store()).step(a_store(), x), "expected a finite rate, got {}"),
    "rate with momentum": (lambda x: es.Momentum(a_store()).step(a_store(), x), "expected a finite rate, got {}"),
    "rate of an entry": (
        lambda x: es.replay(store := a_store(), NOISE, [(1, 0.5, x)], optimiser=es.Adam(store)),
        "entry 0: expected a finite rate beside its seeds and weights, got the rate {}",
    ),
    "beta1": (lambda x: es.Adam(a_store(), beta1=x), "expected 0 <= beta1 < 1, got {}"),
    "beta2": (lambda x: es.Adam(a_store(), beta2=x), "expected 0 <= beta2 < 1, got {}"),
    "epsilon": (lambda x: es.Adam(a_store(), epsilon=x), "expected 0 < epsilon < inf, got {}"),
    "beta": (lambda x: es.Momentum(a_store(), beta=x), "expected 0 <= beta < 1, got {}"),
    "sign": (lambda x: es.perturb(a_store(), NOISE, 1, sign=x), "expected sign 1, -1, 2 or -2, got {}"),
    "sign of a sample": (lambda x: es.sample(a_store(), a_store(), NOISE, 1, sign=x), "expected sign 1 or -1, got {}"),
    "sign of a context": (lambda x: es.perturbed(a_store(), NOISE, 1, sign=x), "expected sign 1, -1, 2 or -2, got {}"),
    "sign of an update": (lambda x: es.update(a_store(), NOISE, [1], [1.0], sign=x), "expected sign 1 or -1, got {}"),
    "sign in jit": (lambda x: es.virtual([jnp.zeros(3)], NOISE, 1, sign=x), "expected sign 1, -1, 2 or -2, got {}"),
    "perturbed": (
        lambda x: es.update(a_store(), NOISE, [1], [1.0], perturbed=x),
        "expected perturbed in (0, 1, -1), got {}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("value", [True, np.True_], ids=["bool", "numpy"])
@pytest.mark.parametrize("name", [*WHOLE, *REAL])
def test_a_truth_value_is_no_number_for_any_setting(name, value):
    call, message = (WHOLE | REAL)[name]
    words = re.escape(message).replace(r"\{\}", "(True|np.True_)") + ".*; fix"
    with pytest.raises((TypeError, ValueError, IndexError), match=words):
        call(value)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "at"])
def test_a_float_is_no_integer_for_any_setting(name):
    call, message = WHOLE[name]
    words = re.escape(message).replace(r"\{\}", "1.0") + ".*; fix"
    with pytest.raises((TypeError, ValueError, IndexError), match=words):
        call(1.0)


@pytest.mark.parametrize("value", [True, np.True_, 2.0, "2", None, 0, -1, np.array([2])], ids=repr)
def test_a_number_of_threads_is_a_whole_number(value):
    before = threads()
    with pytest.raises(ValueError, match=r"expected a whole number of threads, 1 or more, got .*; fix: use set_thr"):
        set_threads(value)
    assert threads() == before
    set_threads(np.int64(before))


@pytest.mark.parametrize(
    "value", [True, math.nan, -1, -0.5, "2", None, 1j, 10**400, np.array([2.0])], ids=lambda x: str(x)[:9]
)
def test_seconds_to_wait_are_a_number_of_0_or_more(value):
    with pytest.raises(ValueError, match=r"expected seconds >= 0 to wait, got .*; fix: pass a number such as 10.0"):
        fs.waiting(value)


def test_an_integer_beyond_floats_is_out_of_range_and_no_other_error():
    huge = 10**400
    for call, message in (
        (lambda: fs.Layout.from_tree([1.0], align=huge), "align: expected a power of two in bytes, got 1000"),
        (lambda: a_population()[huge], "expected a member in 0 .. 3, got 1000"),
        (lambda: a_step(elite=huge), "expected elite in 0 .. 3, got 1000"),
        (lambda: a_store().layout.locate(huge), "expected an index in 0 .. 2, got 1000"),
        (lambda: fs.Normal(huge), "expected a scale > 0"),
        (lambda: es.Adam(a_store()).step(a_store(), huge), "expected a finite rate, got 1000"),
    ):
        with pytest.raises((ValueError, IndexError), match=message):
            call()


def test_numbers_of_other_types_are_taken_for_what_they_are():
    half = [np.float32(0.5), np.array(0.5), jnp.array(0.5), Fraction(1, 2)]
    assert {fs.Normal(x) for x in half} == {fs.Normal(0.5)} and {fs.Normal({"*": x}) for x in half} == {
        fs.Normal({"*": 0.5})
    }
    assert {ga.Bounds({"*": (-x, x)}) for x in half} == {ga.Bounds({"*": (-0.5, 0.5)})}
    for crossover, mutate in ((ga.Blend(x), ga.Sparse(NOISE, x)) for x in half):
        one, other = a_population(), a_population()
        for pop, cross, change in ((one, crossover, mutate), (other, ga.Blend(0.5), ga.Sparse(NOISE, 0.5))):
            ga.step(pop, [1, 2, 3, 4], seed=1, mutate=change, crossover=cross)
        assert one.buffer.tobytes() == other.buffer.tobytes()
    one, other = a_store(), a_store()
    gradient = fs.Store.from_tree({"w": np.ones(3, "f4")})
    es.Adam(one, beta1=np.float32(0.5)).step(gradient, jnp.array(0.5))
    es.Adam(other, beta1=0.5).step(gradient, 0.5)
    assert one.buffer.tobytes() == other.buffer.tobytes() != a_store().buffer.tobytes()
