"""attach: the store or population that another process shares, where it lies."""

from __future__ import annotations

from flatstore.memory import Memory
from flatstore.store.population import Population
from flatstore.store.sharing import read
from flatstore.store.store import Store


def attach(name: str) -> Store | Population:
    """The store, or the population, that another process shares by this name: views, to be read.

    The tree is made of ordered dicts. What the other process writes shows here: a lend, or a verb that reads, keeps it
    from writing meanwhile. When it has ended, the bytes stay as they are for as long as this is used.

    Raises `FileNotFoundError` if nothing is shared by this name, `PermissionError` for what others own or may read, and
    `ValueError` for what is no segment, and for one whose creator has ended.
    """
    memory, text = Memory.attached(name)
    layout, size, order = read(text)
    if size is None:
        return Store.in_segment(memory, layout)
    return Population.in_segment(memory, layout, size, str(order))
