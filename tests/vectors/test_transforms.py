"""rebuild inside JAX's transformations: the flat gradient is the nested one, and nothing is compiled for each leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore.vectors import custom_call
from flatstore.vectors.packing import _split, _unpack
from tests.example_trees import same_bits

X = np.linspace(-1, 1, 8, dtype="f4").reshape(4, 2)


def net():
    """A network of two layers, nine parameters, and what is no parameter."""
    key = jax.random.split(jax.random.key(0), 4)
    layer = [jax.random.normal(k, shape) for k, shape in zip(key, [(2,), (2, 2), (1,), (2, 1)], strict=True)]
    return {"act": jnp.tanh, "l0": {"b": layer[0], "w": layer[1]}, "l1": {"b": layer[2], "w": layer[3]}, "n": 3}


def loss(params, x=X):
    hidden = params["act"](x @ params["l0"]["w"] + params["l0"]["b"])
    return ((hidden @ params["l1"]["w"] + params["l1"]["b"]) ** 2).mean()


def nested_gradient(tree):
    def of_layers(layers):
        return loss(tree | layers)

    return jax.grad(of_layers)({k: tree[k] for k in ("l0", "l1")})


@pytest.fixture
def pair():
    return fs.destructure(net())


def packed(gradient):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_the_flat_gradient_is_the_nested_one(pair, wrap):
    flat, rebuild = pair
    value, gradient = wrap(jax.value_and_grad(lambda v: loss(rebuild(v))))(flat)
    assert np.allclose(gradient, packed(nested_gradient(net())), rtol=1e-6, atol=1e-7)
    assert np.isclose(value, loss(net())) and gradient.dtype == flat.dtype
    assert list(rebuild(gradient)) == list(net()) and same_bits(rebuild.flatten(rebuild(gradient)), gradient)


@pytest.mark.long
def test_the_hessian_over_all_parameters_is_one_call(pair):
    flat, rebuild = pair
    hessian = jax.hessian(lambda v: loss(rebuild(v)))(flat)
    step = 1e-2
    gradient = jax.jit(jax.grad(lambda v: loss(rebuild(v))))
    rows = [(gradient(flat + step * e) - gradient(flat - step * e)) / (2 * step) for e in jnp.eye(9)]
    assert hessian.shape == (9, 9) and np.allclose(hessian, rows, atol=2e-3)
    assert np.allclose(hessian, hessian.T, atol=1e-6) and np.abs(hessian - np.diag(np.diag(hessian))).max() > 0.1


def test_a_tangent_of_the_vector_is_the_tangent_of_the_leaves(pair):
    flat, rebuild = pair
    tangent = jnp.arange(9.0)
    _, out = jax.jvp(lambda v: rebuild(v)["l0"]["w"], (flat,), (tangent,))
    assert same_bits(out, rebuild(tangent)["l0"]["w"])
    _, back = jax.vjp(lambda v: dict(rebuild.items(v)), flat)
    assert back(dict(rebuild.items(tangent)))[0].tolist() == tangent.tolist()


def test_destructure_itself_is_differentiable_and_works_inside_jit():
    tree = {"b": jnp.ones(2), "n": jnp.int32(3), "w": jnp.ones((2, 2), "bfloat16")}

    @jax.jit
    def doubled(tree):
        flat, rebuild = fs.destructure(tree)
        return rebuild(2 * flat)

    out = doubled(tree)
    assert out["w"].dtype == jnp.bfloat16 and out["w"].tolist() == [[2, 2], [2, 2]] and out["n"] == 3
    gradient = jax.grad(lambda b: (fs.destructure(tree | {"b": b})[0] ** 2).sum())(tree["b"])
    assert gradient.tolist() == [2, 2]


def test_vmap_over_a_matrix_is_the_batched_rebuild(pair):
    flat, rebuild = pair
    matrix = flat + jnp.arange(5.0)[:, None]
    by_vmap = jax.vmap(lambda v: dict(rebuild.items(v)))(matrix)
    for path, leaf in rebuild.items(matrix):
        assert same_bits(leaf, by_vmap[path]) and leaf.shape[0] == 5
    losses = jax.vmap(lambda v: loss(rebuild(v)))(matrix)
    assert np.allclose(losses, [loss(rebuild(row)) for row in matrix], rtol=1e-5)


def test_training_in_a_scan_is_training_in_a_loop(pair):
    flat, rebuild = pair

    def step(v, x):
        return v - 0.1 * jax.grad(lambda u: loss(rebuild(u), x))(v), None

    batches = jnp.stack([X, 2 * X, -X])
    scanned, _ = jax.lax.scan(step, flat, batches)
    looped = flat
    for x in batches:
        looped, _ = jax.jit(step)(looped, x)
    assert np.allclose(scanned, looped, rtol=1e-5, atol=1e-6)


def test_a_constant_vector_inside_jit_is_a_part_of_the_program(pair):
    flat, rebuild = pair
    out = jax.jit(lambda x: rebuild(flat)["l0"]["w"] * x)(2.0)
    assert same_bits(out, 2 * rebuild(flat)["l0"]["w"])


def test_integer_leaves_are_constants_of_the_gradient_and_mixed_dtypes_have_one():
    flat, rebuild = fs.destructure({"c": np.full(1, 1j, "c8"), "h": np.ones(2, "f2"), "n": np.arange(2)})
    gradient = jax.grad(lambda v: (rebuild(v)["h"] * rebuild(v)["n"]).sum().astype("f4") + abs(rebuild(v)["c"][0]) ** 2)
    assert np.allclose(gradient(flat), [-2j, 0, 1])


def many(leaves=50):
    return fs.destructure({f"l{i:03d}": jnp.full((i % 7, 3), i, ("float32", "bfloat16")[i % 2]) for i in range(leaves)})


def test_an_eager_rebuild_compiles_nothing_per_leaf():
    if not custom_call.available():
        pytest.skip("this XLA has another foreign function interface")
    flat, rebuild = many()
    text = _unpack.lower(rebuild.layout, flat).compile().as_text()
    assert text.count("custom_call_target") == 1 and text.count(" slice(") == 0
    assert text.count("fusion(") <= 2  # a conversion of the whole vector per dtype, at the most
    before = _unpack._cache_size()
    rebuild(flat), rebuild(2 * flat), many()[1](flat)  # noqa: B018
    assert _unpack._cache_size() <= before + 1


def test_inside_jit_the_way_back_is_one_split_and_its_gradient_one_concatenation():
    flat, rebuild = many()
    assert str(jax.make_jaxpr(lambda v: _split(rebuild.layout, v))(flat)).count("= split[") == 1
    gradient = jax.make_jaxpr(jax.grad(lambda v: sum(x.astype("f4").sum() for _, x in rebuild.items(v))))(flat)
    assert str(gradient).count("concatenate[") == 1 and "pad[" not in str(gradient)


def test_the_results_of_a_rebuild_may_be_donated(pair):
    flat, rebuild = pair
    w = rebuild(flat)["l0"]["w"]
    jax.jit(lambda x: x + 1, donate_argnums=0)(w)
    assert w.is_deleted() and not flat.is_deleted() and np.isfinite(np.asarray(flat)).all()
    pointer = flat.unsafe_buffer_pointer()
    assert jax.jit(lambda x: x + 1, donate_argnums=0)(flat).unsafe_buffer_pointer() == pointer
