"""Launches of kernels, with all that they need on the card before the first of them writes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Planned(NamedTuple):
    """A launch of a kernel, with all that it needs on the device."""

    kernel: Any
    programs: tuple[int, ...]
    given: tuple[Any, ...]
    constants: Mapping[str, Any]

    def __call__(self) -> None:
        """Launch it."""
        self.kernel[self.programs](*self.given, **self.constants)

    def but(self, **constants: Any) -> Planned:
        """The same with other constants."""
        return self._replace(constants={**self.constants, **constants})

    def compiled(self) -> Planned:
        """Compile it, by a launch of no program: after that, nothing can fail for a lack of memory."""
        self._replace(programs=(0,) * len(self.programs))()
        return self
