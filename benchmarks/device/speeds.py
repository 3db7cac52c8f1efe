"""What verbs cost on a card: memory beside the model, and time beside the roof and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from measure import CARD, JAX, NOISE, SMALL, TORCH, Line, median, of_roof, roof, size_of

import flatstore as fs
from flatstore import es, ga


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
