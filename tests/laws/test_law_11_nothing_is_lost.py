"""Law 11, nothing is lost: a save that is killed leaves the old file or the new one, a failing verb the old bytes."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga

SAVING = """
import sys, numpy as np, flatstore as fs
path, store = sys.argv[1], fs.Store.from_tree({"w": np.zeros(200_000, "f4")})
for number in range(10**9):
    store["w"][:] = number
    fs.save(path, store)
    print(number, flush=True)
"""


@pytest.mark.long(but="[0]")
@pytest.mark.parametrize("seed", range(3))
def test_a_save_that_is_killed_leaves_a_whole_file_old_or_new(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "x.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.kill()
    with process:
        finished = [0, *map(int, process.stdout.read().split())][-1]
    store = fs.load(file)
    assert len(set(store["w"].tolist())) == 1 and store["w"][0] in (finished, finished + 1)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "x.safetensors"
    fs.save(file, fs.Store.from_tree({"w": np.ones(3, "f4")}))
    before = file.read_bytes()
    for wrong in ({"w": np.ones(3, "f4"), "\ud800": np.ones(1, "f4")}, {"w": np.ones(2, "complex128")}):
        with pytest.raises(fs.StructureError):
            fs.save(file, fs.Store.from_tree(wrong))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


NOISE = fs.Normal(0.1, bound=1.0)


def near_the_bound() -> fs.Store:
    """On the grid, but its last parameters are so near the bound that noise leads some of them past it."""
    store = fs.Store.from_tree({"a": np.zeros(300_000, "f4"), "b": np.full(300_000, 0.5, "f4")})
    es.snap(store, NOISE)
    store["b"][-1000:] = 0.9375
    return store


FAILING: dict[str, Any] = {
    "perturb past the bound": lambda s: es.perturb(s, NOISE, 1),
    "update past the bound": lambda s: es.update(s, NOISE, [1], [1.0]),
    "sample beside infinities": lambda s: es.sample(s, fs.Store.from_tree({"a": s["a"], "b": s["b"] / 0}), NOISE, [1]),
    "Adam by NaN": lambda s: es.Adam(s).step(fs.Store.from_tree({"a": s["a"], "b": s["b"] * np.nan}), 0.1),
    "assign of another shape": lambda s: s.assign({"a": s["a"] + 1, "b": np.zeros(3)}),
    "put_back of another tree": lambda s: fs.put_back(s, {"a": s["a"] + 1}),
    "transfer without a counterpart": lambda s: fs.transfer(fs.Store.from_tree({"a": s["a"] + 1}), s),
    "replay of a journal with an odd entry": lambda s: es.replay(s, NOISE, [([7], [0.1]), ([7], [0.1, 0.2])]),
    "mezo whose fitness is NaN": lambda s: list(
        es.mezo(s, lambda p, n: float("nan"), seed=1, noise=fs.Normal(0.001, bound=1.0), rate=1.0, steps=1)
    ),
}


@pytest.mark.parametrize("verb", FAILING)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_verb_that_fails_leaves_the_store_as_it_was(verb: str) -> None:
    store = near_the_bound()
    before = store.buffer.tobytes()
    with pytest.raises((ValueError, fs.StructureError)):
        FAILING[verb](store)
    assert store.buffer.tobytes() == before


def test_a_generation_that_fails_leaves_the_population_as_it_was() -> None:
    pop = fs.Population.from_tree({"w": np.arange(6, dtype="f4")}, 5)
    before = pop.buffer.tobytes()
    for arguments in (
        {"fitness": np.arange(4.0)},
        {"select": lambda f, n, s: np.full(n, 9)},
        {"mutate": fs.Normal({"x": 1})},
    ):
        with pytest.raises(ValueError):
            ga.step(pop, **{"fitness": np.arange(5.0), "seed": 1, "mutate": None} | arguments)
    assert pop.buffer.tobytes() == before
