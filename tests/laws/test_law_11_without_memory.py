"""Law 11 for a lack of memory: whichever allocation fails, a verb leaves the old state or the new one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ALL

ROOT = Path(__file__).parent.parent.parent

# The k-th allocation fails, for every so many k, until a verb comes through without one: SQLite's method.
# Libraries that do not look at what they were given crash, so that verbs that call JAX are not among these.
FAILING = """
import collections, gc, json, sys
import _testcapi
from tests.storms import WORK
every, *names = sys.argv[1:]
for name in names:
    work, seen, k, clean = WORK[name], collections.Counter(), 0, 0
    work.prepare()
    gc.collect()
    gc.freeze()
    while clean < 3:
        objects, error = work.make(), None
        gc.disable()
        _testcapi.set_nomemory(k, k + 1)
        try:
            work.run(objects)
        except Exception as raised:
            error = raised
        finally:
            _testcapi.remove_mem_hooks()
        gc.enable()
        found = work.digest(objects)
        assert found == work.new if error is None else found in (work.old, work.new), (name, k, repr(error))
        seen["done" if error is None else "old" if found == work.old else "new"] += 1
        clean = clean + 1 if error is None else 0
        k += int(every)
        del error
    print(json.dumps({name: dict(seen)}), flush=True)
"""

NAMES = (
    "perturb",
    "perturbed",
    "perturb a small one of two dtypes",
    "ga.step",
    "perturb in 16 bits",
    "snap",
    "update",
    "update in 16 bits",
    "sample",
    "Adam",
    "perturb, and keep a log",
    "perturbed in 16 bits",
    "undo by a log",
    "across by a log",
    "update by a log",
    "update, and keep a log",
)


@pytest.mark.parametrize("names", [NAMES[0::2], NAMES[1::2]])
def test_a_verb_in_which_an_allocation_fails_has_done_all_or_nothing(names):
    pytest.importorskip("_testcapi")
    every = 3 if ALL else 20
    command = [sys.executable, "-c", FAILING, str(every), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = {name: outcomes for line in done.stdout.splitlines() for name, outcomes in json.loads(line).items()}
    assert list(seen) == list(names)
    assert all(outcomes["old"] * every > 100 for outcomes in seen.values()), seen
