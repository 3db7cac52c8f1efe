"""What only a machine with a card can answer: one command, a line for each check, under five minutes.

    python benchmarks/device/gpu_checks.py                    # on a card of NVIDIA, with torch, Triton and JAX for it
    python benchmarks/device/gpu_checks.py --only fence speed # some checks
    TRITON_INTERPRET=1 python benchmarks/device/gpu_checks.py --small   # that it runs, without a card: seconds

A line that begins with MISSED has not held. Bits are those of the same verbs on the host. Speeds are the median of ten
launches, beside what the card can do in place, and beside the peers that are installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch and JAX share the card

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flatstore as fs
from flatstore import es, ga
from flatstore.store import OnTorch, TorchPopulation, array_of

Line = tuple[str, bool | None, str]
"""The name of a check, whether it holds (None for a figure without a target), and what was seen."""

SMALL = "--small" in sys.argv
CARD = torch.cuda.is_available()
TORCH, JAX = ("cuda" if CARD else "cpu"), jax.devices()[0]
NOISE = fs.Normal(0.02)
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


def size_of(large: int, small: int) -> int:
    """A number of parameters, for a card or for a machine without."""
    return small if SMALL else large


def median(work: Callable[[], object], times: int = 10) -> float:
    """Seconds that something takes on the device, its end included."""
    taken: list[float] = []
    for _ in range(1 if SMALL else times + 2):
        wait()
        start = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - start)
    return sorted(taken[-times:])[len(taken[-times:]) // 2]


def wait() -> None:
    """Wait for all that the device was asked to do."""
    if CARD:
        torch.cuda.synchronize()
        jax.block_until_ready(jnp.zeros(()) + 0)


def differing(a: Any, b: Any) -> int:
    """How many numbers are not the same to the bit."""
    a, b = (np.ascontiguousarray(array_of(x.cpu()) if isinstance(x, torch.Tensor) else np.asarray(x)) for x in (a, b))
    return int((a.reshape(-1).view(f"u{a.itemsize}") != b.reshape(-1).view(f"u{b.itemsize}")).sum())


@cache
def roof() -> float:
    """Bytes a second that the card reads and writes in place."""
    x = torch.ones(size_of(1 << 28, 1 << 20), device=TORCH)
    return 2 * x.nbytes / median(lambda: x.mul_(1.0))


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
    yield "fence", torn == 0, f"torn {torn} of 5, without it {control} of 3"
    late, total = 0, jax.jit(lambda w: w.sum())
    for trial in range(20):
        store["w"].fill_(float(trial))
        with store.lend("jax") as params:
            late += abs(float(total(params["w"])) - trial * n * n) > 1e-3 * n * n
    yield "stream order", late == 0, f"stale reads {late} of 20"


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
        kinds = {"torch": TORCH, "jax": JAX}
        for name, device in kinds.items():
            if name == "jax" and dtype != "float32":
                continue
            host, store = fs.Store.from_tree(tree), fs.Store.from_tree(tree, device=device)
            for x in (host, store):
                es.snap(x, NOISE)
                moved(x, NOISE)
            wrong = sum(differing(store[path], host[path]) for path in host)
            yield f"bits of {dtype}, {name}", wrong == 0, f"{wrong} of {n:,} differ from the host's"


def check_flags() -> Iterator[Line]:
    """The bits of the jax kind where XLA may be less exact."""
    for flags in ("--xla_gpu_ftz=true", "--xla_allow_excess_precision=true", "--xla_gpu_enable_fast_min_max=true"):
        command = [sys.executable, __file__, "--only", "bits", *(["--small"] if SMALL else [])]
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


def check_temporaries() -> Iterator[Line]:
    """What verbs allocate beside the model."""
    if not CARD:
        yield "temporaries", None, "not without a card"
        return
    n = 1 << 28
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        store = fs.Store.from_tree({"w": np.zeros(n, name)}, device=TORCH)
        for verb, work in verbs(store).items():
            work()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            torch.cuda.synchronize()
            extra = torch.cuda.max_memory_allocated() - before
            most = store.buffer.nbytes // 8 if "log" in verb else 32 << 20
            yield (
                f"temporaries of {verb}, {name}",
                extra <= most,
                f"{extra / 2**20:.1f} MiB of {store.buffer.nbytes >> 20}",
            )


def verbs(store: Any) -> dict[str, Callable[[], object]]:
    """What is timed, of a store of one dtype."""
    es.snap(store, NOISE)
    if store["w"].element_size() == 2:

        def there_and_back() -> None:
            es.perturb(store, NOISE, 1, sign=-1, undo=es.perturb(store, NOISE, 1))

        return {
            "perturb, exact=False": lambda: es.perturb(store, NOISE, 1, exact=False),
            "perturb and back, by a log": there_and_back,
            "update of 64": lambda: es.update(store, NOISE, fs.seeds(1, 64), np.linspace(-1e-4, 1e-4, 64)),
        }
    sign = iter([1, -1] * 1000)
    return {
        "perturb": lambda: es.perturb(store, NOISE, 1, sign=next(sign)),
        "update of 64": lambda: es.update(store, NOISE, fs.seeds(1, 64), np.linspace(-1e-4, 1e-4, 64)),
    }


def check_speed() -> Iterator[Line]:
    """Perturb, sample and update beside the roof and the peers."""
    n = size_of(10**9, 3000)
    for name in ("float32", "bfloat16"):
        store = fs.Store.from_tree({"w": np.zeros(n, name)}, device=TORCH)
        nbytes = 2 * store.buffer.nbytes
        for verb, work in verbs(store).items():
            taken = median(work, 4)
            if "update" in verb:
                per = taken * 1e9 / n
                yield f"{verb}, {name}, torch", per <= 0.2, f"{per * 1e3:.0f} ms for 1e9 parameters"
                continue
            rate = nbytes * (2 if "back" in verb else 1) / taken
            yield (
                f"{verb}, {name}, torch",
                rate >= 0.7 * roof(),
                f"{rate / 1e12:.2f} TB/s, {rate / roof():.2f} of the roof",
            )
        if name == "float32" and not SMALL:
            out = store.copy()
            rate = nbytes / median(lambda store=store, out=out: es.sample(out, store, NOISE, [1]), 4)
            yield (
                f"sample, {name}, torch",
                rate >= 0.7 * roof(),
                f"{rate / 1e12:.2f} TB/s, {rate / roof():.2f} of the roof",
            )
            del out
        x, z = store["w"], torch.empty_like(store["w"])
        rate = nbytes / median(lambda x=x, z=z: x.add_(z.normal_(), alpha=0.02), 4)
        yield f"torch normal_ + add_, {name}", None, f"{rate / 1e12:.2f} TB/s, and a second model"
        del store, x, z
    yield from speed_in_jax(n)


def of_roof(rate: float) -> str:
    """A rate in words."""
    return f"{rate / 1e12:.2f} TB/s, {rate / roof():.2f} of the roof"


def speed_in_jax(n: int) -> Iterator[Line]:
    """The jax kind, beside JAX's own noise."""
    store, sign = fs.Store.from_tree({"w": np.zeros(n, "f4")}, device=JAX), iter([1, -1] * 1000)
    es.snap(store, NOISE)
    rate = 8 * n / median(lambda: es.perturb(store, NOISE, 1, sign=next(sign)), 4)
    yield "perturb, float32, jax", None, of_roof(rate)
    weights = np.linspace(-1e-4, 1e-4, 64)
    taken = median(lambda: es.update(store, NOISE, fs.seeds(1, 64), weights), 2) * 1e9 / n
    yield "update of 64, float32, jax", None, f"{taken * 1e3:.0f} ms for 1e9 parameters"
    store = None
    added = jax.jit(lambda x, key: x + 0.02 * jax.random.normal(key, x.shape), donate_argnums=0)
    state = [jnp.zeros(n)]

    def peer() -> None:
        state[0] = jax.block_until_ready(added(state[0], jax.random.key(1)))

    yield "jax.random.normal, donated", None, of_roof(8 * n / median(peer, 4))


def check_speed_of_generations() -> Iterator[Line]:
    """`ga.step` beside evosax, where that is installed."""
    members, genes = size_of(512, 6), size_of(500_000, 300)
    fitness = np.random.default_rng(0).normal(size=members)
    taken: dict[str, float] = {}
    for kind, device in (("torch", TORCH), ("jax", JAX)):
        pop = fs.Population.from_tree({"w": np.zeros(genes, "f4")}, members, device=device)
        taken[kind] = median(lambda pop=pop: ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1)), 5)
        yield (
            f"ga.step, {kind}",
            None,
            f"{taken[kind] * 1e3:.1f} ms, {members * genes / taken[kind] / 1e9:.1f} G genes/s",
        )
        del pop
    try:
        from evosax.algorithms import SimpleGA
    except ImportError:
        yield "evosax", None, "not installed"
        return
    algorithm = SimpleGA(population_size=members, solution=jnp.zeros(genes))
    settings, key = algorithm.default_params, jax.random.key(0)
    state = algorithm.init(key, jnp.zeros((members, genes)), jnp.zeros(members), settings)

    def generation() -> None:
        population, after = algorithm.ask(key, state, settings)
        jax.block_until_ready(algorithm.tell(key, population, jnp.asarray(fitness), after, settings))

    peer = median(generation, 3)
    best = min(taken.values())
    yield (
        "ga.step / evosax's ask and tell",
        peer >= 50 * best,
        f"{peer / best:.1f} x as fast, {peer * 1e3:.0f} ms there",
    )


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
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
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
