"""An inference engine whose parameters evolve where they are: no byte moves, and only seeds and fitness are sent.

An engine keeps its parameters fused (gate and up in one tensor) and sharded (each process some rows or columns), and
holds their addresses: graphs were captured on them. `fs.adopt_parts` makes a store over them with the indices of the
whole model. So every worker makes the noise of a seed for its own parts, in place, and takes it back to the bit; and
the trainer, who has the whole model under its own names, moves by the same seeds and weights to the same bits.

`InPlace` is all that an engine's workers need. vLLM, for one, mixes such a class into its worker if it is named as
`worker_extension_cls`, and `llm.collective_rpc("perturb", args=(seed,))` calls it in every process. On a card the
kernels are Triton's, and the bits the same. Here the engine is a stand-in in host memory: torch modules, a cache of
what was asked before, and "captured graphs" that read raw addresses.

    python examples/engine.py [--processes 2] [--generations 60]

Needs `pip install 'flatstore[torch]'`.
"""

import argparse
import ctypes
import hashlib

import numpy as np
import torch

import flatstore as fs
from flatstore import es

INPUTS, INNER, OUTPUTS = 16, 64, 8
NOISE, SEEDS = fs.Normal(0.03, bound=8), 32


def parts_of(model, rank, ranks):
    """What a worker has of the whole model: slices of its tensors by the paths there, and where in them they begin."""
    own = INNER // ranks
    parts = {"gate.weight": model.gate_up.weight[:own], "up.weight": model.gate_up.weight[own:]}
    return parts, {"gate.weight": rank * own, "up.weight": rank * own, "head.weight": (0, rank * own)}


class InPlace:
    """What is added to an engine's worker: it perturbs and moves the parameters by seeds, where they are."""

    def adopt(self, whole, rank, ranks):
        """Make a store over the parameters of this worker; `whole` is the layout of the trained model."""
        parts, at = parts_of(self.model, rank, ranks)
        self.store, self.log = fs.adopt_parts(self.model, whole, parts, at=at), None

    def perturb(self, seed, sign=1):
        """Add the noise of a seed. The opposite sign takes it back, to the bit, in 16 bits by the log."""
        self.log = es.perturb(self.store, NOISE, seed, sign=sign, undo=self.log)
        self.reset()

    def update(self, seeds, weights):
        """Move by the weighted noise of many seeds."""
        es.update(self.store, NOISE, seeds, weights)
        self.reset()

    def reset(self):
        """Forget what was computed with other parameters. Verbs look for themselves whether an address has changed."""
        self.cache.clear()

    def digest(self):
        """A hash of each parameter, by its name in the engine."""
        bits = {name: weight.detach().cpu().view(torch.uint8) for name, weight in self.model.named_parameters()}
        return {name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in bits.items()}


class Worker(InPlace):
    """A process of the stand-in: a fused and sharded model, a cache, and a graph that was captured before."""

    def __init__(self, ranks):
        self.model = torch.nn.Module()
        self.model.gate_up = torch.nn.Linear(INPUTS, 2 * INNER // ranks, bias=False)
        self.model.head = torch.nn.Linear(INNER // ranks, OUTPUTS, bias=False)
        self.model.requires_grad_(False)
        self.cache = {}
        self.graph = {name: at_address(weight) for name, weight in self.model.named_parameters()}

    def infer(self, name, x):
        """Return the worker's part of the outputs, by the captured graph; from the cache if it was asked before."""
        if name not in self.cache:
            gate, up = np.split(self.graph["gate_up.weight"] @ x, 2)
            self.cache[name] = self.graph["head.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        return self.cache[name]


def at_address(weight):
    """The numbers at the address that a weight has now: what a captured graph keeps of it."""
    numbers = (ctypes.c_float * weight.numel()).from_address(weight.data_ptr())
    return np.ctypeslib.as_array(numbers).reshape(weight.shape)


def beside(trainer, worker, rank, ranks):
    """(path, the part that a worker has, the same part of the trainer's model) of all leaves."""
    at = parts_of(worker.model, rank, ranks)[1]
    for path, view in worker.store.items():
        block = tuple(slice(a, a + n) for a, n in zip(np.ravel(at[path]), view.shape, strict=False))
        yield path, view, trainer[path][block]


def main():
    """Evolve the engine, and the trainer's model beside it, and compare their bits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--generations", type=int, default=60)
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    shapes = {"gate.weight": (INNER, INPUTS), "head.weight": (OUTPUTS, INNER), "up.weight": (INNER, INPUTS)}
    trainer = fs.Store.from_tree({path: rng.normal(0, 0.2, shape).astype("f4") for path, shape in shapes.items()})
    es.snap(trainer, NOISE)
    workers = [Worker(arguments.processes) for _ in range(arguments.processes)]
    for rank, worker in enumerate(workers):
        worker.adopt(trainer.layout, rank, arguments.processes)
        for _, view, ours in beside(trainer, worker, rank, arguments.processes):
            view[...] = ours  # the engine's own way to load weights would do

    x, wanted = rng.normal(size=(INPUTS, 128)).astype("f4"), rng.normal(size=(OUTPUTS, INPUTS)).astype("f4") / 4

    def loss():
        return float(np.square(sum(worker.infer("batch", x) for worker in workers) - wanted @ x).mean())

    before = {id(worker): worker.digest() for worker in workers}
    for worker in workers:
        worker.perturb(7)
    for worker in workers:
        worker.perturb(7, sign=-1)
    print("taken back to the bit:", all(worker.digest() == before[id(worker)] for worker in workers))

    print(f"loss {loss():.4f}")
    for generation in range(arguments.generations):
        seeds, losses = fs.seeds((0, generation), SEEDS), []
        for seed in seeds.tolist():
            for worker in workers:
                worker.perturb(seed)
            losses.append(loss())
            for worker in workers:
                worker.perturb(seed, sign=-1)
        weights = 2.0 * (np.mean(losses) - losses) / (np.std(losses) + 1e-8) / SEEDS
        for worker in workers:
            worker.update(seeds, weights)
        es.update(trainer, NOISE, seeds, weights)
    print(f"after {arguments.generations} generations: loss {loss():.4f}")

    same = [
        view.tobytes() == ours.tobytes()
        for rank, worker in enumerate(workers)
        for _, view, ours in beside(trainer, worker, rank, arguments.processes)
    ]
    print("the trainer has the same bits:", all(same))

    workers[0].model.head.weight.data = workers[0].model.head.weight.data.clone()
    try:
        workers[0].perturb(7)
    except fs.StructureError as error:
        print(f"refused, since a captured graph would not have seen it: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
