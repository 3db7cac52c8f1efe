"""Stores of torch in host memory, as stores of the host over the same bytes."""

from __future__ import annotations

from typing import Any

from flatstore.store.population import Population
from flatstore.store.store import Store
from flatstore.store.torch_store import OnTorch


def host_of(store: Any) -> Any:
    """A store, or a population, of the host over the same bytes: a view. What is not one of torch is returned."""
    if not isinstance(store, OnTorch):
        return store
    if store.part_of:
        pop, member = store.part_of
        return host_of(pop)[member]
    if "host" not in store.cache:
        nbytes = store.memory.bytes
        if store.size is None:
            store.cache["host"] = Store.wrap(nbytes, store.layout)
        else:
            store.cache["host"] = Population.wrap(nbytes, store.layout, store.size)
    return store.cache["host"]
