"""Functions of one's own as operators: what can be compiled, and what is refused before anything is compiled."""

import functools
import re

import numpy as np
import pytest

import flatstore as fs
from flatstore import ga, kernels


class Mix:
    """An object that can be called, and has a method: neither can be compiled."""

    def __call__(self, one, other, draw):
        return one

    def method(self, one, other, draw):
        return one


def mix(one, other, draw):
    return one + other


compiled_mix = kernels.compiled(mix)


@pytest.mark.parametrize(("kind", "names"), [(ga.PerGene, "a, b, draw"), (ga.Mutate, "gene, scale, draw")])
@pytest.mark.parametrize(
    "function",
    [functools.partial(mix), functools.partial(mix, 1, draw=0), Mix(), Mix().method, Mix, np.add, None, "mix"],
)
def test_what_cannot_be_compiled_is_refused_when_it_is_given(kind, names, function):
    words = (
        f"expected a function of ({names}) that can be compiled, got {function!r}; fix: define a function of three arg"
    )
    with pytest.raises(TypeError, match=re.escape(words)):
        kind(function)


@pytest.mark.parametrize("function", [mix, compiled_mix, lambda one, other, draw: compiled_mix(one, other, draw)])
def test_a_function_a_compiled_one_and_one_that_calls_compiled_ones_are_operators(function):
    pop = fs.Population.from_tree({"w": np.full(3, 2, "f4")}, 2)
    ga.step(pop, [0, 1], seed=1, mutate=None, crossover=ga.PerGene(function, bits=0))
    assert pop[0]["w"].tolist() == [4, 4, 4] and pop[1]["w"].tolist() == [2, 2, 2]


def test_a_builtin_function_is_an_operator():
    pop = fs.Population.from_tree({"w": np.full(3, 2, "f4")}, 2)
    ga.step(pop, [0, 1], seed=1, mutate=ga.Mutate(max, bits=1, table=[5, 5]))
    assert pop[0]["w"].tolist() == [5, 5, 5] and pop[1]["w"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", [ga.PerGene, ga.Mutate])
def test_a_number_of_bits_is_an_integer(kind):
    for bits in (True, 8.0, "8", None):
        with pytest.raises(ValueError, match=f"expected 0, 1, 8, 16 or 32 random bits per gene, got {bits}; fix"):
            kind(mix, bits=bits)
