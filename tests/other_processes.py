"""Other processes, told in Python what to do, line by line; and the segments that are there."""

import json
import os
import subprocess
import sys
import time

from flatstore.memory import segments

LOOP = """
import ast, contextlib, json, os, sys, numpy as np, flatstore as fs
from flatstore.memory import using
names = globals()
for line in sys.stdin:
    try:
        *before, last = ast.parse(json.loads(line)).body
        if not isinstance(last, ast.Expr):
            before, last = [*before, last], ast.parse("None").body[0]
        exec(compile(ast.Module(before, []), "told", "exec"), names)
        answer = repr(eval(compile(ast.Expression(last.value), "told", "eval"), names))
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


class Other:
    """A process that does what it is told, and answers with what that is, or with the error."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", LOOP]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, code: str) -> None:
        """Have it do something, without an answer yet."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def __call__(self, code: str) -> str:
        """Have it do something: its answer."""
        self.begin(code)
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill it, as the system does that is out of memory."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Have it end."""
        self.process.communicate()

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def segments_there() -> list[str]:
    """The names of this user's segments."""
    prefix = segments.prefix()
    return sorted(name.removeprefix(prefix) for name in os.listdir(segments.folder()) if name.startswith(prefix))


def until(condition) -> None:
    """Wait for something that takes a moment; a minute, at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)
