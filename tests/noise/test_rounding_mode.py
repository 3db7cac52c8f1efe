"""The bits of the noise do not depend on the rounding mode that a thread has set, nor does what is kept for later."""

import os
import subprocess
import sys

import pytest

CODE = """
import ctypes, hashlib, sys
import numpy as np, flatstore as fs
from flatstore import es, ga
UPWARD, DOWNWARD, TO_ZERO = (0x800, 0x400, 0xC00) if {x86} else (0x400000, 0x800000, 0xC00000)
mode = {{"nearest": 0, "upward": UPWARD, "downward": DOWNWARD, "to zero": TO_ZERO}}[sys.argv[1]]
lib = ctypes.CDLL(None)
assert lib.fesetround(mode) == 0
digest = hashlib.sha256()
for noise in (fs.Normal(0.0213), fs.Rademacher(0.1)):
    store = fs.Store.from_tree({{"a": np.zeros(100_003, "f4"), "b": np.zeros(11, "f8")}})
    half = fs.Store.from_tree({{"a": np.zeros(1003, "bfloat16")}})
    es.perturb(store, noise, 1)
    es.update(store, noise, [2, 3], [0.7, -0.3])
    es.perturb(half, noise, 1, exact=False)
    pop = fs.Population.zeros(store.layout, 6)
    es.sample(pop, store, noise, fs.seeds(1, 6))
    ga.step(pop, np.arange(6.0), seed=1, mutate=noise)
    for x in (store, half, pop):
        digest.update(x.buffer.tobytes())
assert lib.fegetround() == mode
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of the modes are those of Linux")
def test_the_rounding_mode_of_a_thread_changes_no_bit():
    code = CODE.format(x86=os.uname().machine == "x86_64")
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen([sys.executable, "-c", code, mode], stdout=pipe, stderr=pipe, text=True)
        for mode in ("nearest", "upward", "downward", "to zero")
    ]
    printed = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, printed
    assert len({out for out, _ in printed}) == 1
