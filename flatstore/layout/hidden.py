"""Numbers in objects that are not leaves: they are refused, since they would ride along unseen."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any, cast

import jax
import numpy as np

from flatstore.layout.dtypes import is_numeric, is_torch_tensor
from flatstore.trees import Subtree, children

_tree_util: Any = jax.tree_util

_PROTOCOLS = (
    *("__array__", "__array_interface__", "__array_struct__", "__cuda_array_interface__", "__dlpack__"),
    "data_ptr",  # torch's storages
)


def refuse_hidden(value: Any, path: str) -> None:
    """Raise `TypeError` for an object that holds numbers but is not a leaf: they would ride along unseen.

    These are numbers of other types (`decimal.Decimal`); objects that offer numbers by a protocol of arrays or buffers,
    without a dtype and a shape; collections of numbers that JAX takes for leaves (sets, mappings other than dicts);
    and objects with an array or a store among their attributes. A Python number there is taken for configuration.
    """
    cls: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    kind: str = cls.__name__
    own: dict[str, Any] = getattr(value, "__dict__", {})
    if isinstance(value, numbers.Number):
        raise TypeError(f"{path!r}: expected an array or a Python int, float or complex, got a {kind}; fix: float(x)")
    is_collection = isinstance(value, (Mapping, Set, Sequence)) and not isinstance(value, range)
    if _is_buffer(value) or (not is_collection and any(hasattr(cls, name) or name in own for name in _PROTOCOLS)):
        raise TypeError(
            f"{path!r}: expected an array, with a dtype and a shape, got a {kind}, which has numbers but not these; "
            "fix: pass np.asarray(x) or np.from_dlpack(x)"
        )
    contents = _elements(value) if is_collection else _attributes(value)
    if not isinstance(value, Subtree) and _tree_util.all_leaves([value]) and _has_numbers(contents, is_collection):
        raise TypeError(
            f"{path!r}: expected an array or a node that JAX knows, got a {kind} with numbers in it; "
            "fix: pass a dict or a list of them, or register its type with jax.tree_util"
        )


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except TypeError:
        return False
    except (BufferError, ValueError):  # it has a buffer, but does not export it at present
        return True
    return True


def _elements(collection: Any) -> Iterable[Any]:
    return cast(Mapping[Any, Any], collection).values() if isinstance(collection, Mapping) else collection


def _attributes(value: Any) -> Iterable[Any]:
    """The attributes of an object; of a partial function, the arguments that it was given."""
    if isinstance(value, functools.partial):
        return cast(Any, value).args, cast(Any, value).keywords
    own = {name: x for name, x in getattr(value, "__dict__", {}).items() if name != "__wrapped__"}  # a function's own
    slots = [getattr(value, field.name, None) for field in fields(value)] if is_dataclass(value) else []
    return [*own.values(), *slots]


def _has_numbers(values: Iterable[Any], scalars: bool, deepest: int = 8) -> bool:
    """Whether there are arrays, stores or (if `scalars`) Python numbers among values or in the nodes among them."""
    return any(
        _is_array(value)
        or (scalars and isinstance(value, numbers.Number))
        or (deepest and _has_numbers(_inside(value), scalars, deepest - 1))
        for value in values
    )


def _is_array(value: Any) -> bool:
    if isinstance(value, (np.ndarray, jax.Array)):
        dtype = cast(Any, value).dtype  # that of a typed PRNG key is JAX's own
        return isinstance(dtype, np.dtype) and is_numeric(cast(Any, dtype))
    return is_torch_tensor(value) or (isinstance(value, Subtree) and hasattr(value, "layout"))


def _inside(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):  # whose keys JAX may not be able to sort
        return _elements(node)
    return () if _tree_util.all_leaves([node]) else [child for _, child in children(node)]
