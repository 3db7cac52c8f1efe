"""Numbers in objects that are not leaves: they are refused, since they would ride along unseen."""

from __future__ import annotations

import functools
import gc
import numbers
import weakref
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence, Set
from itertools import islice
from types import MemberDescriptorType, ModuleType, NoneType
from typing import Any, cast

import jax
import numpy as np

from flatstore.checks import repeats
from flatstore.layout.dtypes import is_numeric, is_torch_tensor
from flatstore.trees import Subtree, children, in_words

_tree_util: Any = jax.tree_util

_PROTOCOLS = (
    *("__array__", "__array_interface__", "__array_struct__", "__cuda_array_interface__", "__dlpack__"),
    "data_ptr",  # torch's storages
)
_COLLECTIONS = (Mapping, Set, Sequence, MappingView)
_PROXIES: tuple[type, ...] = weakref.ProxyTypes
_EMPTY = (str, bytes, type, ModuleType, range, NoneType, np.dtype, weakref.ReferenceType)
_NUMBERS = (bool, int, float, complex)
_CONTAINERS = (dict, list, tuple)
_CURSORS = (np.nditer, np.broadcast)  # iterators over arrays that do not say which

_MACHINERY = ("flatstore.layout", "jax", "jaxlib", "numba")
"""Whose objects are not opened: plans, shardings and compiled functions hold numbers only as functions do."""

_MOST = 1 << 15
"""The number of objects that are opened for one leaf: half a second's work at most."""


class TooManyError(Exception):
    """An object leads to more others than are opened."""


Entry = tuple[str, Any, bool]
"""Where something is within its leaf, the object, and whether numbers of Python's count there."""


def refuse_hidden(value: Any, path: str) -> None:
    """Raise `TypeError` for an object that holds numbers but is not a leaf: they would ride along unseen.

    These are numbers of other types (`decimal.Decimal`); objects that offer numbers by a protocol of arrays or buffers,
    without a dtype and a shape; collections and iterators of numbers that JAX takes for leaves (sets, mappings other
    than dicts, generators); and objects that lead to an array, a store or one of those, over any number of attributes,
    slots, elements, objects of bound methods and arguments of partial functions.

    A plain number in an attribute is taken for configuration. Functions, compiled ones too, ride along with their
    closures, their defaults and what they wrap; so do classes and modules with their attributes.

    An object that leads to more than 32,768 others, or that cannot be looked through, is refused as well.
    """
    cls: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    kind: str = cls.__name__
    if isinstance(value, numbers.Number):
        raise TypeError(f"{path!r}: expected an array or a Python int, float or complex, got a {kind}; fix: float(x)")
    if isinstance(value, _CURSORS) or _is_buffer(value) or _offers_numbers(value):
        raise TypeError(
            f"{path!r}: expected an array, got an object ({kind}) that offers numbers without a dtype and a shape; "
            "fix: pass np.asarray(x) or np.from_dlpack(x)"
        )
    if isinstance(value, (Subtree, range)) or not _tree_util.all_leaves([value]) or _is_machinery(value):
        return
    try:
        found = _hidden_in(value)
    except Exception as error:  # whatever its attributes and elements raise
        if not isinstance(error, TooManyError) and not repeats(lambda: _hidden_in(value)):
            raise  # it is the exception of a signal handler that was called meanwhile
        reason = error if isinstance(error, TooManyError) else in_words(error)
        raise TypeError(
            f"{path!r}: expected an array, or an object in which there are none, got a {kind} that cannot be looked "
            f"through: {reason}; fix: pass its numbers as arrays, in a dict or a list, and the rest without it"
        ) from error
    if found is not None:
        raise TypeError(
            f"{path!r}: expected an array or a node that JAX knows, got a {kind} with numbers in it{found}; "
            "fix: pass a dict or a list of them, or register its type with jax.tree_util"
        )


def _hidden_in(root: Any) -> str | None:
    """The words for where in an object there are numbers; None if it holds no numbers."""
    seen = {id(root): root}  # which keeps them: an id is that of one object as long as this lives
    waiting: list[Entry] = [("", root, isinstance(root, (*_COLLECTIONS, Iterator)))]
    while waiting:
        for where, value, counts in _contents(*waiting.pop()):
            kind = type(cast(object, value))
            if kind in _PROXIES or isinstance(value, _EMPTY) or id(value) in seen:
                continue
            if kind in _NUMBERS and not counts:
                continue
            if kind not in _CONTAINERS and _holds_numbers(value, counts):
                return f" ({kind.__name__} at {where})"
            if isinstance(value, (numbers.Number, np.generic)) or _is_machinery(value):
                continue
            seen[id(value)] = value
            if len(seen) > _MOST:
                raise TooManyError(f"it leads to more than {_MOST:,} objects")
            waiting.append((where, value, counts))
    return None


def _holds_numbers(value: Any, counts: bool) -> bool:
    """Whether an object within a leaf is an array, a store, or something else that is refused where it is a leaf.

    A number of Python's or NumPy's is one only where it `counts`.
    """
    if isinstance(value, (np.ndarray, np.void, jax.Array)):
        dtype = cast(Any, value).dtype  # that of a typed PRNG key is JAX's own
        return isinstance(dtype, np.dtype) and _has_numeric_part(cast(Any, dtype))
    if isinstance(value, np.generic):
        return counts and is_numeric(cast(Any, value).dtype)
    if isinstance(value, _NUMBERS):
        return counts
    return (
        isinstance(value, (numbers.Number, _CURSORS))
        or is_torch_tensor(value)
        or (isinstance(value, Subtree) and hasattr(value, "layout"))
        or _is_buffer(value)
        or _offers_numbers(value)
    )


def _has_numeric_part(dtype: np.dtype[Any]) -> bool:
    return any(_has_numeric_part(part[0]) for part in (dtype.fields or {}).values()) or is_numeric(dtype.base)


def _is_machinery(value: Any) -> bool:
    return _is_of_machinery(str(type(value).__module__)) and _tree_util.all_leaves([value])


@functools.lru_cache(maxsize=1024)
def _is_of_machinery(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _MACHINERY)


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except TypeError:
        return False
    except (BufferError, ValueError):  # it has a buffer, but does not export it at present
        return True
    return True


def _offers_numbers(value: Any) -> bool:
    """Whether an object offers numbers by a protocol of arrays. A collection is looked through instead."""
    if isinstance(value, _COLLECTIONS):
        return False
    cls: Any = type(value)  # pyright: ignore[reportUnknownVariableType]
    own = _own(value)
    if not any(hasattr(cls, name) or name in own for name in _PROTOCOLS):
        return False
    dtype = getattr(value, "dtype", None)
    return not isinstance(dtype, np.dtype) or is_numeric(cast(Any, dtype))


def _own(value: Any) -> Mapping[str, Any]:
    """The `__dict__` of an object; empty if it has none."""
    own = getattr(value, "__dict__", None)
    return cast(Mapping[str, Any], own) if isinstance(own, Mapping) else {}


def _contents(where: str, value: Any, counts: bool) -> Iterable[Entry]:
    """All that an object leads to: elements, where the numbers count if they do in it, and attributes."""
    holder: Any = value
    if isinstance(value, np.ndarray):
        if holder.dtype == object:
            yield from ((f"{where}[{i}]", x, counts) for i, x in enumerate(holder.flat))
    elif isinstance(value, _COLLECTIONS):
        yield from _elements(where, holder, counts)
    elif isinstance(value, Iterator):  # looked into without a step, which would use it up
        inner = counts and not hasattr(holder, "__dict__")
        held = [x for x in gc.get_referents(holder) if not isinstance(x, numbers.Number)]
        yield from ((f"{where}.<held>", x, inner) for x in held)
    elif not _tree_util.all_leaves([value]):
        yield from ((f"{where}{key}", child, counts) for key, child in children(value))
        return
    yield from ((f"{where}.{name}", x, False) for name, x in _attributes(holder))


def _elements(where: str, collection: Any, counts: bool) -> Iterable[Entry]:
    pairs = cast(Any, collection).items() if isinstance(collection, Mapping) else enumerate(collection)
    return ((f"{where}[{key!r}]", x, counts) for key, x in islice(pairs, len(cast(Any, collection))))


def _attributes(value: Any) -> Iterable[tuple[str, Any]]:
    """What an object holds by name: attributes, slots, the object of a method, the parts of a partial function."""
    cls = type(cast(object, value))
    wrapped = "__wrapped__" if callable(cast(object, value)) else None  # a function's own
    yield from ((name, x) for name, x in list(_own(value).items()) if name != wrapped)
    special = ("func", "args", "keywords") if functools.partial in cls.__mro__ else ("__self__",)
    yield from ((name, getattr(value, name)) for name in special if hasattr(cls, name))
    for base in cls.__mro__:
        for slot in list(vars(base).values()) if "__slots__" in vars(base) else ():
            if isinstance(slot, MemberDescriptorType):
                try:
                    yield slot.__name__, slot.__get__(value, cls)
                except AttributeError:  # it is not set
                    continue
