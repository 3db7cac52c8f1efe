"""Trees of arrays that JAX keeps, lent: meanwhile no verb replaces them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flatstore.memory import Access, Memory
from flatstore.threads import Leaving


class LentTree:
    """A context in which the leaves of a store on a device are read, and not replaced."""

    def __init__(self, memory: Memory, tree: Callable[[], Any]) -> None:
        self._memory, self._tree = memory, tree
        self._access: Access | None = None

    def __enter__(self) -> Any:
        self._access = access = Access(lends=[self._memory])
        access.begin()
        return self._tree()

    __exit__ = Leaving(lambda lent: lent._access is None or lent._access.over)

    def leave(self, error: BaseException | None) -> None:
        """End the access."""
        if self._access is not None:
            self._access.end()
