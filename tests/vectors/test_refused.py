"""What destructure and rebuild refuse, and how they say so."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore.vectors import custom_call
from tests.example_trees import says, tree


@pytest.fixture
def rebuild():
    return fs.destructure(tree())[1]


@pytest.mark.parametrize(
    "vector, got",
    [
        (np.zeros(3), "float64[3]"),
        (np.zeros((10, 3)), "float64[10,3]"),
        (np.zeros(()), "float64[]"),
        ([0.0] * 10, "list"),
        (None, "NoneType"),
        (tree(), "dict"),
    ],
)
def test_a_vector_of_another_length_or_none_at_all(rebuild, vector, got):
    for call in (rebuild, rebuild.items):
        with pytest.raises(fs.StructureError) as error:
            call(vector)
        says(error, "'vector'", "shape (10,) or (P, 10)", got)


def test_a_vector_of_another_length_inside_jit(rebuild):
    with pytest.raises(fs.StructureError) as error:
        jax.jit(rebuild)(np.zeros(9))
    says(error, "(10,)", "float32[9]")


def test_complex_numbers_for_an_all_real_tree(rebuild):
    with pytest.raises(fs.StructureError) as error:
        rebuild(np.zeros(10, "c8"))
    says(error, "real numbers like float32", "complex64[10]", "real part")


def test_a_vector_that_holds_no_numbers(rebuild):
    with pytest.raises(TypeError) as error:
        rebuild(np.array(["x"] * 10))
    says(error, "'vector'", "array of numbers")


def test_a_donated_vector():
    flat, rebuild = fs.destructure({"w": jnp.ones(3)})
    jax.jit(lambda v: v + 1, donate_argnums=0)(flat)
    with pytest.raises(ValueError) as error:
        rebuild(flat)
    says(error, "'vector'", "deleted or donated")


def test_a_donated_leaf():
    w = jnp.ones(3)
    rebuild = fs.destructure({"a": {"w": w}})[1]
    w.delete()
    for call in (fs.destructure, rebuild.flatten):
        with pytest.raises(ValueError) as error:
            call({"a": {"w": w}})
        says(error, "'a/w'", "deleted or donated")


def test_something_that_rode_along_and_was_donated_since():
    count = jnp.int32(0)
    flat, rebuild = fs.destructure({"opt": {"count": count}, "w": jnp.ones(3)})
    count.delete()
    with pytest.raises(ValueError) as error:
        rebuild(flat)
    says(error, "'opt/count'", "deleted or donated", "destructure")


def test_a_repeated_jax_array_until_the_caller_decides():
    w = jnp.ones(3)
    with pytest.raises(ValueError) as error:
        fs.destructure({"a": w, "b": w})
    says(error, "'b' is the array at 'a'", "tied=True", "tied=False")


def test_tied_leaves_of_which_only_one_trains():
    w = jnp.ones(3)
    with pytest.raises(ValueError) as error:
        fs.destructure({"a": w, "b": w}, tied=True, trainable="a")
    says(error, "'a'", "'b'", "trainable")


@pytest.mark.parametrize("trainable", ["nothing", ["w", "n"]])
def test_a_glob_that_matches_no_floating_leaf(trainable):
    with pytest.raises(ValueError) as error:
        fs.destructure({"n": 3, "w": jnp.ones(2)}, trainable=trainable)
    says(error, "trainable", "'w'")


@pytest.mark.parametrize("tree", [{"n": 3, "k": np.arange(2)}, {"name": "x"}, {}])
def test_globs_where_no_leaf_is_floating_or_complex(tree):
    with pytest.raises(ValueError) as error:
        fs.destructure(tree, trainable="*")
    says(error, "trainable: ", "got '*'", "there is no", "leaf to match: leave trainable out")
    assert "[]" not in str(error.value) and fs.destructure(tree)[0].size == 0


def test_shapes_without_data():
    with pytest.raises(TypeError) as error:
        fs.destructure({"w": jax.ShapeDtypeStruct((2,), np.float32)})
    says(error, "'w'", "only its shape")


def test_arrays_that_hold_no_numbers():
    with pytest.raises(TypeError) as error:
        fs.destructure({"w": np.array(["x"], object)})
    says(error, "'w'", "object")


def test_paths_that_clash():
    with pytest.raises(ValueError) as error:
        fs.destructure(Clash())
    says(error, "'x'", "both")


class Clash:
    """A node whose two children share a name."""


jax.tree_util.register_pytree_with_keys(
    Clash,
    lambda _: (((jax.tree_util.DictKey("x"), 1.0), (jax.tree_util.GetAttrKey("x"), 2.0)), None),
    lambda _, children: Clash(),
)


def test_a_population_is_many_models():
    with pytest.raises(TypeError) as error:
        fs.destructure(fs.Population.from_tree(tree(), 3))
    says(error, "Population", "population[0]")


def test_a_tree_that_changed_its_structure_is_told_with_every_leaf(rebuild):
    changed = {"a": {"b": np.ones(4, "f4"), "w": np.ones((2, 3), "c8")}, "extra": np.ones(2), "n": 1}
    with pytest.raises(fs.StructureError) as error:
        rebuild.flatten(changed)
    assert [difference.path for difference in error.value.differences] == ["a/b", "a/w", "z", "extra"]
    says(error, "float32[3], got float32[4]", "float32[], got nothing", "nothing, got float64[2]", "destructured")


def test_a_leaf_that_is_no_number_any_more(rebuild):
    for value, got in ((None, "got nothing"), ("text", "got a str")):
        with pytest.raises(fs.StructureError) as error:
            rebuild.flatten(tree() | {"z": value})
        says(error, "'z'", got)


def test_a_word_of_ties_that_is_none():
    with pytest.raises(TypeError) as error:
        fs.destructure(tree(), tied="yes")
    says(error, "tied: expected True, False, None or {path: home's path}, got 'yes'", "tied=True")


def test_names_of_a_tied_leaf_that_say_different_things():
    w = jnp.ones(2)
    rebuild = fs.destructure({"a": w, "b": w}, tied=True)[1]
    with pytest.raises(fs.StructureError) as error:
        rebuild.flatten({"a": w, "b": 2 * w})
    says(error, "'b'", "the values of 'a'", "tied=False")


def test_an_index_outside_of_the_vector(rebuild):
    for index in (-1, 10):
        with pytest.raises(IndexError) as error:
            rebuild.locate(index)
        says(error, "0 .. 9", str(index))
    with pytest.raises(IndexError) as error:
        fs.destructure({})[1].locate(0)
    says(error, "size 0")


def test_64_bit_leaves_where_jax_has_none():
    with jax.enable_x64(True):
        flat, rebuild = fs.destructure({"w": np.ones(2)})
        assert flat.dtype == np.float64 and rebuild(np.ones(2, "f4"))["w"].dtype == np.float64
    with pytest.raises(ValueError) as error:
        rebuild(np.ones(2))
    says(error, "64-bit", "float64", "jax_enable_x64")
    assert fs.destructure({"w": np.ones(2)})[0].dtype == np.float32


def test_a_failure_inside_of_xla_is_an_error_not_garbage(monkeypatch):
    if not custom_call.available():
        pytest.skip("this XLA has another foreign function interface")
    flat, rebuild = fs.destructure({"w": jnp.ones(11)})

    def interrupted(*addresses):
        raise KeyboardInterrupt

    monkeypatch.setattr(custom_call, "copy_parts", interrupted)
    with pytest.raises(jax.errors.JaxRuntimeError, match="flatstore: KeyboardInterrupt"):
        rebuild(flat)


OTHER_VERSION = """
import numpy as np, flatstore as fs
from flatstore.vectors import custom_call
custom_call._VERSION = 9 << 32  # one that no XLA has
assert not custom_call.available()
flat, rebuild = fs.destructure({"b": np.ones(3, "f4"), "w": np.zeros((2, 2), "f4")})
assert rebuild(2 * flat)["b"].tolist() == [2, 2, 2] and rebuild(flat)["w"].shape == (2, 2)
"""


def test_where_xla_refuses_the_custom_call_a_rebuild_is_a_split():
    subprocess.run([sys.executable, "-c", OTHER_VERSION], check=True, timeout=120)


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, flatstore as fs
first, second = jax.devices()
flat, rebuild = fs.destructure({"n": 1, "w": jax.device_put(jnp.ones((2, 2)), second), "x": np.ones(1, "f4")})
assert flat.devices() == {second}, flat.devices()
assert rebuild(flat)["w"].devices() == {second} and rebuild(flat)["w"].committed
assert rebuild(jax.device_put(flat, first))["w"].devices() == {first}
try:
    fs.destructure({"a": jax.device_put(1.0, first), "b": jax.device_put(2.0, second)})
except fs.StructureError as error:
    print(error)
mesh = jax.sharding.Mesh(jax.devices(), "x")
sharded = jax.device_put(flat[:4], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
assert fs.destructure({"w": jnp.ones((2, 2))})[1](sharded)["w"].tolist() == [[1, 1], [1, 1]]
"""


def test_the_vector_lives_on_the_leaves_device_and_mixed_devices_raise():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for word in ("'b'", "expected an array on cpu:0, as 'a'", "got one on cpu:1", "fix: ", "device_put"):
        assert word in done.stdout, done.stdout
