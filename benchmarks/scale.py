"""The figures of a run on Ray, measured in one run on this machine and printed as a table.

    python -m benchmarks.scale                   # about three minutes, 8 GB of memory, two idle cores
    python -m benchmarks.scale --quick           # fewer workers and generations, under a minute
    python -m benchmarks.scale --only workers    # one part

How it is measured stands in `report.py`. Bytes are those that the kernel has counted on all TCP sockets of a worker,
sent and received, Ray's own messages included: what would travel between machines, if the worker was on another one.
Evaluations of `workers` sleep for 50 ms, so that cores do not limit. Peers evaluate by one number of each member: Ray's
`map` of pickled parameters, and EvoTorch with `num_actors`. The simulation serves answers one by one, at the driver's
measured time for each; `larger_scale` says where that saturates.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import struct
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import flatstore as fs
from flatstore import es
from flatstore.scale.replica import Job, Replica, told

from .report import NOT_THERE, Row, at_least, at_most, beside, report, seconds

NOISE = fs.Normal(0.01)
SLEEP = 0.05
RUN: dict[str, Any] = dict(seed=0, noise=NOISE, rate=0.1)


def cluster(cpus: int) -> Any:
    """Ray on this machine, with as many CPUs as are asked for, whether they are there or not."""
    import ray

    if ray.is_initialized():
        if ray.cluster_resources().get("CPU") == cpus:
            return ray
        ray.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of JAX, as Ray forks
        # Of its own, whatever runs here already.
        quiet: Any = dict(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        ray.init("local", num_cpus=cpus, **quiet)
    return ray


def tcp_bytes() -> int:
    """What this process has sent and received by TCP: `tcpi_bytes_acked` and `tcpi_bytes_received` of its sockets."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    total += sum(
                        struct.unpack_from("QQ", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 120)
                    )
        except OSError:  # it was closed meanwhile, or listens
            continue
    return total


def a_centre(size: int) -> fs.Store:
    """A model of one leaf."""
    return fs.Store.from_tree({"w": np.zeros(size, "f4")})


def made(size: int, evaluate: Any) -> Any:
    """What a worker makes."""
    return a_centre(size), evaluate


def first(member: Any, number: int) -> float:
    """Nearly nothing is computed of a member."""
    return float(member["w"][0])


def counting(path: str, every: int, member: Any, number: int) -> float:
    """The same, and now and then what the process has sent and received, in a file."""
    if number % every == 0 and not Path(f"{path}-{number}").exists():
        Path(f"{path}-{number}").write_text(str(tcp_bytes()))
    return first(member, number)


def sleeping(member: Any, number: int) -> float:
    """An evaluation that waits."""
    time.sleep(SLEEP)
    return first(member, number)


def cpu_of_workers() -> float:
    """The seconds of CPU that all workers on this machine have taken."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = path.read_text().partition(" (")[2].rpartition(") ")
        except OSError:  # it has ended
            continue
        ticks += sum(map(int, fields.split()[11:13])) if name.startswith("ray::Worker") else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def each_generation(run: Any, skip: int, count: int) -> list[float]:
    """The seconds of some generations, without the first ones."""
    for _ in range(skip):
        next(run)
    return [seconds(lambda: next(run)) for _ in range(count)]


def travels(quick: bool) -> Iterator[Row]:
    """The bytes of a generation, for one worker."""
    cluster(2)
    every = 50 if quick else 200
    for members, size in ((16, 1000), (256, 1000), (256, 1_000_000), (4096, 1000)):
        with TemporaryDirectory() as folder:
            generations = 2 if size > 1000 or members > 1000 else 1
            every_one = max(10, every // (10 * generations)) if generations == 2 else every
            make = partial(made, size, partial(counting, f"{folder}/tcp", every_one))
            run = fs.scale.ray.evolve(make, members=members, batch=members, workers=1, **RUN)
            for move in run:
                if move.number == 2 * every_one:
                    break
            run.close()
            counts = [int(Path(f"{folder}/tcp-{every_one * i}").read_text()) for i in (1, 2)]
            per_generation = (counts[1] - counts[0]) / every_one
        yield at_most(f"{members} members of {size:,}, a generation", 16 * members + 200, per_generation, "B", 0)
        yield beside("of which Ray's own", f"{per_generation - 12 * members:,.0f} B (beyond 12 B a member)")


def workers(quick: bool) -> Iterator[Row]:
    """How many workers, how fast: four members of 50 ms for each, handed out at once, or one by one."""
    most, before = (2 if quick else 16), None
    cluster(most)
    for count in [2**i for i in range(most.bit_length())]:
        for batch in (4, 1):
            make = partial(made, 1000, sleeping)
            run = fs.scale.ray.evolve(make, members=4 * count, batch=batch, workers=count, **RUN)
            while run.counts.workers < count:
                next(run)
            each_generation(run, 2, 0)
            here, there, rounds = time.process_time(), cpu_of_workers(), 5 if quick else 15
            taken = float(np.median(each_generation(run, 0, rounds)))
            cpu = [1e3 * x / rounds for x in (time.process_time() - here, (cpu_of_workers() - there) / count)]
            run.close()
            over = 1e3 * (taken - 4 * SLEEP)
            if batch == 1:
                yield beside(f"{count} workers, members one by one", f"{over:.1f} ms over {4e3 * SLEEP:.0f} ms")
                continue
            yield beside(f"{count} workers, CPU of the driver, and of a worker", f"{cpu[0]:.1f} ms, {cpu[1]:.1f} ms")
            yield at_most(f"{count} workers, overhead of a generation", 5 + 0.5 * count, over, "ms", 1)
            if before is not None:
                yield at_least(f"{count // 2} to {count} workers, efficiency", 0.95, before / taken, "", 3)
            before = taken


def peers(quick: bool) -> Iterator[Row]:
    """A generation of 16 members of a million parameters by two workers, when nearly nothing is computed of them."""
    size, rounds = (100_000 if quick else 1_000_000), (3 if quick else 9)
    ray = cluster(2)
    run = fs.scale.ray.evolve(partial(made, size, first), members=16, batch=8, workers=2, **RUN)
    while run.counts.workers < 2:
        next(run)
    ours = float(np.median(each_generation(run, 3, rounds)))
    run.close()
    yield beside(f"flatstore, 16 members of {size:,}: sampled, evaluated and moved", f"{1e3 * ours:.1f} ms")
    bare = ray.remote(lambda params: float(params[0]))
    centre, pop = a_centre(size), fs.Population.zeros(a_centre(size).layout, 16)

    def a_map() -> None:
        keys = fs.seeds(0, 8)
        es.sample(pop, centre, NOISE, keys, antithetic=True)
        ray.get([bare.remote(row) for row in pop["w"]])
        es.update(centre, NOISE, keys, np.full(8, 1e-3))

    a_map()
    times = [seconds(a_map) for _ in range(rounds)]
    yield beside("the same, parameters sent by a bare map of Ray", f"{1e3 * np.median(times):.1f} ms")
    try:
        import evotorch
        import torch
        from evotorch.algorithms import SNES
    except ImportError:
        yield beside("EvoTorch", NOT_THERE)
        return
    logging.disable(logging.WARNING)
    problem: Any = evotorch.Problem(
        "max",
        torch_first,
        solution_length=size,
        initial_bounds=(-1, 1),
        num_actors=2,
        dtype=torch.float32,
    )
    searcher = SNES(problem, popsize=16, stdev_init=0.1)
    searcher.step()
    times = [seconds(searcher.step) for _ in range(rounds)]
    yield beside("EvoTorch, SNES with num_actors=2", f"{1e3 * np.median(times):.1f} ms")


def torch_first(solution: Any) -> Any:
    """One parameter of a solution of EvoTorch's."""
    return solution[0]


def joins(quick: bool) -> Iterator[Row]:
    """What a worker takes to catch up with generation 10,000 by a snapshot of 9,500 and 500 moves, of 64 members."""
    moves = 50 if quick else 500
    for size in (1000, 1_000_000):
        job = Job(partial(made, size, first), NOISE, None, (0,), 64)
        weights = np.random.default_rng(0).normal(size=32) * 1e-3
        entries = [told(es.Move(n, np.zeros(64), fs.seeds((0, n), 32), weights)) for n in range(10_000 - moves, 10_000)]
        there = Replica(job)
        state = there.state(10_000 - moves)
        late = Replica(job)
        late.follow([])
        snapshot = seconds(partial(late.restore, state))
        replayed = seconds(partial(late.follow, entries))
        yield beside(
            f"catch up at generation 10,000, {size:,} parameters, {moves} moves",
            f"{1e3 * snapshot:.1f} ms + {1e3 * replayed:.0f} ms; all 10,000 moves: {replayed / moves * 1e4:.1f} s",
        )


def larger_scale(quick: bool) -> Iterator[Row]:
    """The measured constants, and a simulation with them up to 10,000 workers."""
    cluster(2)
    run = fs.scale.ray.evolve(partial(made, 100, first), members=256, workers=1, **RUN)
    each_generation(run, 3, 1)
    here, start = time.process_time(), time.perf_counter()
    generations = 2 if quick else 10
    each_generation(run, 0, generations)
    calls = 256 * generations
    cost, trip = (time.process_time() - here) / calls, (time.perf_counter() - start) / calls
    run.close()
    yield beside("the driver's time for a call and its answer", f"{1e6 * cost:.0f} µs")
    yield beside("from one answer of a worker to the next", f"{1e6 * trip:.0f} µs")
    a_move = move_time(1_000_000, 128)
    yield beside("a move of 1,000,000 parameters, 128 seeds", f"{1e3 * a_move:.1f} ms")
    for size, seeds in ((10_000, 128), (1_000_000, 512), (10_000_000, 128)):
        if not quick:
            yield beside(f"a move of {size:,} parameters, {seeds} seeds", f"{1e3 * move_time(size, seeds):.1f} ms")
    for sleep in (0.05, 1.0, 10.0):
        cells: list[str] = []
        for count in (64, 256, 1024, 2048, 4096, 10_000):
            ideal = 4 * sleep + a_move
            one, four = (simulated(count, 4, batch, sleep, cost, trip) + a_move for batch in (1, 4))
            relays = simulated(-(-count // 64), 1, 1, 4 * sleep + 64 * 4 * cost, 64 * 4 * 1e-7 + cost, trip) + a_move
            cells.append(f"{count}: {ideal / one:.2f} {ideal / four:.2f} {ideal / relays:.2f}")
        yield beside(f"evaluations of {sleep:g} s, efficiency one by one, by four, by relays", "; ".join(cells))


def move_time(size: int, count: int) -> float:
    """The seconds of a move of a centre."""
    centre, keys, weights = a_centre(size), fs.seeds(1, count), np.full(count, 1e-4)
    es.update(centre, NOISE, keys, weights)
    return float(np.median([seconds(lambda: es.update(centre, NOISE, keys, weights)) for _ in range(5)]))


def simulated(count: int, each: int, batch: int, sleep: float, cost: float, trip: float) -> float:
    """The seconds of a generation of `each` members a worker, whose answers the driver serves one after the other."""
    left, driver, ends = count * each, 0.0, [0.0] * count
    heap = [(0.0, worker) for worker in range(count)]
    while left > 0:
        free, worker = heapq.heappop(heap)
        driver = max(driver, free) + cost
        taken = min(batch, left)
        left -= taken
        ends[worker] = driver + trip + taken * sleep
        heapq.heappush(heap, (ends[worker], worker))
    for end in sorted(ends):
        driver = max(driver, end) + cost / 2
    return driver


if __name__ == "__main__":
    report(__doc__ or "", travels, workers, peers, joins, larger_scale)
