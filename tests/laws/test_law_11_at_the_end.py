"""A process ends, whatever flatstore is doing then: verbs that run while the interpreter ends work, or raise."""

import subprocess
import sys
import textwrap

import pytest

FRAME = """
import atexit, gc, os, sys, threading, time
import numpy as np, flatstore as fs
from flatstore import es, ga
gc.disable()  # what is garbage is collected at the very end

def main(os=os, sys=sys, np=np, fs=fs, es=es, ga=ga, bool=bool, map=map, str=str):  # names outlive their modules here
    store, noise = fs.Store.from_tree({"w": np.zeros(300_000, "f4")}), fs.Rademacher(0.5)
    es.perturb(store, noise, 1)
    es.perturb(store, noise, 1, sign=-1)

    class AtTheEnd:
        '''Calls something when it is collected, for it is in a cycle.'''
        def __init__(self, call):
            self.call, self.me = call, self
        def __del__(self):
            self.call()

    def is_zero(store):  # methods of NumPy import what they need, and at the end nothing can be imported
        return store.buffer.tobytes().count(0) == store.buffer.nbytes

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
%s
main()
"""

ENDINGS = {
    "a context suspended in a cycle": (
        """
        def trials():
            try:
                with es.perturbed(store, noise, 7):
                    yield
            finally:
                say("given back:", is_zero(store))
        g = trials()
        next(g)
        cycle = [g]
        cycle.append(cycle)
        """,
        "given back: True",
    ),
    "a lend suspended in a cycle": (
        """
        def trials():
            try:
                with store.lend() as params:
                    yield params
            finally:
                say("left")
        g = trials()
        next(g)
        cycle = [g]
        cycle.append(cycle)
        """,
        "left",
    ),
    "a loop suspended in a cycle": (
        """
        moves = es.mezo(store, lambda params, n: 1.0, seed=0, noise=noise, rate=1.0)
        next(moves)
        cycle = [moves]
        cycle.append(cycle)
        """,
        "",
    ),
    "JAX in __del__": (
        """
        with store.lend():
            pass
        rebuild, flat = fs.destructure(store)[1], store.flat
        def uses():
            for use in (
                lambda: store.lend().__enter__(),
                lambda: store.alias("jax"),
                lambda: rebuild(flat),
            ):
                try:
                    use()
                except RuntimeError as error:
                    say("refused:", str(error)[:39])
        AtTheEnd(uses)
        """,
        "\n".join(["refused: expected a process in which JAX can run"] * 3),
    ),
    "verbs in __del__": (
        """
        pop = fs.Population.zeros(store.layout, 8)
        ga.step(pop, np.arange(8.0), seed=1, mutate=noise)
        def verbs():
            es.perturb(store, noise, 7)
            say("ran:", not is_zero(store), sys.is_finalizing())
            for verb in (
                lambda: es.update(store, noise, [1, 2], [0.5, 0.5]),
                lambda: es.sample(pop, store, noise, fs.seeds(1, 8)),
                lambda: ga.step(pop, np.arange(8.0), seed=1, mutate=noise),
                lambda: store.assign(store.to_vector()),
                lambda: pop[0].copy(),
            ):
                try:
                    verb()
                except ImportError:  # of NumPy
                    pass
        AtTheEnd(verbs)
        """,
        "ran: True True",
    ),
    "verbs in atexit": (
        """
        @atexit.register
        def verbs():
            es.perturb(store, noise, 7)
            say("ran:", not is_zero(store))
        """,
        "ran: True",
    ),
    "the first verb of all in atexit": (
        """
        lines = (
            "import atexit, numpy as np, flatstore as fs",
            "store = fs.Store.from_tree({'w': np.zeros(300_000, 'f4')})",
            "atexit.register(lambda: print('ran:', bool(store['w'].any())))",
            "atexit.register(lambda: fs.es.perturb(store, fs.Rademacher(0.5), 7))",
        )
        os.execv(sys.executable, [sys.executable, "-c", chr(10).join(lines)])
        """,
        "ran: True",
    ),
    "verbs at work in threads": (
        """
        def work(own):
            while True:
                es.perturb(own, noise, 7)
                own.to_vector()
                es.perturb(own, noise, 7, sign=-1)
        for _ in range(3):
            threading.Thread(target=work, args=(store.copy(),), daemon=True).start()
        time.sleep(0.2)
        AtTheEnd(lambda: say("wrote:", store.assign(store.to_vector())))
        """,
        "wrote: None",
    ),
    "a verb at work on what is written at the end": (
        """
        big = fs.Store.from_tree({"w": np.zeros(30_000_000, "f4")})
        def work():
            while True:
                es.perturb(big, noise, 7)
                es.perturb(big, noise, 7, sign=-1)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        def write():
            try:
                es.perturb(big, noise, 8)
                say("done")
            except fs.LentError as error:
                say("refused")
        AtTheEnd(write)
        """,
        ("done", "refused"),
    ),
    "a thread that has stopped as it notes that it reads": (
        """
        from flatstore.memory import readers_and_writers
        real, here = readers_and_writers.enter, threading.local()
        readers_and_writers.enter = lambda *rest: time.sleep(1000) if hasattr(here, "stops") else real(*rest)
        threading.Thread(target=lambda: (setattr(here, "stops", True), store.to_vector()), daemon=True).start()
        time.sleep(0.2)
        AtTheEnd(lambda: say("wrote:", store.assign(np.zeros(300_000, "f4"))))
        """,
        "wrote: None",
    ),
    "verbs in threads that end later than the main one": (
        """
        def work():
            time.sleep(0.2)
            es.perturb(store, noise, 7)
            say("ran:", bool(store["w"].any()))
        threading.Thread(target=work).start()
        """,
        "ran: True",
    ),
}


SHORT = (
    "a context suspended in a cycle",
    "JAX in __del__",
    "verbs in __del__",
    "a thread that has stopped as it notes that it reads",
)


@pytest.mark.parametrize("ending", SHORT)
def test_a_process_ends(ending):
    check(ending)


@pytest.mark.long
@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending not in SHORT])
def test_a_process_ends_whatever_is_suspended_running_or_still_to_run(ending):
    check(ending)


def check(ending):
    code, expected = ENDINGS[ending]
    command = [sys.executable, "-c", FRAME % textwrap.indent(textwrap.dedent(code), "    ")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip() in ([expected] if isinstance(expected, str) else expected)


IMPORTING = """
import _imp, atexit, gc, os, threading, time
at_last, begun = threading.Event(), threading.Event()
atexit.register(lambda: (at_last.set(), begun.wait()))  # the last of all
stopped = lambda: (at_last.wait(), _imp.acquire_lock(), begun.set(), time.sleep(1000))
threading.Thread(target=stopped, daemon=True).start()
import numpy as np, flatstore as fs
from flatstore import es, ga
gc.disable()

def main(os=os, np=np, fs=fs, es=es, ga=ga, str=str, bytes=bytes):
    noise, trees = fs.Rademacher(0.5), [{"w": np.zeros(9, "f4")}, {"w": np.zeros(9, "f8")}]
    store, other = map(fs.Store.from_tree, trees)
    pop, fitness = fs.Population.from_tree(trees[0], 8), np.arange(8.0)
    es.perturb(store, noise, 1)

    class AtTheEnd:
        def __init__(self):
            self.me = self

        def __del__(self):
            es.perturb(store, noise, 1, sign=-1)
            os.write(1, str(store.buffer.tobytes().count(0)).encode() + bytes([10]))
            for verb in (
                lambda: es.perturb(other, noise, 7),
                lambda: es.snap(other, noise),
                lambda: es.update(other, noise, [1], [0.5]),
                lambda: ga.step(pop, fitness, seed=1, mutate=noise),
            ):
                try:
                    verb()
                except RuntimeError as error:
                    os.write(1, error.args[0][:45].encode() + bytes([10]))

    AtTheEnd()

main()
"""


def test_a_process_ends_though_a_thread_was_stopped_as_it_imported():
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["36", *["expected a process that goes on, got one that"] * 4]
