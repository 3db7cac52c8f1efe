"""Arrays of JAX that are donated, so that XLA writes the new ones where the old ones were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

_jax: Any = jax


def replace_together(stores: Sequence[Any], function: Callable[..., Any], *arguments: Any) -> None:
    """Make the homes of stores what a jitted function that donates them makes of their tuple and of `arguments`."""
    try:
        made = _jax.block_until_ready(function(tuple(store.homes for store in stores), *arguments))
        for store, homes in zip(stores, made, strict=True):
            store.put_in_place(homes)
    except BaseException as error:
        if any(array.is_deleted() for store in stores for array in store.homes.values()):
            error.add_note("the leaves were donated to what failed, and are lost; fix: store.assign(values)")
        raise


@_jax.jit
def _same(old: Any, new: Any) -> Any:
    return {path: _jax.lax.dynamic_update_slice(x, new[path], (0,) * x.ndim) for path, x in old.items()}


written: Any = _jax.jit(_same, donate_argnums=0)
"""Takes old arrays, which are donated, and new ones, by path: the new values in the places of the old ones."""
