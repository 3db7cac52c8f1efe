"""What the reports share: calls measured side by side, and a table of figures and targets.

A file of this folder that is named for a question has benchmarks of asv, and prints the same with targets:
`python -m benchmarks.access`, with `--quick` for smaller sizes, and `--only NAME` for one part of it. A report is not
a test: its exit status is 0 when everything could be measured. Times are medians over interleaved rounds; a ratio of
times is the median of the rounds' own ratios, for a busy machine slows both sides alike. A line that begins with
'·' has no target: it is a peer, a detail, or the roof of the machine. What is not installed is `n/a`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flatstore.bench import interleaved as interleaved
from flatstore.bench import resident as resident
from flatstore.bench import seconds as seconds

MIB = 1 << 20
Call = Callable[[], Any]
NOT_THERE = "n/a"


class Row(NamedTuple):
    """A line of the table."""

    figure: str
    target: str
    measured: str
    reached: str = ""


def at_most(figure: str, target: float, measured: float, unit: str, digits: int = 2) -> Row:
    """A figure that is to be at most `target`."""
    return Row(figure, f"<= {target:g} {unit}", f"{measured:.{digits}f} {unit}", yes_no(measured <= target))


def at_least(figure: str, target: float, measured: float, unit: str, digits: int = 2) -> Row:
    """A figure that is to be at least `target`."""
    return Row(figure, f">= {target:,.12g} {unit}", f"{measured:,.{digits}f} {unit}", yes_no(measured >= target))


def beside(name: str, measured: str) -> Row:
    """A line without a target."""
    return Row(f"· {name}", "", measured)


def yes_no(reached: bool) -> str:
    """A word for the last column."""
    return "yes" if reached else "NO"


def repeated(call: Call, times: int) -> Call:
    """A call that makes another many times: one alone may be too short to be told from the clock."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def each(taken: Mapping[Any, Any], unit: str = "ms", by: float = 1e3) -> str:
    """The median of each call's seconds, as text."""
    return ", ".join(f"{name} {by * np.median(times):.3g}" for name, times in taken.items()) + f" {unit}"


def ratio(taken: dict[Any, Any], of: Any, to: Any) -> float:
    """The median over the rounds of one call's seconds as a multiple of another's."""
    return float(np.median(taken[of] / taken[to]))


def slower(taken: dict[Any, Any], one: Any, two: Any) -> float:
    """The slower of two calls as a multiple of the faster."""
    return max(ratio(taken, one, two), ratio(taken, two, one))


def processor() -> str:
    """The name of this machine's processor, as far as it is known."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def report(description: str, *measures: Callable[[bool], Iterator[Row]]) -> None:
    """The command line of a report: measure, and print."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds, under 30 s")
    parser.add_argument("--only", choices=[x.__name__ for x in measures], action="append", help="this part alone")
    arguments = parser.parse_args()
    rows = [Row("figure", "target", "measured", "reaches it")]
    for measure in measures:
        if arguments.only is None or measure.__name__ in arguments.only:
            print(f"measuring {measure.__name__} ...", file=sys.stderr)
            rows += measure(arguments.quick)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, Row(*("-" * width for width in widths)))
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    found = [" ".join(pair) for pair in versions("jax", "numpy", "numba", "evosax", "evotorch", "torch").items()]
    quick = "; --quick" * arguments.quick
    print(f"\nPython {platform.python_version()}, {', '.join(found)}; {processor()}, {os.cpu_count()} cores{quick}")
