"""Law 7 between processes: many readers or one writer, and who is killed frees what it held."""

import contextlib
import gc
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import es, ga
from flatstore.memory import using
from tests.example_trees import says
from tests.other_processes import Other, segments_there, until

N = 100_000
NOISE = fs.Rademacher(0.5)


@pytest.fixture(scope="module")
def other():
    with Other() as process:
        yield process


@pytest.fixture
def shared(other):
    """A store that another process has attached to."""
    store = fs.Store.from_tree({"b": np.ones(3, "f4"), "w": np.ones(N, "f4")}).share()
    other(f"x = fs.attach({store.segment!r})")
    yield store
    other("stack = lend = tree = x = None")


def verbs(store):
    """All kinds of verbs that write."""
    small = fs.Store.from_tree({"b": np.zeros(3, "f4"), "w": np.zeros(N, "f4")})
    yield "assign", lambda: store.assign(small)
    yield "setitem", lambda: store.__setitem__("b", np.zeros(3, "f4"))
    yield "perturb", lambda: es.perturb(store, NOISE, 7)
    yield "update", lambda: es.update(store, NOISE, [1], [0.5])
    yield "snap", lambda: es.snap(store, NOISE)
    yield "sample", lambda: es.sample(store, small, NOISE, [3])


HOLDS = {
    "a lend": "stack = contextlib.ExitStack(); tree = stack.enter_context(x.lend())",
    "a reading": "stack = contextlib.ExitStack(); stack.enter_context(x.reading())",
}


@pytest.mark.parametrize("how", HOLDS)
def test_a_verb_that_finds_a_reader_in_another_process_raises_and_nothing_is_written(other, shared, how):
    other(HOLDS[how])
    for _, verb in verbs(shared):
        with pytest.raises(fs.LentError) as caught:
            verb()
        says(caught, "that another process reads", "fs.waiting")
    assert (shared.to_vector() == 1).all()
    with shared.lend() as params:  # many readers
        assert float(params["w"].sum()) == N
    other("tree = None; stack.close()")
    for _, verb in verbs(shared):
        verb()


def test_a_small_population_bred_at_once_finds_readers_too(other):
    pop = fs.Population.from_tree({"w": np.ones(10, "f4")}, 8).share()
    other(f"x = fs.attach({pop.segment!r}); stack = contextlib.ExitStack(); stack.enter_context(x.reading())")
    with pytest.raises(fs.LentError, match="another process reads"):
        ga.step(pop, np.arange(8.0), seed=1, mutate=fs.Normal(0.1))
    assert other("stack.close(); float(x['w'].sum())") == "80.0"
    ga.step(pop, np.arange(8.0), seed=1, mutate=fs.Normal(0.1))
    assert float(other("float(x['w'].sum())")) == float(pop["w"].sum()) != 80


def test_a_reader_that_finds_a_writer_in_another_process_raises(other, shared):
    reads = [
        "x.to_vector()",
        "x.copy()",
        "x.lend().__enter__()",
        "x.reading().__enter__()",
        "fs.save('/dev/null/x', x)",
    ]
    with using(writes=[shared.memory]):
        for read in reads:
            answer = other(read)
            assert answer.startswith("LentError: expected a buffer at rest, got one that another process writes"), read
        assert "fs.waiting" in answer
        assert (shared.to_vector() == 1).all()  # its own thread may
    assert other("float(x.to_vector().sum())") == str(float(N + 3))
    gc.collect()
    shared["b"] = np.zeros(3, "f4")


def test_a_writer_waits_where_it_says_so_and_no_longer(other, shared):
    other(HOLDS["a reading"])
    started = time.monotonic()
    with pytest.raises(fs.LentError, match="another process reads"), fs.waiting(0.2):
        shared["b"] = np.zeros(3, "f4")
    assert time.monotonic() - started >= 0.2
    other.begin("import time; time.sleep(0.3); stack.close()")
    with fs.waiting(60.0):
        shared["b"] = np.zeros(3, "f4")
    other.process.stdout.readline()
    assert other("float(x['b'].sum())") == "0.0"


def test_two_processes_that_wait_for_each_other_come_to_an_end(other, shared):
    other(f"y = fs.Store.from_tree({{'w': np.ones({N}, 'f4')}}).share('back')")
    back = fs.attach("back")
    with shared.reading(), back.reading():
        other.begin("with x.reading():\n    with fs.waiting(0.3):\n        y['w'] = np.zeros(y['w'].shape, 'f4')")
        with pytest.raises(fs.LentError):
            with fs.waiting(0.3):
                with using(writes=[shared.memory]):
                    pass
        answer = other.process.stdout.readline()
    assert "LentError" in answer
    other("y = None")


@pytest.mark.parametrize("how", HOLDS)
def test_a_reader_that_is_killed_frees_what_it_held(shared, how):
    with Other() as reader:
        reader(f"x = fs.attach({shared.segment!r})")
        reader(HOLDS[how])
        with pytest.raises(fs.LentError):
            shared["b"] = np.zeros(3, "f4")
        reader.kill()
    shared["b"] = np.zeros(3, "f4")  # at once: it has been waited for


def test_a_lend_lasts_as_long_as_a_computation_of_the_other_process_reads(other, shared):
    other(
        "import jax, jax.numpy as jnp\n"
        "slow = jax.jit(lambda t: jax.lax.fori_loop(0, 300, lambda i, c: jnp.sin(c + t['w']).sum(), 0.0) + t['w'][0])\n"
        "lend = x.lend()\n"
        "leave = lend.__exit__\n"
        "tree = lend.__enter__()\n"
        "out = slow(tree)\n"
    )
    with pytest.raises(fs.LentError):
        shared["b"] = np.zeros(3, "f4")
    assert other("tree = None; leave(None, None, None); float(out) == float(out)") == "True"
    shared["b"] = np.zeros(3, "f4")


def test_what_the_other_process_still_holds_of_a_lend_keeps_it_and_frees_it_when_it_is_dropped(other, shared):
    other("lend = x.lend(patience=0.01); leave = lend.__exit__; tree = lend.__enter__(); kept = np.asarray(tree['w'])")
    assert other("tree = None; leave(None, None, None)").startswith("LentError: expected all lent leaves back")
    other("lend = leave = None")
    with pytest.raises(fs.LentError, match="another process reads"):
        shared["b"] = np.zeros(3, "f4")
    other("kept = None; import gc; gc.collect()")
    until(lambda: not_refused(lambda: shared.__setitem__("b", np.zeros(3, "f4"))))


def not_refused(call):
    with contextlib.suppress(fs.LentError):
        call()
        return True
    return False


def test_what_one_verb_reads_and_writes_of_a_shared_store_is_no_conflict(shared):
    shared.assign(shared)
    assert (shared.to_vector() == 1).all() and (fs.attach(shared.segment).to_vector() == 1).all()
    shared.assign(dict(shared))
    shared["w"] = shared["w"][::-1]
    shared.assign((path, shared[path]) for path in ("b", "w"))
    es.sample(shared, shared, NOISE, [3])
    pop = fs.Population.from_tree(shared.tree, 4).share()
    es.sample(pop, pop[0], NOISE, fs.seeds(1, 4))
    es.snap(shared, NOISE)
    before = shared.to_vector()
    with es.perturbed(shared, NOISE, 3), shared.lend() as params:
        assert float(jnp.abs(params["w"] - before[3:]).max()) == 0.5
    assert (shared.to_vector() == before).all()


def test_memory_wrapped_over_a_segment_knows_of_its_readers(other, shared):
    wrapped = fs.Store.wrap(shared.buffer, shared.layout)
    other(HOLDS["a reading"])
    with pytest.raises(fs.LentError, match="another process reads"):
        wrapped["b"] = np.zeros(3, "f4")
    other("stack.close()")
    wrapped["b"] = np.zeros(3, "f4")
    assert wrapped.segment is None and shared["b"].sum() == 0


def test_what_is_attached_is_read_only_whatever_is_done_to_its_views(other, shared):
    for code in ("x['b'] = np.zeros(3, 'f4')", "x.assign(x.copy())", "fs.es.perturb(x, fs.Rademacher(0.5), 1)"):
        answer = other(code)
        assert answer.startswith("ValueError: expected memory that may be written, got the segment"), answer
    assert "read-only" in other("x['b'][:] = 0")
    assert "BufferError" in other("x['b'].__dlpack__()")
    other("import warnings, torch; warnings.simplefilter('ignore'); torch.from_numpy(x['b']).zero_()")
    assert (shared["b"] == 1).all() and (fs.attach(shared.segment)["b"] == 1).all()


def test_a_writer_that_is_killed_as_it_writes_leaves_what_readers_refuse():
    with Other() as writer:
        writer("x = fs.Store.from_tree({'w': np.ones(1000, 'f4')}).share('torn')")
        attached = fs.attach("torn")
        with attached.reading():
            pass
        writer("writes = using(writes=[x.memory]); writes.__enter__(); x['w'][:500] = 2")
        writer.kill()
    for _ in range(2):
        for read in (attached.to_vector, attached.copy, lambda: attached.lend().__enter__()):
            with pytest.raises(BufferError) as caught:
                read()
            says(caught, "'torn'", "killed as it wrote")
        fs.Store.from_tree({"w": 1.0}).share()  # which sweeps it
        assert "torn" not in segments_there()


FORKED = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")
import numpy as np, flatstore as fs
from flatstore.memory import using
store = fs.Store.from_tree({"w": np.ones(1000, "f4")}).share("of-parent")
with using(writes=[store.memory]):
    writing = os.fork()
    if not writing:
        time.sleep(20)
        os._exit(0)
other = fs.attach("of-parent")
with other.reading():
    reading = os.fork()
    if not reading:
        time.sleep(20)
        os._exit(0)
store["w"] = np.zeros(1000, "f4")  # neither child has what its parent had at that moment
print(float(other.to_vector().sum()), flush=True)
os.kill(writing, 9), os.kill(reading, 9)
"""


def test_a_forked_child_does_not_keep_what_its_parent_held():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "0.0\n", done.stderr


STORM = """
import os, sys, numpy as np, flatstore as fs
x = fs.attach(sys.argv[1])
print("ready", flush=True)
reads = refused = 0
while True:
    try:
        how = (reads + refused) % 3
        if how == 0:
            values = x.to_vector()
        elif how == 1:
            with x.reading():
                values = np.concatenate([x["b"], x["w"]])
        else:
            with x.lend() as params:
                values = np.array(params["w"])
        assert (values == values[0]).all(), "torn"
        reads += 1
    except fs.LentError:
        refused += 1
    if (reads + refused) % 50 == 0:
        print(reads, refused, flush=True)
"""


@pytest.mark.long(but="[60]")
@pytest.mark.parametrize("rounds", [60, 400])
def test_no_read_is_torn_while_readers_are_killed_at_random(rounds):
    rng = np.random.default_rng(rounds)
    store = fs.Store.from_tree({"b": np.zeros(3, "f4"), "w": np.zeros(N, "f4")}).share()

    def a_reader():
        command = [sys.executable, "-W", "error", "-c", STORM, store.segment]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    readers = [a_reader() for _ in range(2)]
    try:
        for number in range(1, rounds):
            with fs.waiting(30.0):
                store.assign(np.full(N + 3, number, "f4"))
            if number % 20 == 0:
                time.sleep(rng.uniform(0, 0.05))
                victim = readers.pop(0)
                assert victim.poll() is None, victim.communicate()[1]
                victim.kill()
                victim.communicate()
                readers.append(a_reader())
    finally:
        for process in readers:
            process.kill()
            assert "torn" not in process.communicate()[1]
    assert os.path.exists(f"/proc/self/fd/{store.memory._segment.number}")


INTERRUPTED = """
import os, random, signal, sys, time, numpy as np, flatstore as fs
from flatstore import es

class Interrupt(Exception):
    pass

def handler(*_):
    if armed:
        raise Interrupt

armed = False
store = fs.Store.from_tree({"b": np.zeros(3, "f4"), "w": np.zeros(5000, "f4")}).share()
attached, noise = fs.attach(store.segment), fs.Rademacher(0.5)

def verbs():
    yield lambda: store.__setitem__("b", np.ones(3, "f4"))
    yield store.to_vector
    yield attached.to_vector
    yield lambda: lend(store)
    yield lambda: lend(attached)
    yield lambda: store.assign(dict(store))
    yield lambda: es.update(store, noise, [1], [0.5])

def lend(x):
    with x.lend():
        pass

work = [*verbs()]
for verb in work:
    verb()
signal.signal(signal.SIGALRM, handler)
files, interrupts, rng = len(os.listdir("/proc/self/fd")), 0, random.Random(1)
stop = time.monotonic() + float(sys.argv[1])
while (now := time.monotonic()) < stop or (interrupts <= 500 and now < stop + 60):
    try:
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))  # once
            rng.choice(work)()
        finally:
            armed = False
    except Interrupt:
        interrupts += 1
    armed = False
    with attached.reading():  # nothing is held any more, nor marked as half written
        pass
    store.assign({"b": np.ones(3, "f4"), "w": np.zeros(5000, "f4")})  # else updates come to the bound
assert len(os.listdir("/proc/self/fd")) <= files + 1
print(interrupts)
"""


def test_no_interrupt_leaves_a_segment_held():
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500
