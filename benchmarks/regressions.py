"""What became worse between two commits that `.ci/history` has measured: bytes by a tenth, ratios by a fifth.

    python -m benchmarks.regressions benchmarks/.asv v0.1.0 HEAD     # the exit status is 1 if something did

Times in seconds are those of a machine in a certain hour, and are left to the eye, in the graphs; so are the peers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ALLOWED = {"bytes": 1.1, "times as long": 1.2}
"""By unit, how many times its value in the earlier commit a figure may be."""
PAGES = 1 << 20
"""Bytes that the peak of a process may be above that: what is resident comes in pages, and with libraries' own."""

Figures = dict[tuple[str, ...], float]
"""What was measured in a commit, by the name of the benchmark and its parameters."""


def figures(results: Path, commit: str, benchmarks: dict[str, Any]) -> Figures:
    """The figures of a commit, on whatever machine. Raises `FileNotFoundError` if it was not measured."""
    found: Figures = {}
    files = sorted(results.glob(f"*/{commit[:8]}-*.json"))
    if not files:
        raise FileNotFoundError(f"{results}: expected results of {commit[:8]}, got none; fix: .ci/history measures it")
    for file in files:
        for name, (values, params, *_) in json.loads(file.read_text())["results"].items():
            if name in benchmarks and values is not None:
                keys = itertools.product([name], *params)
                known = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
                found |= {key: value for key, value in known.items() if not math.isnan(value)}  # which is n/a
    return found


def regressions(benchmarks: dict[str, Any], before: Figures, after: Figures) -> Iterator[str]:
    """A line for each figure of ours that is too large, or is gone."""
    for (name, *params), was in before.items():
        benchmark = benchmarks[name]
        allowed = ALLOWED.get(benchmark["unit"])
        peers = [value for of, value in zip(benchmark["param_names"], params, strict=True) if of == "peer"]
        if allowed is None or (peers and not peers[0].strip("'").startswith("flatstore")):
            continue
        now = after.get((name, *params))
        if now is None or now > allowed * was + PAGES * name.endswith("track_peak_memory"):
            shown = "nothing" if now is None else f"{now:,.6g}"
            yield f"{name}({', '.join(params)}): {was:,.6g} before, now {shown} {benchmark['unit']}"


def compared(folder: Path, earlier: str, later: str) -> list[str]:
    """The regressions between two commits, which are hashes."""
    benchmarks = json.loads((folder / "results/benchmarks.json").read_text())
    benchmarks.pop("version", None)
    before, after = (figures(folder / "results", commit, benchmarks) for commit in (earlier, later))
    return [*regressions(benchmarks, before, after)]


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where .ci/history has written")
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    arguments = parser.parse_args()
    command = ["git", "rev-parse", *(f"{commit}^{{commit}}" for commit in arguments.commits)]
    hashes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    worse = compared(arguments.folder, *hashes)
    print("\n".join(worse) or "nothing is worse")
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
