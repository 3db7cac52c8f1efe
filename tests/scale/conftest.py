"""A cluster of Ray in this machine: a head without CPUs, and two nodes with two each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


class Nodes:
    """Nodes that come and go."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.address = process, process.stdout.readline().strip()

    def tell(self, line: str) -> int:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def add(self, cpus: int) -> int:
        """The number of a node that has joined."""
        return self.tell(f"add {cpus}")

    def kill(self, node: int) -> None:
        """Kill a node and all that runs on it."""
        self.tell(f"kill {node}")


@pytest.fixture(scope="session")
def cluster():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    command = [sys.executable, "-m", "tests.scale.nodes"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes) as process:
        nodes = Nodes(process)
        nodes.add(2)
        nodes.add(2)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        process.stdin.close()
