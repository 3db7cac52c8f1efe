"""Law 7 in a forked child: a free lock, no writers, no readers, threads of its own, whatever its parent was doing."""

import os
import subprocess
import sys
import textwrap

import pytest

FRAME = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")  # that a process with threads forks
import numpy as np, flatstore as fs
from flatstore import es, ga
noise = fs.Rademacher(0.5)
store = fs.Store.from_tree({"w": np.zeros(300_000, "f4")})
pop = fs.Population.zeros(store.layout, 8)

def verbs(mine=store):
    es.perturb(mine, noise, 7)
    es.perturb(mine, noise, 7, sign=-1)
    with es.perturbed(mine, noise, 3):
        pass
    ga.step(pop, np.arange(8.0), seed=1, mutate=noise)
    mine["w"] = np.ones(300_000, "f4")
    mine.assign(mine.copy())
    mine["w"][:] = 0
    return mine.to_vector().any()

def child(check):
    process = os.fork()
    if process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return "hangs"
    try:
        os._exit(int(bool(check())))
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(9)

verbs()
def in_thread(call):
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread
%s
sys.stdout.flush()
os._exit(0)  # threads inside of JAX cannot be ended by the interpreter
"""

FORKS = {
    "a quiet parent": "print({child(verbs) for _ in range(5)})",
    "threads that make views": """
        def work():
            while True:
                fs.Store.zeros(store.layout)["w"]
                store.modules()
                list(pop)
        for _ in range(4):
            in_thread(work)
        print({child(verbs) for _ in range(40)})
        """,
    "threads that lend and write": """
        def work():
            mine = store.copy()
            while True:
                es.perturb(mine, noise, 7)
                with mine.lend():
                    pass
                es.perturb(mine, noise, 7, sign=-1)
                mine.to_vector()
        for _ in range(3):
            in_thread(work)
        print({child(verbs) for _ in range(40)})
        """,
    "a thread that writes what the child writes": """
        big = fs.Store.from_tree({"w": np.zeros(30_000_000, "f4")})
        def work():
            while True:
                es.perturb(big, noise, 7)
                es.perturb(big, noise, 7, sign=-1)
        in_thread(work)
        time.sleep(0.1)
        def write():
            es.perturb(big, noise, 1, exact=False)
            big["w"][:5] = 1
        print({child(write) for _ in range(10)})
        """,
    "a thread that lends what the child writes": """
        begun = threading.Event()
        view = store["w"]
        def work():
            with store.lend():
                begun.set()
                time.sleep(1000)
        in_thread(work)
        begun.wait()
        def write():
            view[:] = 5
            store["w"] = np.ones(300_000, "f4")
            return not (store["w"] == 1).all()
        print({child(write)}, not view.flags.writeable)
        """,
    "a thread that lends memory of others, in several ranges": """
        from flatstore.memory import Spans
        whole = np.zeros(200_000, "f4")
        whole = whole[-whole.ctypes.data % 64 // 4 :]
        tree = {"a": whole[:64_000], "b": whole[96_000:160_000]}
        memory = Spans([x.view(np.uint8) for x in tree.values()], list)
        places = {path: x.ctypes.data - memory.start for path, x in tree.items()}
        spans, begun = fs.Store.in_place(memory, fs.Layout.from_tree(tree), places), threading.Event()
        view = spans["b"]
        def work():
            with spans.lend():
                begun.set()
                time.sleep(1000)
        in_thread(work)
        begun.wait()
        def write():
            view[:] = 5
            spans["a"] = np.ones(64_000, "f4")
            return not (spans["b"] == 5).all() or not spans["b"].flags.writeable or not (spans["a"] == 1).all()
        print({child(write)}, not view.flags.writeable)
        """,
    "a thread that has stopped as it notes that it reads": """
        from flatstore.memory import overlaps, readers_and_writers
        def stopping(real):
            return lambda *rest: time.sleep(1000) if hasattr(here, "stops") else real(*rest)
        readers_and_writers.enter = stopping(readers_and_writers.enter)
        overlaps._replace, here = stopping(overlaps._replace), threading.local()
        for work in (store.to_vector, lambda: fs.Store.zeros(store.layout)):
            in_thread(lambda: (setattr(here, "stops", True), work()))
        time.sleep(0.1)
        print({child(verbs)})
        """,
    "in the middle of contexts": """
        def check():
            return store.buffer.tobytes().count(0) != store.buffer.nbytes
        with es.perturbed(store, noise, 3):
            with store.lend():
                lent = os.fork()
            if lent == 0:
                os._exit(not store["w"].flags.writeable)
            process = os.fork()
        if process == 0:
            os._exit(check())
        print({os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (lent, process)}, check())
        """,
    "a thread that compiles": """
        from flatstore.kernels import compiled
        def compile_one():
            @compiled
            def increased(x):
                return x + 1
            return increased(1) != 2
        def work():
            while True:
                compile_one()
        in_thread(work)
        print({child(compile_one) for _ in range(3)})
        """,
}


EXPECTED = {
    "a thread that lends what the child writes": "{0} True",  # the parent's view is still read-only
    "a thread that lends memory of others, in several ranges": "{0} True",
    "in the middle of contexts": "{0} False",
}


@pytest.mark.long(but="thread that")
@pytest.mark.parametrize("fork", FORKS)
def test_a_child_is_free_of_what_its_parent_was_doing(fork):
    command = [sys.executable, "-c", FRAME % textwrap.dedent(FORKS[fork])]
    environment = {"FLATSTORE_CACHE_DIR": ""} if fork == "a thread that compiles" else {}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == EXPECTED.get(fork, "{0}")
