"""Law 2 for lends: a view, or an error that names each leaf, the reason and the remedy."""

import jax
import ml_dtypes
import numpy as np
import pytest

import flatstore as fs

try:
    enable_x64 = jax.enable_x64
except AttributeError:  # before jax 0.8
    from jax.experimental import enable_x64


def message_of(store, **keywords):
    with pytest.raises(BufferError) as caught, store.lend(**keywords):
        pass
    store.flat[:] = 0  # the store is not left lent
    return str(caught.value)


def test_a_packed_layout_names_every_misaligned_leaf():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4"), "b": np.zeros(5, "f4"), "c": np.zeros(2, "f4")}, align=1)
    message = message_of(store)
    assert message.startswith("2 leaves that JAX cannot view without a copy:")
    assert "'b': expected a start at a multiple of 64 bytes, got 12 bytes past one; fix: " in message
    assert "'c': expected a start at a multiple of 64 bytes, got 32 bytes past one; fix: " in message


def test_strided_leaves_of_a_population_in_member_order_are_refused():
    pop = fs.Population.from_tree({"a": np.zeros(16, "f4"), "b": np.zeros(16, "f4")}, 4, order="member")
    with pytest.raises(BufferError, match=r"2 leaves .*\n.*'a': expected contiguous bytes.*order='leaf'"), pop.lend():
        pass


def test_a_member_is_lent_only_where_it_happens_to_be_aligned():
    pop = fs.Population.from_tree({"a": np.zeros(3, "f4")}, 32)
    with pytest.raises(BufferError, match=r"'a': expected a start.*got 12 bytes past one.*copy\(\)"), pop[1].lend():
        pass
    with pop[16].lend() as tree:
        assert tree["a"].shape == (3,)


@pytest.mark.parametrize("dtype", ["int64", "float64", "complex128"])
def test_a_64_bit_leaf_needs_x64(dtype):
    store = fs.Store.from_tree({"a": np.zeros(3, dtype), "b": np.zeros(3, "f4")}, trainable="b")
    assert f"'a': expected a dtype of at most 32 bits while jax_enable_x64 is off, got {dtype}; fix: " in message_of(
        store
    )
    with enable_x64(True), store.lend() as tree:
        assert tree["a"].dtype == dtype


def test_a_dtype_that_jax_does_not_have():
    store = fs.Store.from_tree({"a": np.zeros(3, np.longdouble), "b": np.zeros(3, "f4")}, trainable="b")
    assert "'a': expected a dtype that JAX has" in message_of(store)


def test_lends_of_every_16_and_8_bit_float_that_jax_has():
    names = ["bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"]
    for name in [*names, "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]:
        values = np.array([1, 2, 4], getattr(ml_dtypes, name))
        store = fs.Store.from_tree({"a": values})
        with store.lend() as tree:
            assert tree["a"].dtype == values.dtype
            assert np.asarray(tree["a"]).tobytes() == values.tobytes()


def test_only_another_library_than_jax_is_an_error_with_the_remedy():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4")})
    with pytest.raises(ValueError, match=r"expected 'jax', got 'torch' .*wrap or adopt.*fix"):
        store.lend("torch")
    with pytest.raises(ValueError, match="expected 'jax', got 'cupy'; fix"):
        store.alias("cupy")


def test_an_only_that_matches_nothing_is_a_slip():
    store = fs.Store.from_tree({"a": np.zeros(3, "f4")})
    with pytest.raises(ValueError, match=r"only: expected globs that match a leaf, got 'b'; fix"):
        store.lend(only="b")
