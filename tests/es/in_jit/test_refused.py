"""What `es.virtual`, `es.updated` and their kin refuse: each with an error that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE = fs.Normal(0.02)
TREE = {"a": jnp.zeros(3), "layers": {"w": jnp.zeros((4, 5, 6))}}
LAYOUT = fs.Layout.from_tree(TREE)
SLICE = {"w": jnp.zeros((5, 6))}
WEIGHTED = es.weighted_seeds(NOISE, [1, 2], [0.5, 1])

BAD = [
    ({"seed": -1}, ValueError, r"expected a seed in 0 .. 2\*\*64 - 1, got -1; fix"),
    (
        {"seed": jnp.int32(5)},
        ValueError,
        r"two words, uint32 of shape \(2,\), got int32\[\].*es.words\(seeds\) outside",
    ),
    ({"seed": np.array([1, 2], np.uint64)}, ValueError, r"uint32 of shape \(2,\), got uint64\[2\]; fix"),
    ({"seed": es.words([1, 2])}, ValueError, r"uint32 of shape \(2,\), got uint32\[2,2\]; fix: .* one row"),
    ({"sign": 3}, ValueError, "expected sign 1, -1, 2 or -2, got 3; fix"),
    ({"noise": fs.Normal(1e-6)}, ValueError, "'a': expected a scale of 3.05e-05 .. 7.28 for the bound 32, got 1e-06"),
    ({"noise": fs.Normal({"b": 1, "*": 1})}, ValueError, "scale: expected globs that match a leaf, got 'b'; fix"),
    ({"params": {**TREE, "a": jnp.zeros(3, jnp.complex64)}}, ValueError, "'a': expected a floating leaf"),
    ({"params": {**TREE, "a": jnp.zeros(3, "float8_e4m3fn")}}, ValueError, "'a': expected a leaf of float32, .*; fix"),
    ({"params": {**TREE, "a": np.zeros(3)}}, ValueError, "'a': expected a dtype that JAX has, got float64 with 64-bit"),
    ({"params": TREE["layers"], "layout": LAYOUT}, fs.StructureError, "'?a'?.*nothing"),
    ({"params": {**TREE, "b": jnp.zeros(3)}, "layout": LAYOUT}, fs.StructureError, "b.*within="),
    ({"params": SLICE, "layout": LAYOUT, "within": "layer"}, KeyError, "got 'layer'; fix"),
    ({"params": SLICE, "layout": LAYOUT, "within": "layers"}, fs.StructureError, r"layers/w.*this array begins as at="),
    ({"params": SLICE, "layout": LAYOUT, "within": "layers", "at": 4}, fs.StructureError, r"at=\(4,\) now"),
    ({"params": SLICE, "layout": LAYOUT, "within": "layers", "at": -1}, fs.StructureError, r"at=\(-1,\) now"),
    ({"params": SLICE, "layout": LAYOUT, "within": "layers", "at": (0, 0, 0, 0)}, fs.StructureError, "layers/w"),
    (
        {"params": SLICE, "layout": LAYOUT, "within": "layers", "at": 0.5},
        TypeError,
        "at: expected integers, got 0.5; fix",
    ),
    ({"params": SLICE, "layout": LAYOUT, "within": "layers", "at": jnp.arange(2)}, TypeError, "at: expected integers"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_a_bad_argument_of_virtual_is_an_error(change, kind, message):
    arguments = {"params": TREE, "noise": NOISE, "seed": 7} | change
    with pytest.raises(kind, match="(?s)" + message):
        es.virtual(arguments.pop("params"), arguments.pop("noise"), arguments.pop("seed"), **arguments)


def test_a_part_of_another_dtype_or_shape_is_an_error_that_names_it():
    for part in (jnp.zeros((5, 6), jnp.bfloat16), jnp.zeros((5, 7)), jnp.zeros((1, 1, 5, 6))):
        with pytest.raises(fs.StructureError, match="(?s)layers/w.*float32.4,5,6"):
            es.virtual({"w": part}, NOISE, 7, layout=LAYOUT, within="layers", at=0)


def test_a_repeated_array_is_an_error_unless_a_layout_says_whether_it_is_tied():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="expected each jax.Array once"):
        es.virtual({"a": x, "b": x}, NOISE, 7)
    layout = fs.Layout.from_tree({"a": x, "b": x}, tied=True)
    made = es.virtual({"a": x, "b": x}, NOISE, 7, layout=layout)
    assert (made["a"] == made["b"]).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_leaves_have_no_grid(dtype):
    tree = {"w": jnp.zeros(3, dtype)}
    for verb in (es.snapped, es.on_grid):
        with pytest.raises(ValueError, match="'w': expected a float32 or float64 leaf, which has a grid, got .*; fix"):
            verb(tree, NOISE)
    with pytest.raises(ValueError, match="'w': expected a float32 or float64 leaf on a grid to take back to the bit"):
        es.updated(tree, NOISE, WEIGHTED, sign=-1)


def test_a_bad_argument_of_updated_is_an_error():
    with pytest.raises(ValueError, match="expected sign 1 or -1, got 2; fix"):
        es.updated(TREE, NOISE, WEIGHTED, sign=2)
    with pytest.raises(ValueError, match="'a': expected .* on a grid to take back to the bit, got exact=False; fix"):
        es.updated(TREE, NOISE, WEIGHTED, sign=-1, exact=False)
    with pytest.raises(TypeError, match="expected weighted seeds, got tuple; fix: es.weighted_seeds"):
        es.updated(TREE, NOISE, tuple(WEIGHTED))
    for change in (
        {"whole": WEIGHTED.whole.astype(np.float32)},
        {"seeds": WEIGHTED.seeds[:1]},
        {"key": WEIGHTED.key[:1]},
        {"point": WEIGHTED.point[None]},
    ):
        with pytest.raises(TypeError, match=r"as es.weighted_seeds makes them, got .*; fix: pass them to jit as they"):
            es.updated(TREE, NOISE, WEIGHTED._replace(**change))


def test_an_array_too_large_for_the_places_that_jax_counts_by_is_an_error():
    layout = fs.Layout.from_tree({"w": jax.ShapeDtypeStruct((2**31,), "f4")})
    with pytest.raises(
        ValueError, match="'w': expected fewer than 2..31 parameters, got 2147483648; fix: split the leaf, and"
    ):
        jax.eval_shape(
            lambda x: es.updated(x, NOISE, WEIGHTED, layout=layout), {"w": jax.ShapeDtypeStruct((2**31,), "f4")}
        )


def test_bad_seeds_and_weights_are_errors_on_the_host():
    with pytest.raises(ValueError, match="expected a vector of seeds"):
        es.words([0.5])
    with pytest.raises(ValueError, match="expected finite weights"):
        es.weighted_seeds(NOISE, [1], [np.nan])
    with pytest.raises(ValueError, match="expected a weight for each seed"):
        es.weighted_seeds(NOISE, [1, 2], [1.0])
