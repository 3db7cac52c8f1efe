"""Law 7 for signal handlers: they may wait for other threads, lend, and raise, wherever they come."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import flatstore as fs
from flatstore.memory import live_views

WAITING = """
import signal, sys, threading, time
import numpy as np, flatstore as fs
from flatstore import es
store, other = (fs.Store.from_tree({f"leaf{i}": np.zeros(16, "f4") for i in range(20)}) for _ in range(2))
noise, waited, inside = fs.Rademacher(0.5), [], []

def verbs(mine):
    mine.to_vector()
    with mine.lend():
        mine["leaf3"]
    es.perturb(mine, noise, 1, exact=False)
    fs.Store.wrap(mine.buffer, mine.layout).tree
    mine.copy()["leaf3"]

def handler(number, frame):
    if inside:  # the next signal, while the last one is handled
        return
    inside.append(1)
    thread = threading.Thread(target=verbs, args=(other,), daemon=True)
    thread.start()
    thread.join(20)
    waited.append(thread.is_alive())
    inside.clear()

verbs(store), verbs(other)
signal.signal(signal.SIGALRM, handler)
end = time.monotonic() + 3
while (time.monotonic() < end or len(waited) <= 20 and time.monotonic() < end + 60) and True not in waited:
    signal.setitimer(signal.ITIMER_REAL, 2e-5 + 1e-5 * (len(waited) % 50))
    fs.Store.wrap(store.buffer, store.layout).tree
    store.copy().tree
    store.to_vector()
signal.setitimer(signal.ITIMER_REAL, 0)
print(set(waited), len(waited) > 20)
sys.stdout.flush()
import os
os._exit(0)
"""


def test_a_handler_may_wait_for_the_verbs_of_another_thread():
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("{False} True\n", "")


def test_a_lend_that_a_handler_begins_as_views_become_writable_keeps_them_read_only(monkeypatch):
    store, real, lends, calls = (
        fs.Store.from_tree({f"w{i}": np.zeros(16, "f4") for i in range(9)}),
        live_views._thaw,
        [],
        [],
    )
    views = [store[path] for path in store]

    def struck(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            lends.append(store.lend())
            lends[0].__enter__()
        return real(*arguments)

    monkeypatch.setattr(live_views, "_thaw", struck)
    with store.lend():
        pass
    assert not any(view.flags.writeable for view in views)
    lends[0].__exit__(None, None, None)
    assert all(view.flags.writeable for view in views)


def test_a_lend_that_a_signal_begins_as_views_become_writable_keeps_them_read_only():
    pop, lends = fs.Population.from_tree({"w": np.zeros(16, "f4")}, 3000), []
    views = [member["w"] for member in pop]

    def handler(number, frame):
        lends.append(pop.lend())
        lends[-1].__enter__()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for i in range(0, 30, 2):
            with pytest.raises(fs.LentError), pop.lend(patience=0) as lent:
                held = np.asarray(lent["w"])
            del held, lent
            signal.setitimer(signal.ITIMER_REAL, 5e-5 + 5e-5 * i)
            whole = pop["w"]  # the lend is over: its views become writable
            while not lends:
                time.sleep(1e-4)
            assert not any(view.flags.writeable for view in (whole, *views))
            lends.pop().__exit__(None, None, None)
            assert all(view.flags.writeable for view in (whole, *views))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_reader_that_is_struck_reads_no_more_though_the_exception_is_kept():
    store, kept = fs.Store.from_tree({f"w{i}": np.zeros(16, "f4") for i in range(9)}), []

    def handler(number, frame):
        raise TimeoutError

    before, end = signal.signal(signal.SIGALRM, handler), time.monotonic() + 60
    try:
        while len(kept) < 600 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-6 * (len(kept) % 30))
                while True:
                    store.to_vector()
            except TimeoutError as error:
                kept.append(error)
            store["w1"] = np.ones(16, "f4")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(kept) == 600
