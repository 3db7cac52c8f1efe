"""What only a machine with a card can answer: one command, a line for each check, under five minutes.

    python -m benchmarks.device.gpu_checks                    # on a card of NVIDIA, with torch, Triton and JAX for it
    python -m benchmarks.device.gpu_checks --only fence speed # some checks
    TRITON_INTERPRET=1 python -m benchmarks.device.gpu_checks --small   # that it runs, without a card: seconds

A line that begins with MISSED has not held. Bits are those of the same verbs on the host. Speeds are the median of ten
launches, beside what the card can do in place, and beside the peers that are installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flatstore as fs
from flatstore import es, ga
from flatstore.store import OnTorch, TorchPopulation

from . import speeds
from .measure import CARD, JAX, NOISE, SMALL, TORCH, Line, differing, roof, size_of

WAYS = {
    "noise": {"mutate": fs.Normal(0.1)},
    "points, clipped": {
        "mutate": fs.Rademacher(0.1),
        "crossover": ga.Points(3),
        "bounds": ga.Bounds({"*": (-0.1, 0.2)}),
    },
    "blend, some, reflected": {
        "mutate": ga.Sparse(fs.Normal(0.3), 0.01),
        "crossover": ga.Blend(),
        "bounds": ga.Bounds({"*": (-0.1, 0.1)}, "reflect"),
    },
    "exchange, new": {"mutate": ga.Reset(-1, 1, 0.01), "crossover": ga.Exchange(), "elite": 3},
}


def check_roof() -> Iterator[Line]:
    """The card and its memory."""
    name = torch.cuda.get_device_name() if CARD else "none"
    yield "roof", None, f"{name}: {roof() / 1e12:.2f} TB/s in place; torch {torch.__version__}, jax {jax.__version__}"


def check_dlpack() -> Iterator[Line]:
    """At which starts JAX takes a view of torch's memory."""
    raw, seen = torch.zeros(1 << 16, dtype=torch.uint8, device=TORCH), {}
    for start in (0, 4, 16, 64, 128, 256):
        tensor = raw[start : start + 4096].view(torch.float32)
        try:
            array = jax.dlpack.from_dlpack(tensor.view(tensor.shape), copy=False)
            seen[start] = array.unsafe_buffer_pointer() == tensor.data_ptr()
        except (ValueError, RuntimeError, BufferError):
            seen[start] = False
    yield "DLPack without a copy", seen[64] and seen[256], f"by first byte {seen}"


def check_fence() -> Iterator[Line]:
    """A lend does not end while JAX reads, and JAX sees what torch wrote before; the control does without."""
    n = size_of(4096, 256)
    store = fs.Store.from_tree({"w": np.ones((n, n), "f4")}, device=TORCH)
    slow = jax.jit(lambda w: jax.lax.fori_loop(0, 60, lambda i, x: (x @ w) / n, jnp.ones((n, n)))[0, 0] + w[-1, -1])

    def reads(fenced: bool) -> bool:
        store["w"] = np.ones((n, n), "f4")
        if fenced:
            with store.lend("jax") as params:
                value = slow(params["w"])
            store["w"].fill_(5.0)
        else:
            value = slow(jax.dlpack.from_dlpack(store["w"].view(n, n), copy=False))
            store["w"].fill_(5.0)
        return abs(float(value) - 2.0) > 1e-3

    reads(True)
    torn = sum(reads(True) for _ in range(5))
    control = sum(reads(False) for _ in range(3))
    yield "fence", torn == 0 and (control > 0 or not CARD), f"torn {torn} of 5, without it {control} of 3"
    late, total = 0, jax.jit(lambda w: w.sum())
    for trial in range(20):
        store["w"].fill_(float(trial))
        with store.lend("jax") as params:
            late += abs(float(total(params["w"])) - trial * n * n) > 1e-3 * n * n
    yield "stream order", late == 0, f"stale reads {late} of 20"
    yield from other_streams(store, n)


def other_streams(store: Any, n: int) -> Iterator[Line]:
    """A verb follows what was launched before it, whatever stream is the current one, and is followed by what comes."""
    if not CARD:
        yield "a stream of its own", None, "not without a card"
        return
    side, wrong = torch.cuda.Stream(), 0
    noise, host = fs.Normal(0.5), fs.Store.from_tree({"w": np.ones((n, n), "f4")})
    es.perturb(host, noise, 1)
    expected = torch.from_numpy(host["w"].copy()).cuda()
    torch.cuda.synchronize()
    for _ in range(10):
        with torch.cuda.stream(side):
            for _ in range(20):  # what takes longer than the launch of the verb
                store["w"].mul_(0.5)
            store["w"].fill_(1.0)
            es.perturb(store, noise, 1)
            wrong += int((store["w"] != expected).sum())
    yield "a stream of its own", wrong == 0, f"{wrong} differ in 10 moves"

    def move() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                store["w"].mul_(0.5)
            store["w"].fill_(1.0)
            es.perturb(store, noise, 1)

    wrong = 0
    for library in ["torch", "jax"] * 5:
        thread = threading.Thread(target=move)
        thread.start()
        thread.join()
        with torch.cuda.stream(side), store.lend(library) as params:
            wrong += differing(params["w"], expected)
    yield "a lend after the verb of another thread", wrong == 0, f"{wrong} differ in 10 lends"
    wrong = 0
    for _ in range(10):
        move()
        with torch.cuda.stream(side), store.lend() as params:
            for _ in range(20):
                copied = params["w"] * 1.0
        thread = threading.Thread(target=es.perturb, args=(store, noise, 2))
        thread.start()
        thread.join()
        wrong += differing(copied, expected)
    yield "the verb of another thread after a lend", wrong == 0, f"{wrong} differ in 10 lends"
    if torch.cuda.device_count() > 1:
        other = fs.Store.from_tree({"w": np.ones((n, n), "f4")}, device="cuda:1")
        es.perturb(other, noise, 1)
        wrong = int((other["w"].cpu() != expected.cpu()).sum())
        yield "a card that is not the current one", wrong == 0, f"{wrong} differ"


def moved(x: Any, noise: Any) -> None:
    """Several moves, of which the last ones are exact sums of many."""
    log = es.perturb(x, noise, 7)
    log = es.perturb(x, noise, 7, sign=-2, undo=log)
    es.perturb(x, noise, 7, undo=log)
    es.update(x, noise, fs.seeds(1, 5), [0.5, -0.25, 1e-9, 0.3, 2.0])
    es.perturb(x, noise, (1, 2), exact=False)


def check_bits() -> Iterator[Line]:
    """Verbs of `es`, of each kind, against the host."""
    for dtype, n in (("float32", size_of(10**8, 3000)), ("bfloat16", size_of(10**7, 3000)), ("float16", 3000)):
        tree = {"b": np.zeros(33, dtype), "w": np.random.default_rng(0).normal(0, 0.02, n).astype(dtype)}
        for name, device in (("torch", TORCH), ("jax", JAX)):
            host, store = fs.Store.from_tree(tree), fs.Store.from_tree(tree, device=device)
            for x in (host, store):
                es.snap(x, NOISE)
                moved(x, NOISE)
            wrong = sum(differing(store[path], host[path]) for path in host)
            yield f"bits of {dtype}, {name}", wrong == 0, f"{wrong} of {n:,} differ from the host's"


def check_flags() -> Iterator[Line]:
    """The bits of the jax kind where XLA may be less exact."""
    for flags in ("--xla_gpu_ftz=true", "--xla_allow_excess_precision=true", "--xla_gpu_enable_fast_min_max=true"):
        command = [sys.executable, "-m", "benchmarks.device.gpu_checks", "--only", "bits"] + ["--small"] * SMALL
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags})
        lines = [line for line in done.stdout.splitlines() if "float32, jax" in line]
        seen = lines[0] if lines else f"not known: {done.stderr.strip().splitlines()[-1:]}"
        yield f"bits with {flags}", None if not lines else not lines[0].startswith("MISSED"), seen


def check_generations() -> Iterator[Line]:
    """Generations, of each kind, against the host."""
    tree = {"b": np.zeros(30, "f4"), "w": np.zeros(size_of(50_000, 300), "f4")}
    members = size_of(64, 6)
    for name, way in WAYS.items():
        host = fs.Population.from_tree(tree, members)
        pops = {"torch": fs.Population.from_tree(tree, members, device=TORCH)}
        pops["jax"] = fs.Population.from_tree(tree, members, device=JAX)
        for number in range(2):
            for pop in (host, *pops.values()):
                ga.step(pop, np.random.default_rng(number).normal(size=members), seed=(1, number), **way)
        for kind, pop in pops.items():
            wrong = sum(differing(pop[path], host[path]) for path in tree)
            yield f"a generation, {name}, {kind}", wrong == 0, f"{wrong} genes differ from the host's"


def check_graph() -> Iterator[Line]:
    """A captured graph sees what a verb writes where its pointers lead."""
    if not CARD:
        yield "a captured graph", None, "not without a card"
        return
    module = torch.nn.Linear(64, 64).cuda()
    x, graph = torch.ones(4, 64, device="cuda"), torch.cuda.CUDAGraph()
    module(x)
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = module(x)
    store = fs.adopt(module, move=False)
    graph.replay()
    before = out.clone()
    es.snap(store, NOISE)
    with es.perturbed(store, NOISE, 3):
        graph.replay()
        seen = bool((out != before).any()) and torch.allclose(out, module(x))
    graph.replay()
    back = torch.allclose(out, before, atol=1e-4)
    yield "a captured graph", seen and back, f"sees the noise {seen}, and that it is taken back {back}"


CHECKS: dict[str, Callable[[], Iterator[Line]]] = {
    name.removeprefix("check_"): check
    for name, check in (globals() | vars(speeds)).items()
    if name.startswith("check_")
}


def main() -> None:
    """Run the checks, and say so if one has not held."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME", help=", ".join(CHECKS)
    )
    parser.add_argument("--small", action="store_true", help="small sizes: that it runs, without a card")
    chosen = parser.parse_args().only
    if not CARD and not SMALL:
        sys.exit("expected a card that torch can use, got none; fix: --small, with TRITON_INTERPRET=1")
    if not CARD:
        OnTorch.moves = OnTorch.moves_on_card  # host memory stands for that of a card
        TorchPopulation.breeding = TorchPopulation.breeding_on_card
    missed = 0
    for name in chosen:
        for what, holds, seen in CHECKS[name]():
            holds = None if SMALL and name.startswith("speed") else holds
            missed += holds is False
            print(f"{'MISSED ' if holds is False else ''}{what}: {seen}", flush=True)
    sys.exit(f"{missed} missed" if missed else 0)


if __name__ == "__main__":
    main()
