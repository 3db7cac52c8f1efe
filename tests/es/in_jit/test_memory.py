"""What `es.virtual` and `es.updated` take beside the parameters: as `es.virtual` says, in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es

NOISE, SIZE = fs.Normal(0.02), 1 << 22
WIDTH, LAYERS, SEEDS, INPUTS = 256, 6, 64, 16
SHAPES = {
    f"layer_{i}": {"b": jax.ShapeDtypeStruct((WIDTH,), "f4"), "w": jax.ShapeDtypeStruct((WIDTH, WIDTH), "f4")}
    for i in range(LAYERS)
}
STACKED = {"layers": jax.tree.map(lambda x: jax.ShapeDtypeStruct((LAYERS, *x.shape), x.dtype), SHAPES["layer_0"])}
LAYOUT, STACKED_LAYOUT = fs.Layout.from_tree(SHAPES), fs.Layout.from_tree(STACKED)
LEAF = 4 * WIDTH * WIDTH
MODEL = LAYERS * LEAF


def temporaries(function, *arguments, **keywords):
    compiled = jax.jit(function, **keywords).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("noise", "dtype", "shape"),
    [
        (NOISE, "f4", (1024, 4096)),
        (NOISE, "f2", (SIZE,)),
        (NOISE, jnp.bfloat16, (SIZE,)),
        (fs.Rademacher(0.1), "f4", (SIZE,)),
    ],
)
def test_a_donated_perturbation_takes_none(noise, dtype, shape):
    tree, seed = {"w": jax.ShapeDtypeStruct(shape, dtype)}, jax.ShapeDtypeStruct((2,), "u4")
    assert temporaries(lambda x, seed: es.virtual(x, noise, seed), tree, seed, donate_argnums=0) == 0
    assert temporaries(lambda x: es.virtual(x, noise, 7), tree, donate_argnums=0) == 0


def test_jax_random_normal_takes_four_times_the_parameters():
    x = jax.ShapeDtypeStruct((SIZE,), "f4")
    add = lambda x: x + 0.02 * jax.random.normal(jax.random.key(0), x.shape)  # noqa: E731
    assert temporaries(add, x, donate_argnums=0) >= 4 * 4 * SIZE


@pytest.mark.long
def test_an_update_takes_the_sums_of_a_chunk_whatever_the_size_the_leaves_and_the_seeds():
    taken = []
    for leaves, size, seeds in ((1, SIZE, 4), (1, SIZE // 4, 4), (6, 1 << 16, 4), (1, SIZE, 64)):
        tree = {f"w{i}": jax.ShapeDtypeStruct((size,), "f4") for i in range(leaves)}
        weighted = es.weighted_seeds(NOISE, fs.seeds(1, seeds), np.linspace(-1, 1, seeds))
        taken.append(temporaries(lambda x, weighted: es.updated(x, NOISE, weighted), tree, weighted, donate_argnums=0))
    assert max(taken) <= 32 * (1 << 16)


def all_at_once(params, seed, x):
    params = es.virtual(params, NOISE, seed)
    for layer in params.values():
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x.sum()


def layer_by_layer(params, seed, x):
    for name in params:
        layer = es.virtual(params[name], NOISE, seed, layout=LAYOUT, within=name, after=x)
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x.sum()


def scanned(params, seed, x):
    def step(x, layer):
        i, stacked = layer
        layer = es.virtual(stacked, NOISE, seed, layout=STACKED_LAYOUT, within="layers", at=i)
        return jnp.tanh(x @ layer["w"] + layer["b"]), None

    return jax.lax.scan(step, x, (jnp.arange(LAYERS), params["layers"]))[0].sum()


FORMS = {
    "one member": lambda f: lambda params, seeds, x: f(params, seeds[0], x),
    "map": lambda f: lambda params, seeds, x: jax.lax.map(lambda seed: f(params, seed, x), seeds),
    "map by 16": lambda f: lambda params, seeds, x: jax.lax.map(lambda seed: f(params, seed, x), seeds, batch_size=16),
    "vmap": lambda f: lambda params, seeds, x: jax.vmap(lambda seed: f(params, seed, x))(seeds),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("form", "net", "most"),
    [
        ("one member", all_at_once, 1.01 * MODEL),
        ("one member", layer_by_layer, 1.15 * LEAF),
        ("one member", scanned, 1.15 * LEAF),
        ("map", all_at_once, 1.01 * MODEL),
        ("map", layer_by_layer, 1.15 * LEAF),
        ("map", scanned, 1.15 * LEAF),
        ("map by 16", all_at_once, 16.5 * MODEL),
        ("map by 16", layer_by_layer, 16 * 1.2 * LEAF),
        ("vmap", all_at_once, 65 * MODEL),
        ("vmap", layer_by_layer, 64 * 1.2 * LEAF),
        ("vmap", scanned, 64 * 1.15 * LEAF),
    ],
)
def test_the_leaves_that_are_alive_at_a_time_are_as_few_as_the_docstring_says(form, net, most):
    arguments = jax.ShapeDtypeStruct((SEEDS, 2), "u4"), jax.ShapeDtypeStruct((INPUTS, WIDTH), "f4")
    assert temporaries(FORMS[form](net), STACKED if net is scanned else SHAPES, *arguments) <= most


@pytest.mark.long
def test_the_forms_compute_the_same():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype("f4") / 16, SHAPES)
    stacked = {"layers": jax.tree.map(lambda *layers: np.stack(layers), *params.values())}
    seeds, x = es.words(fs.seeds(1, 3)), rng.standard_normal((INPUTS, WIDTH)).astype("f4")
    once, ordered = [jax.jit(FORMS["map"](net))(params, seeds, x) for net in (all_at_once, layer_by_layer)]
    assert np.allclose(once, ordered, rtol=1e-5)
    both = [jax.jit(FORMS[form](scanned))(stacked, seeds, x) for form in ("map", "vmap")]
    assert np.allclose(*both, rtol=1e-4)
