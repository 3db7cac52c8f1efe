"""Base classes of what asv tracks here, beside those of `flatstore.bench.asv`. Import the module, not the classes."""

from __future__ import annotations

from typing import Any

from flatstore import bench

from .peers import PEERS
from .report import Call, repeated


class OfAPeer:
    """Whose first parameter is a peer: one that is not installed is n/a."""

    question = ""
    """If it is given; otherwise `make` says what is not there."""
    timeout = 300

    def setup(self, *params: Any) -> None:
        if self.question:
            PEERS[self.question][params[0]].require()


class Times(OfAPeer):
    """Seconds of `loops` calls of what `make(*params)` returns: one may be too short to be told from the clock."""

    loops = 1

    @staticmethod
    def make(*params: Any) -> Call:
        """The call."""
        raise NotImplementedError("make")

    def setup(self, *params: Any) -> None:
        super().setup(*params)
        self.call = repeated(type(self).make(*params), self.loops)
        self.call()

    def time_calls(self, *params: Any) -> None:
        self.call()


class Peak(OfAPeer, bench.asv.PeakMemory):
    """The bytes that `work(make(*params))` takes at its peak, in a process of its own."""
