"""What counts as a number: the leaves that live in a buffer, and how each is read as a NumPy array.

Numeric leaves are NumPy arrays and scalars, `jax.Array`s, torch tensors, Python numbers, shapes
(`jax.ShapeDtypeStruct`), and whatever else has a shape and a numeric dtype. What holds no numbers (functions, strings,
None, typed PRNG keys) *rides along*: it stays with the tree, takes no memory in the buffer and comes back unchanged.
What holds numbers in any other way is refused, so that they are not lost.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np

from flatstore.checks import repeats
from flatstore.layout.dtypes import belongs_to, is_numeric, is_torch_tensor, torch_dtype
from flatstore.layout.hidden_numbers import refuse_hidden
from flatstore.layout.masks import Array, refuse_mask
from flatstore.trees import in_words

_core: Any = jax.core
_jax_dtypes: Any = jax.dtypes


class Spec(NamedTuple):
    """The shape and dtype of a numeric leaf."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The number of bytes that an array of this kind takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


def is_deleted(array: jax.Array) -> bool:
    """Whether the array was deleted or donated away; a value being traced never is."""
    return not isinstance(array, _core.Tracer) and array.is_deleted()


def spec_of(value: Any, path: str) -> Spec | None:
    """The shape and dtype of a leaf, or None if it rides along. Nothing is copied or computed.

    Python numbers take the dtype that JAX gives them (float32 with 64-bit types off). `path` is for the error:
    raises `TypeError` for arrays that hold no numbers or are masked, arrays that NumPy has no dtype or shape for, torch
    modules and other objects that hold numbers, `ValueError` for a deleted `jax.Array` or a Python integer that does
    not fit.
    """
    if isinstance(value, np.ndarray):
        refuse_mask(value, path)
        if value.dtype == _jax_dtypes.float0:  # pyright: ignore[reportUnknownMemberType]
            return None  # what JAX gives as the gradient of an integer
        return _numeric_spec(value.shape, value.dtype, path)  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]
    if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
        return _python_spec(value, path)
    if isinstance(value, (str, bytes, type, ModuleType)):
        return None
    if isinstance(value, jax.Array):
        if is_deleted(value):
            raise ValueError(
                f"{path!r}: expected a jax.Array with its data, got one that was deleted or donated away; "
                "fix: pass the array that the donating call returned"
            )
    if belongs_to(value, "torch"):
        if is_torch_tensor(value):
            refuse_mask(value, path)
            return _torch_spec(value, path)
        if hasattr(value, "named_parameters"):
            raise TypeError(
                f"{path!r}: expected a tree of arrays, got the torch module {type(value).__name__}; "
                "fix: fs.adopt(module), or pass dict(module.named_parameters())"
            )
    try:
        spec = _claimed_spec(value)
    except Exception as error:  # whatever its properties raise
        if not repeats(lambda: _claimed_spec(value)):
            raise  # it is the exception of a signal handler that was called meanwhile
        got = [f", {name} {x}" for name in ("dtype", "shape") if (x := _said(value, name)) is not None]
        raise TypeError(
            f"{path!r}: expected an array of a dtype and a shape that NumPy has, got a {type(value).__name__}"
            f"{''.join(got)} ({in_words(error)}); fix: pass its numbers as an array, such as np.asarray(x)"
        ) from error
    if spec is None and not isinstance(value, jax.Array):  # that is a typed PRNG key
        refuse_hidden(value, path)
    return spec and _numeric_spec(*spec, path)


def _claimed_spec(value: Any) -> Spec | None:
    """The shape and dtype that an object says it has; None if it says none, and for a typed PRNG key."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None or isinstance(value, Mapping):
        return None
    if _jax_dtypes.issubdtype(dtype, _jax_dtypes.prng_key):
        return None
    return Spec(tuple(map(operator.index, shape)), np.dtype(dtype))


def _said(value: Any, name: str) -> Any:
    """An attribute of an object; None if it has none, or if reading it fails."""
    try:
        return getattr(value, name)
    except Exception:
        return None


def _numeric_spec(shape: tuple[int, ...], dtype: np.dtype[Any], path: str) -> Spec:
    if not is_numeric(dtype):
        raise TypeError(
            f"{path!r}: expected an array of numbers, got dtype {dtype}; "
            "fix: convert it with .astype(...), or keep it out of the tree"
        )
    if any(n < 0 for n in shape):
        raise ValueError(f"{path!r}: expected axes of size >= 0, got shape {shape}; fix: name the size of each axis")
    return Spec(shape, dtype if dtype.isnative else dtype.newbyteorder("="))


def _torch_spec(tensor: Any, path: str) -> Spec:
    from torch.nn.parameter import is_lazy

    if is_lazy(tensor):
        raise TypeError(
            f"{path!r}: expected an initialised torch tensor, got a lazy one without a shape; "
            "fix: call the module once with an example"
        )
    dtype = torch_dtype(tensor)
    if dtype is None or tensor.is_nested:
        raise TypeError(
            f"{path!r}: expected a torch tensor of a shape and dtype that NumPy has, "
            f"got {'a nested one' if tensor.is_nested else tensor.dtype}; "
            "fix: pass what tensor.dequantize(), .to(...) or .to_padded_tensor(0) gives"
        )
    return Spec(tuple(tensor.shape), dtype)


def _python_spec(value: complex, path: str) -> Spec:
    kind = next(base for base in type(value).__mro__ if base in (bool, int, float, complex))
    dtype = np.dtype(_jax_dtypes.result_type(kind))
    if kind is int and not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"{path!r}: expected a Python integer that fits {dtype.name}, got {value}; "
            "fix: pass a NumPy integer of the width that you need"
        )
    return Spec((), dtype)


def as_numpy(value: Any, path: str) -> Array:
    """A numeric leaf as a NumPy array: a view wherever NumPy can have one (NumPy, JAX on CPU, torch on CPU).

    Raises `TypeError` for a shape without data, a masked array or an object that NumPy cannot read (SciPy's sparse
    matrices), `ValueError` for a torch tensor that is not in host memory or that NumPy cannot view (sparse, quantised,
    conjugate, negated).
    """
    if isinstance(value, np.ndarray):
        refuse_mask(value, path)
        return value  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, jax.ShapeDtypeStruct) or isinstance(_said(value, "spec"), Spec):  # a layout's leaf
        raise TypeError(
            f"{path!r}: expected an array, got only its shape; "
            "fix: pass arrays, or build from shapes with Store.zeros(Layout.from_tree(shapes))"
        )
    if is_torch_tensor(value):
        return _torch_as_numpy(value, path)
    if isinstance(value, (jax.Array, numbers.Number, np.generic)):
        return np.asarray(value)
    try:
        array, reason = np.asanyarray(value), None
        fits = is_numeric(array.dtype) and array.shape == tuple(getattr(value, "shape", array.shape))
    except Exception as error:  # whatever its conversion raises
        if not repeats(lambda: np.asanyarray(value)):
            raise  # it is the exception of a signal handler that was called meanwhile
        array, fits, reason = np.array(None), False, error
    refuse_mask(array, path)
    if not fits:
        raise TypeError(
            f"{path!r}: expected an array that NumPy can read, got a {type(value).__name__}, of which it makes "
            f"{f'{array.dtype}{list(array.shape)}' if reason is None else in_words(reason)}; fix: pass what its "
            "toarray() or to_numpy() gives, or jax.ShapeDtypeStruct(shape, dtype) for a shape alone"
        ) from reason
    return np.asarray(array)


def _torch_as_numpy(tensor: Any, path: str) -> Array:
    if tensor.is_meta:
        raise ValueError(
            f"{path!r}: expected a torch tensor in host memory, got one on meta, which has no numbers; fix: call "
            "module.to_empty(device='cpu') and load its values, or pass jax.ShapeDtypeStruct(shape, dtype) for a shape"
        )
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{path!r}: expected a torch tensor in host memory, got one on {tensor.device}; fix: pass tensor.cpu()"
        )
    import torch

    def viewed() -> Array:
        dtype = torch_dtype(tensor)
        if dtype is None:
            raise TypeError(f"NumPy has no {tensor.dtype}")
        if hasattr(np, dtype.name):
            return tensor.detach().numpy()
        # NumPy has no word for torch's bfloat16 and float8: read the same bytes as integers, then name them.
        return tensor.detach().view({1: torch.uint8, 2: torch.int16}[tensor.itemsize]).numpy().view(dtype)

    try:
        return viewed()
    except Exception as error:  # whatever a subclass raises
        if not repeats(viewed):
            raise  # it is the exception of a signal handler that was called meanwhile
        raise ValueError(
            f"{path!r}: expected a torch tensor that NumPy can view, got one that it cannot: {error}; "
            "fix: pass what tensor.to_dense(), .dequantize(), .resolve_conj() or .resolve_neg() gives"
        ) from error
