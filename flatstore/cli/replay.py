"""`flatstore replay`: any earlier centre of a run in a folder, from its snapshots and its journal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flatstore.es import centre_of
from flatstore.files import save


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `flatstore replay`. `run` takes what they parse to."""
    parser.description = (
        "Write the centre of a run of an evolution strategy, or the network of MeZO, as it was after some generations. "
        "The moves since the last snapshot before it are made again, to the bit; nothing is evaluated."
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run, which may still go on")
    parser.add_argument("--to", type=int, required=True, metavar="N", help="after how many generations")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default RUN/centre-N.safetensors)")


def run(arguments: argparse.Namespace) -> int:
    """Write the centre; returns the exit status."""
    target = arguments.out or arguments.folder / f"centre-{arguments.to}.safetensors"
    try:
        centre = centre_of(arguments.folder, arguments.to)
        save(target, centre)
    except (ValueError, OSError) as error:
        print(f"flatstore replay: {error}", file=sys.stderr)
        return 2
    print(f"written  {target}: {centre.layout.size:,} parameters after {arguments.to:,} generations")
    return 0
