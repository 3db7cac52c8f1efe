"""The command line: `flatstore evolve`, `replay`, `plot` and `inspect`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from flatstore.cli import evolve, inspect, plot, replay


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="flatstore", description="Parameters in one buffer; trees are views of it.")
    parser.add_argument("--version", action="version", version=f"flatstore {version('flatstore')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command, summary in (
        ("evolve", evolve, "evolve a network on a real task, in a folder from which it goes on"),
        ("replay", replay, "write an earlier centre of a run in a folder"),
        ("plot", plot, "draw the learning curves of runs in folders"),
        ("inspect", inspect, "show where every leaf of a file or a tree lives"),
    ):
        sub = commands.add_parser(name, help=summary)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except MemoryError as error:
        print(f"flatstore {chosen.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nflatstore {chosen.command}: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if "flatstore[" not in str(error):
            raise
        print(f"flatstore {chosen.command}: {error}", file=sys.stderr)
        return 2
