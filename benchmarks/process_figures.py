"""The figures of processes that share memory, measured side by side in one run and printed as a table.

    python -m benchmarks.process_figures                      # about two minutes, 3 GB of memory, two idle cores
    python -m benchmarks.process_figures --quick              # smaller sizes
    python -m benchmarks.process_figures --only environments  # one part

How it is measured stands in `report.py`. Environments are Gymnasium's CartPole-v1, stepped one at a time in Python: an
episode of 500 steps for each of 64 networks that balance the pole, by workers, which evaluate them where they lie; by a
`ProcessPoolExecutor`, to which the parameters of each are pickled; and by Gymnasium's `AsyncVectorEnv`, a process for
each of two environments, which get actions from this one and send observations back. All processes are there before the
clock starts.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np

import flatstore as fs
from flatstore.evaluation import scorer

from .peers.stored import MIB, random_store
from .report import NOT_THERE, Row, at_least, at_most, beside, interleaved, ratio, report, seconds

STEPS = 500
ATTACHING = """
import sys, time, flatstore as fs
fs.attach(sys.argv[1])
start = time.perf_counter()
x = fs.attach(sys.argv[1])
print(time.perf_counter() - start, float(x["layer_00003/w"][5]))
"""


def attaches(quick: bool) -> Iterator[Row]:
    """What it takes to share, to attach, and to hold what is shared."""
    mib = 128 if quick else 1024
    store = random_store(mib * MIB)
    start = time.perf_counter()
    shared = store.share("figures")
    shares = time.perf_counter() - start
    del store
    gc.collect()
    taken = interleaved({"attach": lambda: fs.attach("figures")}, 50)["attach"]
    done = subprocess.run([sys.executable, "-c", ATTACHING, "figures"], capture_output=True, text=True, check=True)
    elsewhere, value = map(float, done.stdout.split())
    assert np.float32(value) == shared["layer_00003/w"][5] or value != value
    yield at_most(f"attach to {mib} MiB", 5, 1e3 * float(np.median(taken)), "ms")
    yield at_most("attach to it in another process", 5, 1e3 * elsewhere, "ms")
    yield beside("share it: a copy", f"{1e3 * shares:.0f} ms")
    attached = fs.attach("figures")
    small = fs.Store.from_tree({"w": np.zeros(1000, "f4")})
    small_shared, ones = small.share(), np.ones(1000, "f4")
    calls = {
        "reading()": lambda: attached.reading().__enter__(),
        "store[path] = x": partial(small.__setitem__, "w", ones),
        "store[path] = x, shared": partial(small_shared.__setitem__, "w", ones),
    }
    for name, call in calls.items():
        times = [seconds(call) for _ in range(2000)]
        yield beside(name, f"{1e6 * np.median(times):.1f} µs")


def balancing(size: int) -> fs.Population:
    """Networks that balance the pole for all steps, each a little different."""
    tree = {
        "hidden": {"weight": np.zeros((16, 4), "f4"), "bias": np.zeros(16, "f4")},
        "output": {"weight": np.zeros((2, 16), "f4"), "bias": np.zeros(2, "f4")},
    }
    pop = fs.Population.from_tree(tree, size)
    rng = np.random.default_rng(0)
    for member in pop:
        member["hidden/weight"][0] = [0.1, 0.3, 1, 1]
        member["hidden/weight"][1] = [-0.1, -0.3, -1, -1]
        member["output/weight"][1, 0] = member["output/weight"][0, 1] = 1
        member["hidden/weight"][2:] = rng.normal(0, 1e-3, (14, 4))
    return pop


def action(member: Any, seen: Any) -> Any:
    """What a network does."""
    hidden = np.maximum(member["hidden/weight"] @ seen + member["hidden/bias"], 0)
    return (member["output/weight"] @ hidden + member["output/bias"]).argmax()


@cache
def environment() -> Any:
    """The environment of this process."""
    import gymnasium

    return gymnasium.make("CartPole-v1").unwrapped


def episode(member: Any, number: int) -> float:
    """The return of one episode: what a worker evaluates, and a pool."""
    env = environment()
    seen, _ = env.reset(seed=number)
    total = 0.0
    for _ in range(STEPS):
        seen, reward, over, _, _ = env.step(action(member, seen))
        total += reward
        if over:
            break
    return total


def pickled(parameters: dict[str, Any]) -> float:
    """The same, of parameters that were sent."""
    return episode(parameters, 0)


def in_a_pool(pool: ProcessPoolExecutor, pop: fs.Population, chunk: int) -> list[float]:
    """All members by a pool of processes, their parameters pickled."""
    return list(pool.map(pickled, ({path: x[path] for path in x} for x in pop), chunksize=chunk))


def in_lockstep(env: Any, pop: fs.Population) -> list[float]:
    """All members by environments that wait for each other after each step, as many at a time as there are."""
    totals: list[float] = []
    for start in range(0, pop.size, env.num_envs):
        members = [pop[i] for i in range(start, start + env.num_envs)]
        seen, _ = env.reset(seed=0)
        running, sums = np.ones(len(members), bool), np.zeros(len(members))
        for _ in range(STEPS):
            actions = np.array([action(member, row) for member, row in zip(members, seen, strict=True)])
            seen, rewards, over, cut, _ = env.step(actions)
            sums += np.where(running, rewards, 0)
            running &= ~(over | cut)
            if not running.any():
                break
        totals += sums.tolist()
    return totals


def async_environments() -> Any:
    """Two environments of Gymnasium's, each in a process. Raises `ImportError` without Gymnasium."""
    import gymnasium

    return gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"})


def environments(quick: bool) -> Iterator[Row]:
    """How much faster two workers are than one, on networks of 114 parameters, and how fast others are."""
    try:
        environment()
    except ImportError:
        yield beside("environments", NOT_THERE)
        return
    pop = balancing(16 if quick else 64).share()
    alone = [episode(member, 0) for member in pop]
    assert min(alone) == STEPS, "all of them balance it"
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(2, multiprocessing.get_context("spawn")))
        env = stack.enter_context(contextlib.closing(async_environments()))
        score: dict[int, Callable[[int], Any]] = {n: scorer(pop, episode, None, n) for n in (1, 2)}
        calls = {
            "this process": lambda: [episode(member, 0) for member in pop],
            "one worker": lambda: score[1](0),
            "two workers": lambda: score[2](0),
            "ProcessPoolExecutor(2)": lambda: in_a_pool(pool, pop, 1),
            "ProcessPoolExecutor(2), chunks of 8": lambda: in_a_pool(pool, pop, 8),
            "AsyncVectorEnv of 2": lambda: in_lockstep(env, pop),
        }
        for name, call in calls.items():
            assert list(call()) == alone, name
        time.sleep(1)
        taken = interleaved(calls, 3 if quick else 9)
        score.clear()
    yield at_least("two workers, speed / one", 1.8, ratio(taken, "one worker", "two workers"), "x")
    for name in list(calls)[3:]:
        yield beside(f"two workers, speed / {name}", f"{ratio(taken, name, 'two workers'):.2f} x")
    for name, times in taken.items():
        yield beside(name, f"{pop.size * STEPS / np.median(times):,.0f} steps/s")
    yield from large(quick)


def large(quick: bool) -> Iterator[Row]:
    """What it takes to hand a member of a million parameters to a process, when nearly nothing is computed of it."""
    pop = fs.Population.from_tree({"w": np.ones(100_000 if quick else 1_000_000, "f4")}, 64).share()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        score = {2: scorer(pop, first, None, 2)}
        calls = {
            "two workers": lambda: score[2](0),
            "ProcessPoolExecutor(2)": lambda: list(pool.map(first_pickled, (x["w"] for x in pop))),
        }
        taken = interleaved(calls, 5)
        score.clear()
    members = f"64 members of {pop.layout.size:,}"
    for name, times in taken.items():
        yield beside(f"{name}, {members}, nothing computed", f"{1e3 * np.median(times):.1f} ms")


def first(member: Any, number: int) -> float:
    """One parameter."""
    return float(member["w"][0])


def first_pickled(parameters: Any) -> float:
    """One of parameters that were sent."""
    return float(parameters[0])


if __name__ == "__main__":
    report(__doc__ or "", attaches, environments)
