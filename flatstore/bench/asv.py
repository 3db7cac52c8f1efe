"""Base classes of benchmarks of asv (airspeed velocity), which finds them by the names of their methods.

```
from flatstore import bench

class Flatten(bench.asv.PeakMemory):          # benchmarks/flatten.py
    params = [1_000, 1_000_000]

    @staticmethod
    def make(size): return my_tree(size)      # not counted

    @staticmethod
    def work(tree): return flatten(tree)
```

asv takes what stands in a benchmark file for a benchmark: import this module, not the classes. They need no asv
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flatstore.bench.planned_memory import xla_memory
from flatstore.bench.process_memory import peak_memory
from flatstore.bench.timing import ratio


class _Benchmark:
    """What all have in common."""

    timeout = 300

    @staticmethod
    def make(*params: Any) -> Any:
        """What is measured, made of the benchmark's parameters: not counted."""
        raise NotImplementedError("make")


class PeakMemory(_Benchmark):
    """The bytes that `work(make(*params))` takes at its peak, in a process of its own, as `bench.peak_memory` says."""

    unit = "bytes"

    @staticmethod
    def work(made: Any) -> object:
        """What is measured."""
        raise NotImplementedError("work")

    def track_peak_memory(self, *params: Any) -> int:
        """Called by asv."""
        return peak_memory(type(self).work, *params, setup=type(self).make)


class XlaTemporaries(_Benchmark):
    """The bytes that a jitted function adds to its arguments: `make(*params)` returns it and its arguments."""

    unit = "bytes"

    def track_extra_bytes(self, *params: Any) -> int:
        """Called by asv."""
        function, *arguments = type(self).make(*params)
        return xla_memory(function, *arguments).extra


class Ratio(_Benchmark):
    """How many times as long one call takes as another, in turns: `make(*params)` returns both."""

    unit = "times as long"
    rounds = 9

    def track_ratio(self, *params: Any) -> float:
        """Called by asv."""
        calls: tuple[Callable[[], Any], Callable[[], Any]] = type(self).make(*params)
        return ratio(*calls, rounds=self.rounds)
