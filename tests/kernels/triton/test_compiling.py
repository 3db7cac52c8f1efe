"""The kernels compile for a card, without one: to instructions of which none is a fused product and sum."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long(but="perturb bfloat16")
@pytest.mark.parametrize("name", ["perturb bfloat16", ""])
def test_all_kernels_compile_for_a_card_and_nothing_is_fused(name):
    command = [sys.executable, "-m", "tests.kernels.triton.compiled_for_a_card", *name.split()]
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    # The division and the root of Adam are made of such instructions, and are rounded once.
    fused = re.findall(r"^(?!a step of rule 0).* for a parameter, (\d+) fused", done.stdout, re.MULTILINE)
    assert len(fused) >= (1 if name else 40) and set(fused) == {"0"}
