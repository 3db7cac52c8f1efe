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
        """Compile it, if it is not, by a launch of no program: after that, nothing can fail for a lack of memory."""
        device = next(x.device for x in self.given if not isinstance(x, int))
        way = self.kernel, device, *self.constants.items(), *map(_told_apart, self.given)
        if way not in _COMPILED:
            self._replace(programs=(0,) * len(self.programs))()
            _COMPILED.add(way)
        return self


_COMPILED: set[tuple[Any, ...]] = set()


def _told_apart(given: Any) -> tuple[bool, ...]:
    """By what Triton tells arguments apart, each of which it compiles for."""
    number = given if isinstance(given, int) else given.data_ptr()
    return isinstance(given, int), number == 1, number % 16 == 0, number.bit_length() > 31
