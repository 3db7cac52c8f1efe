"""The bits of noise, moves and generations do not depend on how a thread was told to round, nor does what is kept."""

import os
import subprocess
import sys

import pytest

CODE = """
import ctypes, hashlib, sys
import numpy as np, flatstore as fs
from flatstore import es, ga
from flatstore.recording.line_text import as_numbers, as_texts, entry_of, line_of

lib, x86 = ctypes.CDLL(None), {x86}
UPWARD, DOWNWARD, TO_ZERO = (0x800, 0x400, 0xC00) if x86 else (0x400000, 0x800000, 0xC00000)
name = sys.argv[1]
mode = {{"upward": UPWARD, "downward": DOWNWARD, "to zero": TO_ZERO}}.get(name, 0)
assert lib.fesetround(mode) == 0
if name == "small is zero":  # as torch.set_flush_denormal(True) does
    words = (ctypes.c_uint32 * 8)()
    lib.fegetenv(words)
    words[7 if x86 else 0] |= 0x8040 if x86 else 1 << 24
    assert lib.fesetenv(words) == 0
    assert np.float32(2.0**-100) * np.float32(2.0**-40) == 0

digest = hashlib.sha256()
score, rng = np.arange(1.0, 8.0)[::-1].copy(), np.random.default_rng(0)

def bred(steps):
    pop = fs.Population.from_tree({{"w": rng.integers(-99, 99, 64).astype("f4")}}, 7)
    steps(pop, mutate=ga.Reset(-0.1, 0.3, 0.3), bounds=ga.Bounds({{"*": (-0.7, 0.9)}}), crossover=ga.Blend(0.3))
    digest.update(pop.buffer.tobytes())

# What a run asks first is kept for later calls.
bred(lambda pop, **how: list(ga.evolve(pop, lambda stacked, n: score, seed=1, generations=2, **how)))
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

small = np.arange(1, 3001, dtype="u2") % 127  # bfloat16 below 2 ** -126
half = fs.Store.from_tree({{"a": small.view("bfloat16")}})
es.update(half, fs.Normal(0.1), [1], [0.0])
store = fs.Store.from_tree({{"a": small.astype("u4").view("f4")}})
adam, gradient = es.Adam(store), fs.Store.from_tree({{"a": small.astype("f4")}})
for _ in range(3):
    adam.step(gradient, 1e-3)
centre = fs.Store.from_tree({{"a": np.zeros(5, "f4")}})
for generations in (2, 4):  # the second call goes on by what the first has written
    for move in es.evolve_by(
        lambda n, seeds: [0.1, 0.7, 1e-5, 3.3, 0.9, n], centre, seed=1, noise=fs.Normal(0.1), members=6, rate=0.37,
        shape=lambda fitness: fitness, generations=generations, run=sys.argv[2]
    ):
        digest.update(move.fitness.tobytes() + move.weights.tobytes())
for move in es.mezo(centre, lambda params, n: params["a"][0].item(), seed=1, noise=fs.Normal(0.1), rate=0.37,
                    steps=1):
    digest.update(move.weights.tobytes())
for x in (half, store, adam.mean, adam.square, centre):
    digest.update(x.buffer.tobytes())
floats = rng.integers(0, 2**63, 500, "u8").view("f8")
line = line_of({{"number": 0, "fitness": as_texts(np.append(floats, least := np.array([3, 1, 2], "u8").view("f8")))}})
digest.update(line + as_numbers(entry_of(line)["fitness"]).tobytes())
for select in (ga.Truncation(0.3), ga.Universal(), ga.Universal(by="fitness")):
    digest.update(select(score, 100, 3).tobytes())
digest.update(es.centred_ranks(score).tobytes() + es.centred_ranks(least).tobytes())
digest.update(ga.Tournament(2)(least, 9, 1).tobytes())

assert lib.fegetround() == mode
lib.fesetenv(ctypes.c_void_p(-1))
bred(lambda pop, **how: ga.step(pop, score, seed=1, **how))
print(digest.hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of the modes are those of Linux")
def test_the_rounding_mode_of_a_thread_changes_no_bit(tmp_path):
    code = CODE.format(x86=os.uname().machine == "x86_64")
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen([sys.executable, "-c", code, mode, str(tmp_path / mode)], stdout=pipe, stderr=pipe, text=True)
        for mode in ("nearest", "upward", "downward", "to zero", "small is zero")
    ]
    printed = [run.communicate(timeout=300) for run in runs]
    assert [run.returncode for run in runs] == [0] * 5, printed
    assert len({out for out, _ in printed}) == 1
