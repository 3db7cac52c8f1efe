"""The settings of a run as JSON, and how those of two runs differ."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np

from flatstore.checks import real, whole

Settings = dict[str, Any]


def described(value: Any) -> Any:
    """What a setting is, as JSON can hold it: numbers and texts as they are, values by their fields.

    A function is its name, an array its shape, dtype and digest, and any other object its class.

    >>> import flatstore as fs
    >>> described((3, fs.Normal(0.5), len, float("inf")))
    [3, {'kind': 'Normal', 'scale': 0.5, 'bound': 32.0}, 'builtins.len', 'inf']
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(number := whole(value), int):
        return number
    if isinstance(value, numbers.Real) or not math.isnan(real(value)):
        number = real(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, np.ndarray):
        return _described_array(cast(Any, value))
    if isinstance(value, Mapping):
        pairs = cast(Mapping[Any, Any], value)
        return {str(key): described(item) for key, item in pairs.items()}
    if isinstance(value, (tuple, list)):
        return [described(item) for item in cast(list[Any], value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": _name_of(type(value))} | fields
    if isinstance(value, functools.partial):
        part = cast("functools.partial[Any]", value)
        parts = {"function": part.func, "arguments": part.args, "keywords": part.keywords}
        return {"kind": "functools.partial"} | {name: described(item) for name, item in parts.items()}
    inner = getattr(value, "py_func", value)  # of a function that is compiled already
    return _name_of(inner if hasattr(inner, "__qualname__") else cast(Any, type(value)))


def _described_array(array: np.ndarray[Any, Any]) -> Any:
    if array.ndim == 0:
        return described(array.item())
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": digest}


def _name_of(kind: Any) -> str:
    module = getattr(kind, "__module__", None) or ""
    own = module.partition(".")[0] == "flatstore"  # whose files may get other names
    return kind.__qualname__ if own else f"{module}.{kind.__qualname__}"


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Each setting that differs between a run and a call, in words.

    >>> list(differences({"seed": [1], "noise": {"scale": 0.1, "bound": 32}}, {"seed": [2], "noise": {"scale": 0.1}}))
    ['noise.bound: 32 in the run, nothing in the call', 'seed: [1] in the run, [2] in the call']
    """
    if isinstance(there, dict) and isinstance(here, dict):
        old, new = cast(Settings, there), cast(Settings, here)
        for key in sorted({*old, *new}):
            yield from differences(old.get(key, _NOTHING), new.get(key, _NOTHING), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name}: {_shown(there)} in the run, {_shown(here)} in the call"


class _Nothing:
    """What a setting is that is not there."""


_NOTHING = _Nothing()


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else repr(value)
