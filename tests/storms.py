"""Signals at random instants into verbs and loops: `python tests/storms.py INSTANTS SEED WORK…`, a process of its own.

Without names, into all of them: with 420 instants these are ten thousand.

Each round starts from the same state, is struck at a random instant, and ends in the old state, the new one, or one
that the notes of the exception describe: a loop is resumed as they say, and must come to the same end to the bit. What
strikes is a signal whose handler raises, exits, or is struck itself, or an exception raised in the thread by the
interpreter. Prints how often what was seen, as JSON; ends with an error if a state is neither old nor new.
"""

import collections
import ctypes
import json
import os
import random
import re
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

import flatstore as fs
from flatstore import es, ga

NOISE = fs.Rademacher(0.25)
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGALRM


class Struck(Exception):
    """What a handler raises."""


def store_of(size=20_000, dtype="f4"):
    return fs.Store.from_tree({"a": np.zeros(size, dtype), "b": np.ones((3, 5), dtype)})


def notes_of(error):
    """The notes of an exception, and of those that it interrupted: all that a traceback shows."""
    notes = []
    while error is not None:
        notes += getattr(error, "__notes__", [])
        error = error.__context__
    return notes


class Verb:
    """A verb that changes states, all at once: `run` is given the objects that `make` returns."""

    def __init__(self, make, run, parts):
        self.make, self.run, self.parts = make, run, parts

    def digest(self, objects):
        return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in self.parts(objects))

    def prepare(self):
        objects = self.make()
        self.old = self.digest(objects)
        self.run(objects)
        self.new = self.digest(objects)

    def round(self, strike):
        objects = self.make()
        strike()
        try:
            self.run(objects)
        finally:
            self.objects = objects

    def check(self, error):
        """What was seen, after an error or without one."""
        found = self.digest(self.objects)
        notes = notes_of(error)
        if error is None:
            assert found == self.new, "no error, and not the new state"
            return "done"
        if found == self.old != self.new or (found == self.old and not notes):
            assert not any("until the work in progress was finished" in note for note in notes), notes
            return "old"
        if found == self.new:
            return "new"
        written = [note for note in notes if note.startswith("written before this error: ")]
        assert written, f"neither old nor new, and no note says what was written: {notes}"
        self.as_noted(written[0])
        return "as noted"

    def as_noted(self, note):
        raise AssertionError(note)


class AssignEach(Verb):
    """`assign` from an iterable: leaf by leaf, and a note says which."""

    def as_noted(self, note):
        (store,) = self.objects
        for path in store:
            assert (store[path] == (7 if repr(path) in note else VALUES[path])).all(), note


class Loop:
    """A loop that is resumed from its last record, or as the notes say, until it has come to its end."""

    def __init__(self, make, start, parts):
        self.make, self.start, self.parts = make, start, parts

    def digest(self, objects):
        return [part.tobytes() if isinstance(part, np.ndarray) else part for part in self.parts(objects)]

    def prepare(self):
        objects = self.make()
        for _ in self.start(objects, None):
            pass
        self.new = self.digest(objects)

    def round(self, strike):
        self.objects, self.last = self.make(), None
        strike()
        for record in self.start(self.objects, None):
            self.last = record

    def check(self, error):
        seen = "done"
        if error is not None:
            resume, seen = self.last, "from the record"
            if found := re.findall(r"resume=(\d+)", " ".join(notes_of(error))):
                assert len(set(found)) == 1, notes_of(error)
                resume, seen = int(found[0]), "as noted"
            for _ in self.start(self.objects, resume):
                pass
        assert self.digest(self.objects) == self.new, f"another end ({seen}): {notes_of(error)}"
        return seen


def flat(objects):
    return [x.buffer for x in objects]


def perturbed(body, dtype="f4", make=None, parts=flat):
    def run(objects):
        with es.perturbed(objects[0], NOISE, 3):
            body(objects[0])

    return Verb(make or (lambda: [store_of(dtype=dtype)]), run, parts)


def logged(run):
    """A verb that uses the undo log of 16-bit leaves. Whether it is used up is a part of the state."""

    def make():
        store = store_of(dtype="bfloat16")
        return [store, es.perturb(store, NOISE, 3)]

    return Verb(make, run, lambda objects: [objects[0].buffer, objects[1].at, objects[1].nbytes])


def lend(store):
    with store.lend() as params:
        params["a"].sum()


@jax.jit
def score(stacked):
    return -jax.vmap(lambda params: jnp.square(params["a"] - 1).sum())(stacked)


@jax.jit
def fitness(params):
    return -jnp.square(params["a"] - 1).sum()


def with_optimiser(rule, dtype="f4"):
    def make():
        store = store_of(dtype=dtype)
        gradient = store.copy()
        return [rule(store), gradient]

    def parts(objects):
        rule = objects[0]
        return [rule.store.buffer, *(state.buffer for state in rule._states), rule.count]

    return Verb(make, lambda objects: objects[0].step(objects[1], 0.5), parts)


def evolving(optimiser=None, dtype="f4"):
    def make():
        centre = store_of(2000, dtype)
        return [centre, optimiser(centre) if optimiser else None]

    def start(objects, resume):
        return es.evolve(
            objects[0],
            lambda stacked, n: score(stacked),
            seed=1,
            noise=NOISE,
            members=8,
            rate=0.5,
            optimiser=objects[1],
            generations=3,
            resume=resume,
        )

    def parts(objects):
        rule = objects[1]
        return [objects[0].buffer, *([state.buffer for state in rule._states] if rule else []), rule and rule.count]

    return Loop(make, start, parts)


def climbing(dtype="f4", make=None, parts=flat):
    def start(objects, resume):
        score = lambda params, n: fitness(params)  # noqa: E731
        return es.mezo(objects[0], score, seed=1, noise=NOISE, rate=0.001, steps=3, resume=resume)

    return Loop(make or (lambda: [store_of(2000, dtype)]), start, parts)


def population():
    return fs.Population.from_tree({"a": np.zeros(500, "f4"), "b": np.ones(3, "f4")}, 32)


def breeding(pop, resume):
    return ga.evolve(
        pop[0], lambda stacked, n: score(stacked), seed=1, mutate=fs.Normal(0.25), generations=3, resume=resume
    )


VALUES = {"a": 0, "b": 1}
SEVENS = {"a": np.full(20_000, 7, "f4"), "b": np.full((3, 5), 7, "f4")}
JOURNAL = [(i, 0.5) for i in range(3)]


def an_update(dtype="f4"):
    return Verb(lambda: [store_of(dtype=dtype)], lambda x: es.update(x[0], NOISE, [1, 2], [0.5, 0.25]), flat)


def a_module(move=True):
    import torch

    module = torch.nn.Sequential(*(torch.nn.Linear(20, 20) for _ in range(4)))
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 2.0)
    store = fs.adopt(module, move=move)
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter.data, 3.0)
    return [module, store]


def of_module(objects):
    module, store = objects
    inside = [x.data_ptr() == store[name].__array_interface__["data"][0] for name, x in module.named_parameters()]
    return [store.buffer, inside, [x.detach().sum().item() for x in module.parameters()]]


def in_place():
    """A store over tensors of torch's, where they are."""
    import torch

    tensors = {"a": torch.zeros(20_000), "b": torch.ones(3, 5)}
    return [fs.adopt(torch.nn.ParameterDict(tensors), move=False)]


def leaves(objects):
    return [*objects[0].values()]


def of_module_in_place(objects):
    module, store = objects
    inside = [x.data_ptr() == store[name].__array_interface__["data"][0] for name, x in module.named_parameters()]
    return [*store.values(), inside, [x.detach().sum().item() for x in module.parameters()]]


WORK = {
    "perturb": Verb(lambda: [store_of()], lambda x: es.perturb(x[0], NOISE, 1), flat),
    "perturb a small one of two dtypes": Verb(
        lambda: [fs.Store.from_tree({"a": np.zeros(200, "f4"), "b": np.zeros(200, "f8")})],
        lambda x: es.perturb(x[0], NOISE, 1),
        flat,
    ),
    "perturb in 16 bits": Verb(
        lambda: [store_of(dtype="bfloat16")], lambda x: es.perturb(x[0], NOISE, 1, exact=False), flat
    ),
    "perturb, and keep a log": Verb(lambda: [store_of(dtype="bfloat16")], lambda x: es.perturb(x[0], NOISE, 1), flat),
    "undo by a log": logged(lambda x: es.perturb(x[0], NOISE, 3, sign=-1, undo=x[1])),
    "across by a log": logged(lambda x: es.perturb(x[0], NOISE, 3, sign=-2, undo=x[1])),
    "update by a log": logged(lambda x: es.update(x[0], NOISE, [3], [0.5], perturbed=1, undo=x[1])),
    "update, and keep a log": Verb(
        lambda: [store_of(dtype="bfloat16")], lambda x: es.update(x[0], NOISE, [1, 2], [0.5, 0.25], keep=True), flat
    ),
    "snap": Verb(lambda: [fs.Store.from_tree({"a": np.full(20_000, 0.1, "f4")})], lambda x: es.snap(x[0], NOISE), flat),
    "update": an_update(),
    "update in 16 bits": an_update("float16"),
    "sample": Verb(
        lambda: [fs.Population.zeros(STORE.layout, 4)], lambda x: es.sample(x[0], STORE, NOISE, fs.seeds(1, 4)), flat
    ),
    "Adam": with_optimiser(es.Adam),
    "Adam in 16 bits": with_optimiser(es.Adam, "bfloat16"),
    "Momentum": with_optimiser(es.Momentum),
    "ga.step": Verb(
        lambda: [population()], lambda x: ga.step(x[0], np.arange(32.0), seed=1, mutate=fs.Normal(0.25)), flat
    ),
    "assign": Verb(lambda: [store_of()], lambda x: x[0].assign(SEVENS), flat),
    "assign each": AssignEach(lambda: [store_of()], lambda x: x[0].assign(iter(SEVENS.items())), flat),
    "set a leaf": Verb(lambda: [store_of()], lambda x: x[0].__setitem__("a", SEVENS["a"]), flat),
    "put_back": Verb(lambda: [store_of()], lambda x: fs.put_back(x[0], SEVENS), flat),
    "adopt": Verb(a_module, lambda x: fs.adopt(*x), of_module),
    "perturb in place": Verb(in_place, lambda x: es.perturb(x[0], NOISE, 1), leaves),
    "update in place": Verb(in_place, lambda x: es.update(x[0], NOISE, [1, 2], [0.5, 0.25]), leaves),
    "assign in place": Verb(in_place, lambda x: x[0].assign(SEVENS), leaves),
    "lend in place": Verb(in_place, lambda x: (lend(x[0]), x[0].__setitem__("a", SEVENS["a"])), leaves),
    "adopt in place": Verb(lambda: a_module(move=False), lambda x: fs.adopt(*x), of_module_in_place),
    "perturbed in place": perturbed(lend, make=in_place, parts=leaves),
    "perturbed": perturbed(lambda store: None),
    "perturbed in 16 bits": perturbed(lambda store: None, "bfloat16"),
    "perturbed, long": perturbed(lambda store: MATRIX @ MATRIX),
    "perturbed, lent": perturbed(lend),
    "lend": Verb(lambda: [store_of()], lambda x: (lend(x[0]), x[0].__setitem__("a", SEVENS["a"])), flat),
    "ga.evolve": Loop(lambda: [population()], breeding, flat),
    "es.evolve": evolving(),
    "es.evolve in 16 bits": evolving(dtype="bfloat16"),
    "es.evolve with Adam": evolving(es.Adam),
    "mezo": climbing(),
    "mezo in place": climbing(make=in_place, parts=leaves),
    "mezo in 16 bits": climbing("bfloat16"),
}
STORE, MATRIX = store_of(), np.ones((200, 200))

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object]


class Storm:
    """Strikes once in a round, after a delay, in one of several ways."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        for number in SIGNALS:
            signal.signal(number, self.handle)
        self.armed, self.begin = False, threading.Lock()
        self.begin.acquire()
        threading.Thread(target=self.run, args=(threading.get_ident(),), daemon=True).start()

    def handle(self, number, frame):
        if not self.armed:
            return
        if self.way == "nests":
            self.way = "raises"
            os.kill(os.getpid(), signal.SIGTERM)
        if self.way == "exits":
            sys.exit(128 + number)
        if self.way == "calls a verb":
            es.perturb(OTHER, NOISE, 1)
            es.perturb(OTHER, NOISE, 1, sign=-1)
            return
        raise Struck(number)

    def prepare(self, longest):
        self.way = self.random.choice(["raises", "exits", "nests", "twice", "calls a verb", "in the thread"])
        self.delay = self.random.random() * longest
        self.armed = True
        self.number = self.random.choice(SIGNALS)

    def strike(self):
        """Begin to wait for the instant."""
        self.struck = False
        self.begin.release()

    def run(self, ident):
        """Wait, and strike, again and again: a thread of its own, since to start one can be struck, too."""
        while True:
            self.begin.acquire()
            time.sleep(self.delay)
            if self.way == "in the thread":
                _raise_in(ident, Struck)
            else:
                os.kill(os.getpid(), self.number)
                if self.way == "twice":
                    os.kill(os.getpid(), SIGNALS[SIGNALS.index(self.number) - 1])
            self.struck = True

    def settle(self):
        """Wait until nothing more can come."""
        while not self.struck:
            time.sleep(0.0005)
        time.sleep(0.0005)


OTHER = store_of(100)


def weather(name, instants, storm):
    """What was seen, and how often."""
    work, seen = WORK[name], collections.Counter()
    work.prepare()
    began, taken = [0.0], []
    for _ in range(5):
        work.round(lambda: began.append(time.perf_counter()))
        taken.append(time.perf_counter() - began[-1])
    longest = 1.1 * sorted(taken)[2]
    for i in range(instants):
        storm.prepare(longest)
        error = None
        try:
            try:
                work.round(storm.strike)
            finally:
                storm.armed = False
        except (Struck, SystemExit) as raised:
            error = raised
        storm.armed = False
        try:
            storm.settle()
        except Struck:  # raised in the thread, too late
            storm.settle()
        try:
            seen[work.check(error)] += 1
        except AssertionError as wrong:
            raise AssertionError(f"{name}, instant {i} ({storm.way}): {wrong}") from error
        del error
    return dict(seen)


def main(instants, seed, *names):
    sys.setswitchinterval(1e-5)  # what strikes must not wait until the struck thread waits
    storm = Storm(int(seed))
    es.perturb(OTHER, NOISE, 1)
    es.perturb(OTHER, NOISE, 1, sign=-1)
    for name in names or WORK:
        print(json.dumps({name: weather(name, int(instants), storm)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
