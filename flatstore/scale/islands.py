"""Islands on Ray: populations that evolve apart, each in its own process, and whose best travel now and then.

```
run/island-0/epoch-3/          a run of ga.evolve; what the island is made again from
run/island-0/best-3.safetensors    the best of its last generation, which another island reads
run/journal.jsonl              the fitness of all islands, epoch by epoch
```

An epoch of an island is a function of the seed, of the epoch before, and of those who come. So an island that has died
is made again by another process, to the bit, from where its folder says; and so is a run whose driver has died.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flatstore import ga
from flatstore.checks import whole
from flatstore.evaluation import MOST_DEATHS, WorkerError, check_run
from flatstore.extras import require
from flatstore.files import load
from flatstore.layout import Array
from flatstore.noise import Seed
from flatstore.recording import RunFolder, RunPath, as_numbers, as_texts, described, run_entries
from flatstore.scale.island import Island, Job
from flatstore.scale.replica import cause_of, end
from flatstore.store import Population, Store
from flatstore.threads import noted


@dataclass(frozen=True)
class Epoch:
    """The record of an epoch."""

    number: int
    """The number of the epoch, counted from 0."""
    fitness: Array
    """The fitness of each island's last generation, shape (islands, members), float64."""


def islands(
    make: Callable[[int], tuple[Population, Callable[[Any, int], Any]]] | str,
    *,
    seed: Seed,
    mutate: Any,
    count: int,
    every: int,
    run: RunPath,
    migrants: int = 1,
    route: str = "ring",
    epochs: int | None = None,
    select: Any = ga.Tournament(),  # noqa: B008 (a frozen value)
    crossover: Any = ga.Uniform(),  # noqa: B008 (a frozen value)
    bounds: ga.Bounds | None = None,
    elite: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Generator[Epoch]:
    """`ga.evolve` on islands of a Ray cluster, each a population in the memory of a process: a generator of epochs.

    After every so many generations the best of each island take the places of the worst of another one. An island waits
    for nobody but itself and the one that it receives from. The run is a function of its seed, whoever dies.

        def make(island):
            return fs.Population.from_tree(model(island), 64), evaluate

        for epoch in fs.scale.ray.islands(
            make, seed=0, mutate=fs.Normal(0.02), count=8, every=10, migrants=2, run="/shared/run", epochs=50
        ):
            print(epoch.number, epoch.fitness.max())
        fs.save("champion.safetensors", fs.scale.ray.champion("/shared/run"))

    Args:
        make: a function of the number of an island that returns its first population, and a function `(stacked,
            generation) -> fitness` as in `ga.evolve`; or its name, "module:function". It is called where the island is.
        seed: a non-negative integer or several.
        mutate: as in `ga.evolve`, as are the other operators.
        count: the number of islands, 2 or more.
        every: the number of generations in an epoch.
        run: a folder that all nodes see, such as one of a network file system. Those who travel go through it, and so
            does what an island is made again from. The same call goes on from there.
        migrants: how many travel from each island; fewer than its members.
        route: "ring", from each island to the next one; or "random", along a ring that is drawn for each epoch.
        epochs: the total number; None to go on until the caller stops.
        select: as in `ga.step`.
        crossover: as in `ga.step`.
        bounds: as in `ga.step`.
        elite: as in `ga.step`.
        options: options of Ray's actors. `num_cpus` is 1: while the cluster has fewer CPUs than islands, some wait.

    Raises ImportError without Ray; ValueError and TypeError for arguments that are out of range; `RuntimeError` if an
    island has died three times in an epoch. With the epochs: the errors of a run's folder; `ValueError` for islands of
    other sizes, `StructureError` for those of other layouts. What an evaluation raises is raised here, with the
    traceback of the island as its cause.
    """
    for name, value, least in (("count", count, 2), ("every", every, 1), ("migrants", migrants, 1)):
        if not whole(value) >= least:
            raise ValueError(f"expected {name} >= {least}, got {value!r}; fix: pass a larger number")
    if route not in ("ring", "random"):
        raise ValueError(f"expected route 'ring' or 'random', got {route!r}; fix: pass one of these")
    operators = {"mutate": mutate, "select": select, "crossover": crossover, "bounds": bounds, "elite": elite}
    chosen = check_run(bool, seed, epochs, "epochs")
    job = Job(make, chosen, count, every, migrants, route, os.path.abspath(os.fspath(run)), operators)
    ray = require("ray", "ray")
    return _epochs(ray, job, epochs, {"num_cpus": 1, **(options or {}), "max_restarts": 0, "max_task_retries": 0})


def _epochs(ray: Any, job: Job, most: int | None, options: Mapping[str, Any]) -> Generator[Epoch]:
    settings = {name: getattr(job, name) for name in ("seed", "count", "every", "migrants", "route")} | job.operators
    with RunFolder(job.run, described({"algorithm": "scale.islands"} | settings)) as folder:
        if most is not None and len(folder) > most:
            raise ValueError(
                f"expected at least the {len(folder)} epochs that the run has, got {most}; "
                "fix: champion(run) is the best of the last"
            )
        if folder.is_new:
            folder.begin({})
        new = partial(ray.remote(Island).options(**options).remote, job)
        actors: list[Any] = [new(island) for island in range(job.count)]
        done, deaths = [len(folder) - 1] * job.count, [0] * job.count
        came: dict[tuple[int, int], Array] = {}
        running: dict[Any, int] = {}
        try:
            while most is None or len(folder) < most:
                with noted(lambda _: [f"the run has {len(folder)} epochs; fix: islands(..., run={job.run!r}) goes on"]):
                    for island in range(job.count):
                        epoch = done[island] + 1
                        is_next = done[job.source(island, epoch)] + 1 >= epoch and (most is None or epoch < most)
                        if is_next and island not in running.values():
                            running[actors[island].evolve.remote(epoch, min(done))] = island
                    (answer,), _ = ray.wait([*running])
                    island = running.pop(answer)
                    try:
                        fitness = ray.get(answer)
                    except ray.exceptions.RayTaskError as error:
                        raise cause_of(error) from WorkerError(str(error))
                    except ray.exceptions.RayError as error:
                        deaths[island] += 1
                        if deaths[island] >= MOST_DEATHS:
                            raise RuntimeError(
                                f"expected an island that goes on, got island {island}, which died {MOST_DEATHS} times "
                                f"in epoch {done[island] + 1}; fix: see what it printed"
                            ) from error
                        actors[island] = new(island)
                        continue
                    done[island], deaths[island] = done[island] + 1, 0
                    came[done[island], island] = np.frombuffer(fitness)
                    number = len(folder)
                    if min(done) < number:
                        continue
                    rows = [came.pop((number, i)) for i in range(job.count)]
                    sizes = [len(row) for row in rows]
                    if len({*sizes}) > 1:
                        raise ValueError(f"expected islands of equal size, got {sizes} members; fix: make them so")
                    all_of_it = np.stack(rows)
                    folder.append({"number": number, "fitness": [as_texts(row) for row in all_of_it]})
                yield Epoch(number, all_of_it)
        finally:
            for actor in actors:
                end(ray, actor)


def champion(run: RunPath) -> Store:
    """The best member of the last epoch of a run of islands: a copy. Another process may go on with the run.

    Raises `ValueError` for a run without an epoch, and for one that is not of islands; `OSError` where there is none.
    """
    before = -1
    while True:
        entries = deque(enumerate(run_entries(run)), maxlen=1)
        if not entries:
            raise ValueError(f"expected a run of islands with an epoch, got none in {os.fspath(run)!r}; fix: wait")
        number, last = entries[0]
        try:
            island = int(np.argmax([np.nanmax(as_numbers(row)) for row in last["fitness"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected the fitness of islands in entry {number} of the run {os.fspath(run)!r}, got another "
                f"({error!r}); fix: name a run of scale.ray.islands"
            ) from error
        try:
            best: Any = load(os.path.join(run, f"island-{island}", f"best-{number}.safetensors"))
        except FileNotFoundError:
            if number == before:
                raise
            before = number  # a run that goes on removes what it does not need
        else:
            return best[0].copy()
