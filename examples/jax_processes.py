"""Evolution in several processes of JAX's own runtime: members are spread over them, and the centre is the same in all.

Every process makes the noise of its members where they are evaluated (`es.virtual`), their fitness is gathered, and all
move the centre by the same seeds and weights (`es.updated`). With `--sharded` each process has some rows of the model
instead, and all evaluate every member together: `at=` says where the rows begin. At the end the moves are replayed on
the host, in one process, without an evaluation: to the same bits.

    python examples/jax_processes.py [--processes 2] [--generations 20] [--sharded]

On several machines each process is started there, with `--rank` and the address of the first one as `--address`.
"""

import argparse
import hashlib
import socket
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flatstore as fs
from flatstore import es

INPUTS, INNER, PAIRS, RATE = 8, 24, 12, 20.0
NOISE = fs.Normal(0.05)
X = np.random.default_rng(0).normal(size=(64, INPUTS)).astype("f4")
Y = np.sin(X.sum(axis=1))
ALL, SPREAD = PartitionSpec(), PartitionSpec("p")


def centre():
    """The first centre, on the grid of the noise: rows of `inner` and `outer` belong together."""
    store = fs.Store.from_tree({"inner": np.zeros((INNER, INPUTS), "f4"), "outer": np.zeros(INNER, "f4")})
    es.update(store, fs.Normal(0.3), fs.seeds(1, 1), [1.0])
    return store


def output(params):
    """What these rows of the model add to its output."""
    return params["outer"] @ jnp.tanh(params["inner"] @ X.T)


def members_apart(params, words):
    """The fitness of both members of this process's pairs, gathered from all."""

    def pair(word):
        return jnp.stack([-jnp.square(output(es.virtual(params, NOISE, word, sign=s)) - Y).mean() for s in (1, -1)])

    return jax.lax.all_gather(jax.lax.map(pair, words), "p", tiled=True)


def rows_apart(layout, params, words):
    """The fitness of all pairs, of a model of which this process has some rows."""
    first = jax.lax.axis_index("p") * params["outer"].shape[0]

    def pair(word):
        sides = [es.virtual(params, NOISE, word, sign=s, layout=layout, at=first) for s in (1, -1)]
        return jnp.stack([-jnp.square(jax.lax.psum(output(side), "p") - Y).mean() for side in sides])

    return jax.lax.map(pair, words)


def moved(layout, params, weighted):
    """The rows of this process, moved."""
    first = jax.lax.axis_index("p") * params["outer"].shape[0]
    return es.updated(params, NOISE, weighted, layout=layout, at=first)


def evolve(sharded, generations):
    """Evolve, and return what the centre has become, here and when the moves are replayed on the host."""
    store, mesh = centre(), jax.make_mesh((jax.device_count(),), ("p",), axis_types=(AxisType.Auto,))
    spread = partial(jax.shard_map, mesh=mesh, check_vma=False)
    place = SPREAD if sharded else ALL
    if sharded:
        fitness_of = spread(partial(rows_apart, store.layout), in_specs=(place, ALL), out_specs=ALL)
        move = spread(partial(moved, store.layout), in_specs=(place, ALL), out_specs=place)
    else:
        fitness_of = spread(members_apart, in_specs=(ALL, SPREAD), out_specs=ALL)
        move = spread(lambda params, weighted: es.updated(params, NOISE, weighted), in_specs=ALL, out_specs=ALL)
    fitness_of, move = jax.jit(fitness_of), jax.jit(move, donate_argnums=0)
    params = jax.device_put({path: store[path].copy() for path in store}, NamedSharding(mesh, place))
    journal, fitness = [], []
    for generation in range(generations):
        seeds = fs.seeds((3, generation), PAIRS)
        fitness.append(np.asarray(fitness_of(params, es.words(seeds))).ravel())
        ranks = es.centred_ranks(fitness[-1])
        journal.append((seeds, (ranks[0::2] - ranks[1::2]) / len(ranks) * RATE))
        params = move(params, es.weighted_seeds(NOISE, *journal[-1]))
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, ALL))(params)
    es.replay(store, NOISE, journal)
    return {path: np.asarray(whole[path]) for path in store}, store, [fitness[0].mean(), fitness[-1].mean()]


def worker(arguments):
    """One of the processes."""
    if arguments.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(arguments.address, arguments.processes, arguments.rank)
    params, replayed, fitness = evolve(arguments.sharded, arguments.generations)
    same = all(params[path].tobytes() == replayed[path].tobytes() for path in replayed)
    digest = hashlib.sha256(replayed.buffer.tobytes()).hexdigest()[:16]
    first, last = fitness
    print(
        f"process {arguments.rank}: fitness {first:.4f} to {last:.4f}, centre {digest}, as replayed on the host: {same}"
    )


def main():
    """Start the processes, or be one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--address")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        worker(arguments)
        return 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), *sys.argv, "--address", address]
    ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(arguments.processes)]
    return max(rank.wait() for rank in ranks)


if __name__ == "__main__":
    sys.exit(main())
