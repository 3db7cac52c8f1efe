"""Crossover, mutation and bounds as JSON, and back: those of this package, which are numbers and globs."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from flatstore.ga.bounds import Bounds
from flatstore.ga.crossover import Blend, Exchange, Points, Uniform
from flatstore.ga.mutation import Reset, Sparse
from flatstore.noise import Normal, Rademacher

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Blend, Bounds, Exchange, Normal, Points, Rademacher, Reset, Sparse, Uniform)
}


def as_json(operator: Any) -> Any:
    """An operator as JSON can hold it; of one's own, the name of its class.

    >>> as_json(Sparse(Normal(0.5), 0.25))
    {'kind': 'Sparse', 'noise': {'kind': 'Normal', 'scale': 0.5, 'bound': 32.0}, 'rate': 0.25}
    """
    if _KINDS.get(type(operator).__name__) is type(operator):
        fields = {field.name: as_json(getattr(operator, field.name)) for field in dataclasses.fields(operator)}
        return {"kind": type(operator).__name__, **fields}
    if operator is None or isinstance(operator, (bool, int, float, str, tuple)):
        return cast(Any, operator)
    return {"own": type(operator).__qualname__}


def from_json(found: Any) -> Any:
    """The operator that `as_json` was given. Raises `ValueError` for one of one's own, and for other JSON.

    >>> from_json(as_json(Bounds({"*": (-1, float("inf"))})))
    Bounds(within=(('*', (-1.0, inf)),), outside='clip')
    """
    if isinstance(found, list):
        return tuple(map(from_json, found))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not isinstance(found, dict):
        return found
    fields: dict[str, Any] = dict(found)  # pyright: ignore[reportUnknownArgumentType]
    try:
        kind = _KINDS.get(fields.pop("kind", None))
        if kind is not None:
            return kind(**{name: from_json(value) for name, value in fields.items()})
    except TypeError as error:
        raise ValueError(f"expected an operator as as_json writes it, got {found!r} ({error})") from error
    raise ValueError(f"expected an operator of this package, got {found!r}")
