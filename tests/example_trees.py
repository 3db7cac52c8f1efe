"""Random pytrees of NumPy arrays, and plain NumPy oracles for them."""

from typing import Any, NamedTuple

import jax
import numpy as np
from hypothesis import strategies as st

DTYPES = (
    *("float16", "float32", "float64", "bfloat16", "float8_e4m3fn"),
    *("int8", "int32", "int64", "uint8", "bool", "complex64"),
)
KEY = jax.random.key(7)
F4 = np.float32


def tree(value: float = 0.0) -> dict[str, Any]:
    """A small tree: two trainable leaves in a node, an integer and a 0-d leaf, all of one value."""
    return {"a": {"b": np.full(3, value, F4), "w": np.full((2, 3), value, F4)}, "n": np.int32(value), "z": F4(value)}


def vector(value: float = 0.0) -> np.ndarray:
    """The packed vector of `tree`."""
    return np.full(11, value, F4)


class Pair(NamedTuple):
    """A node that is neither dict nor list."""

    left: Any
    right: Any


def act(x: Any) -> Any:
    """A function that rides along."""
    return x


def bits(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Random bytes: NaNs with payloads, negative zeros and subnormals come up too."""
    kind = np.dtype(dtype)
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * kind.itemsize)
    if kind.kind == "b":
        return (np.frombuffer(raw, np.uint8) & 1).astype(bool).reshape(shape)
    return np.frombuffer(raw, kind).copy().reshape(shape)


def small(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Zeros and ones: every dtype holds them."""
    return np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)


def laid_out(array: np.ndarray, how: str) -> np.ndarray:
    """The same values in memory of another order."""
    if how == "fortran":
        return array.copy(order="F")
    if how == "strided":
        out = np.zeros((*array.shape, 2), array.dtype)[..., 0]
        out[...] = array
        return out
    if how == "reversed" and array.ndim:
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return array


@st.composite
def arrays(draw: Any, dtypes: Any = DTYPES, values: Any = bits) -> np.ndarray:
    """An array of up to three axes; 0-d and size-0 ones too."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    array = values(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**16)))
    return laid_out(array, draw(st.sampled_from(["c", "fortran", "strided", "reversed"])))


def numeric(tree: Any) -> list[np.ndarray]:
    """The arrays of a tree in JAX's order."""
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]


names = st.text("ab/~1", min_size=1, max_size=3)


def trees(dtypes: Any = DTYPES, values: Any = bits, riders: bool = True) -> st.SearchStrategy[Any]:
    """A pytree with at least one array, and containers of all kinds, empty ones too."""
    leaf = arrays(dtypes, values)
    nothing = st.sampled_from([None, {}, [], ()])
    rides = st.sampled_from(["relu", act, KEY])
    inner = st.recursive(
        leaf | leaf | nothing | rides if riders else leaf | leaf | nothing,
        lambda child: st.one_of(
            st.dictionaries(names, child, min_size=1, max_size=4),
            st.dictionaries(st.integers(0, 20), child, min_size=1, max_size=4),
            st.lists(child, min_size=1, max_size=4),
            st.lists(child, min_size=1, max_size=3).map(tuple),
            st.builds(Pair, child, child),
        ),
        max_leaves=6,
    )
    return leaf | st.builds(Pair, leaf, inner) | st.lists(inner | leaf, min_size=1, max_size=4).filter(numeric)


def same_bits(a: Any, b: Any) -> bool:
    """Equal to the bit, NaNs included, with the same shape and dtype."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def gap_bytes(layout: Any, buffer: np.ndarray) -> np.ndarray:
    """The bytes of a store that belong to no leaf."""
    free = np.ones(layout.nbytes, bool)
    for leaf in layout.leaves:
        free[leaf.offset : leaf.offset + leaf.nbytes] = False
    return buffer[free]


def says(error: Any, *words: str) -> None:
    """The message has the house's form (expected, got, fix) and these words."""
    text = str(error.value)
    missing = [word for word in ("expected", "got", "fix:", *words) if word not in text]
    assert not missing, f"{missing} not in: {text}"
