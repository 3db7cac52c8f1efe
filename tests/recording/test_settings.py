"""Settings as JSON: what two calls have in common comes out the same, and what differs is named."""

import functools
import json
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flatstore as fs
from flatstore import ga
from flatstore.recording.settings import described, differences


def half(one, other, draw):
    return one


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.array(2.5), 2.5),
        (float("-inf"), "-inf"),
        (np.float32("nan"), "nan"),
        (jnp.array(3), 3),
        (jnp.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (Decimal("0.5"), 0.5),
        (np.True_, "numpy.bool"),
        ({"a": (1, None)}, {"a": [1, None]}),
        (fs.Normal({"b": 0, "*": 0.2}), {"kind": "Normal", "scale": [["b", 0.0], ["*", 0.2]], "bound": 32.0}),
        (ga.Sparse(fs.Normal(1), 0.1), {"kind": "Sparse", "noise": described(fs.Normal(1)), "rate": 0.1}),
        (fs.es.centred_ranks, "centred_ranks"),
        (fs.kernels.compiled(half), f"{__name__}.half"),
        (
            functools.partial(half, 1, other=2),
            {
                "kind": "functools.partial",
                "function": f"{__name__}.half",
                "arguments": [1],
                "keywords": {"other": 2},
            },
        ),
        (object(), "builtins.object"),
    ],
)
def test_a_setting_is_described_as_json(value, expected):
    assert described(value) == expected
    assert json.loads(json.dumps(described(value), allow_nan=False)) == described(value)


def test_arrays_are_described_by_what_is_in_them():
    one, same, other = np.arange(6.0), np.arange(12.0)[::2] / 2, np.arange(1.0, 7)
    assert described(one) == described(same) != described(other)
    assert described(one)["shape"] == [6]


def test_two_objects_of_the_same_kind_and_fields_are_the_same_setting():
    for make in (lambda: ga.PerGene(half, 8, np.arange(256.0)), lambda: ga.Bounds({"*": (0, np.inf)}), ga.Tournament):
        assert described(make()) == described(make())
    assert described(ga.Tournament(2)) != described(ga.Tournament(4))


def test_differences_name_each_setting_as_deep_as_it_is():
    there = {"seed": [1], "noise": {"kind": "Normal", "scale": 0.1}, "rate": 1.0}
    here = {"seed": [1], "noise": {"kind": "Normal", "scale": 0.2}, "chunk": None}
    assert list(differences(there, here)) == [
        "chunk: nothing in the run, None in the call",
        "noise.scale: 0.1 in the run, 0.2 in the call",
        "rate: 1.0 in the run, nothing in the call",
    ]
    assert not list(differences(there, dict(there)))
