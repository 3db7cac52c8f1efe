"""Law 11 under signals: whatever strikes a verb or a loop, whenever, its state is old or new, and notes are true."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ALL
from tests.storms import WORK, Loop

STORMS = Path(__file__).parent.parent / "storms.py"
LOOPS = [name for name, work in WORK.items() if isinstance(work, Loop)]
VERBS = [name for name in WORK if name not in LOOPS]
SHARES = {"some verbs": VERBS[0::2], "the other verbs": VERBS[1::2], "loops": LOOPS}


@pytest.mark.parametrize("names", SHARES.values(), ids=SHARES)
def test_a_signal_at_any_instant_finds_the_old_state_or_the_new_one_and_the_notes_are_true(names):
    instants = "100" if ALL else "12"
    command = [sys.executable, STORMS, instants, "1", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=STORMS.parent.parent)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    seen = {name: outcomes for line in done.stdout.splitlines() for name, outcomes in json.loads(line).items()}
    assert list(seen) == names
    assert all(sum(outcomes.values()) == int(instants) for outcomes in seen.values())
    assert any(set(outcomes) - {"done"} for outcomes in seen.values())


def test_the_storm_finds_a_verb_that_is_left_half_done():
    code = """
import sys, time
sys.path.insert(0, "tests")
import storms
def careless(objects):
    for row in objects[0]["a"].reshape(-1, 10):
        row[:] = 7
storms.WORK = {"careless": storms.Verb(lambda: [storms.store_of()], careless, storms.flat)}
storms.main(50, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "neither old nor new" in done.stderr
