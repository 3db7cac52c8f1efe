"""What verbs cost on a card: memory beside the model, and time beside the roof and the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flatstore as fs
from flatstore import es, ga

from .measure import CARD, JAX, NOISE, TORCH, Line, extra, median, of_roof, on_clock, roof, size_of

SMALL_NOISE = fs.Normal(0.001)


def a_store(n: int, dtype: str) -> Any:
    """Weights as networks have them, on the grid of the noise."""
    store = fs.Store.from_tree({"w": np.zeros(n, dtype)}, device=TORCH)
    with torch.no_grad():
        store["w"].normal_(0, 0.02)
    es.snap(store, NOISE)
    return store


def verbs(store: Any, out: Any) -> dict[str, tuple[Callable[[], object], int]]:
    """What is timed, of a store of one dtype, and how often it goes over the parameters."""
    sign = iter([1, -1] * 1000)

    def there_and_back() -> None:  # by noise as it is used there: less than the weights
        es.perturb(store, SMALL_NOISE, 1, sign=-1, undo=es.perturb(store, SMALL_NOISE, 1))

    made: dict[str, tuple[Callable[[], object], int]] = {"sample": (lambda: es.sample(out, store, NOISE, [1]), 1)}
    if store["w"].element_size() == 2:
        made["perturb, exact=False"] = (lambda: es.perturb(out, NOISE, 1, exact=False), 1)
        made["perturb and back, by a log"] = (there_and_back, 2)
    else:
        made["perturb"] = (lambda: es.perturb(store, NOISE, 1, sign=next(sign)), 1)
    weights = np.linspace(-1e-4, 1e-4, 64)
    made["update of 64"] = (lambda: es.update(out, NOISE, fs.seeds(1, 64), weights), 1)
    return made


def check_temporaries() -> Iterator[Line]:
    """What verbs allocate beside the model."""
    if not CARD:
        yield "temporaries", None, "not without a card"
        return
    for name in ("float32", "bfloat16"):
        store = a_store(1 << 28, name)
        moves = verbs(store, store.copy()) | {"snap": (lambda store=store: es.snap(store, NOISE), 1)}
        for verb, (work, _) in moves.items():
            taken, most = extra(work), store.buffer.nbytes // 8 if "log" in verb else 32 << 20
            of = f"{taken / 2**20:.1f} MiB of {store.buffer.nbytes >> 20}"
            yield f"temporaries of {verb}, {name}", taken <= most, of
        del store, moves
    pop = fs.Population.from_tree({"w": np.zeros(1 << 20, "f4")}, 256, device=TORCH)
    taken = extra(lambda: ga.step(pop, np.arange(256.0), seed=1, mutate=NOISE))
    yield "temporaries of ga.step", taken <= 32 << 20, f"{taken / 2**20:.1f} MiB of {pop.buffer.nbytes >> 20}"


def check_speed() -> Iterator[Line]:
    """Perturb, sample and update beside the roof and the peers."""
    n = size_of(10**9, 3000)
    for name in ("float32", "bfloat16"):
        store = a_store(n, name)
        out = store.copy()
        for verb, (work, passes) in verbs(store, out).items():
            taken = median(work, 4)
            if verb == "update of 64":
                per = taken * 1e9 / n
                yield f"{verb}, {name}, torch", per <= 0.2, f"{per * 1e3:.0f} ms for 1e9 parameters"
            else:
                rate = 2 * passes * store.buffer.nbytes / taken
                yield f"{verb}, {name}, torch", rate >= 0.7 * roof(), of_roof(rate)
        x, z = store["w"], out["w"]
        rate = 2 * store.buffer.nbytes / median(lambda x=x, z=z: x.add_(z.normal_(), alpha=0.02), 4)
        yield f"torch normal_ + add_, {name}", None, f"{of_roof(rate)}, and a second model"
        del store, out, x, z
    yield from speed_in_jax(n)


def speed_in_jax(n: int) -> Iterator[Line]:
    """The jax kind, beside JAX's own noise."""
    store, sign = fs.Store.from_tree({"w": np.zeros(n, "f4")}, device=JAX), iter([1, -1] * 1000)
    es.snap(store, NOISE)
    rate = 8 * n / on_clock(lambda: es.perturb(store, NOISE, 1, sign=next(sign)), 4)
    yield "perturb, float32, jax", None, of_roof(rate)
    weights = np.linspace(-1e-4, 1e-4, 64)
    taken = on_clock(lambda: es.update(store, NOISE, fs.seeds(1, 64), weights), 2) * 1e9 / n
    yield "update of 64, float32, jax", None, f"{taken * 1e3:.0f} ms for 1e9 parameters"
    store = None
    added = jax.jit(lambda x, key: x + 0.02 * jax.random.normal(key, x.shape), donate_argnums=0)
    state = [jnp.zeros(n)]

    def peer() -> None:
        state[0] = jax.block_until_ready(added(state[0], jax.random.key(1)))

    yield "jax.random.normal, donated", None, of_roof(8 * n / on_clock(peer, 4))


def check_speed_of_generations() -> Iterator[Line]:
    """`ga.step` beside evosax, where that is installed."""
    members, genes = size_of(512, 6), size_of(500_000, 300)
    fitness = np.random.default_rng(0).normal(size=members)
    taken: dict[str, float] = {}
    for kind, device in (("torch", TORCH), ("jax", JAX)):
        pop = fs.Population.from_tree({"w": np.zeros(genes, "f4")}, members, device=device)
        taken[kind] = on_clock(lambda pop=pop: ga.step(pop, fitness, seed=1, mutate=fs.Normal(0.1)), 5)
        yield (
            f"ga.step, {kind}",
            None,
            f"{taken[kind] * 1e3:.1f} ms, {members * genes / taken[kind] / 1e9:.1f} G genes/s",
        )
        del pop
    try:
        from evosax.algorithms import SimpleGA
    except ImportError:
        yield "evosax", None, "n/a"
        return
    algorithm = SimpleGA(population_size=members, solution=jnp.zeros(genes))
    settings, key = algorithm.default_params, jax.random.key(0)
    state = algorithm.init(key, jnp.zeros((members, genes)), jnp.zeros(members), settings)

    def generation() -> None:
        population, after = algorithm.ask(key, state, settings)
        jax.block_until_ready(algorithm.tell(key, population, jnp.asarray(fitness), after, settings))

    peer = on_clock(generation, 3)
    best = min(taken.values())
    yield (
        "ga.step / evosax's ask and tell",
        peer >= 50 * best,
        f"{peer / best:.1f} x as fast, {peer * 1e3:.0f} ms there",
    )
