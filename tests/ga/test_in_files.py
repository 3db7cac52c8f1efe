"""Populations in files: the bits of those in memory, and a log that says how far a generation came."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import jax.numpy as jnp
import numpy as np
import pytest

import flatstore as fs
from flatstore import ga
from flatstore.files import half_way, replacing
from flatstore.ga import disk_order, generation_log, in_files

SIZE = 24
LAYOUT = fs.Layout.from_tree(
    {
        "b": np.zeros(5, "f4"),
        "d": np.zeros(90, "f8"),
        "e": np.zeros(0, "f4"),
        "h": jnp.zeros((3, 7), "bfloat16"),
        "n": np.int32(3),
        "w": np.zeros((20, 41), "f4"),
    }
)
WAYS = {
    "noise": dict(mutate=fs.Normal(0.1)),
    "noise of some, within bounds": dict(
        mutate=fs.Normal({"b": 0, "*": 0.1}), bounds=ga.Bounds({"w": (-0.1, 0.1), "d": (0, np.inf)}, "reflect")
    ),
    "points, sparse": dict(mutate=ga.Sparse(fs.Rademacher(0.1), 0.3), crossover=ga.Points(np.int64(2)), elite=5),
    "blend, reset": dict(mutate=ga.Reset(-1, 1, 0.2), crossover=ga.Blend(np.float32(0.5)), select=ga.Truncation(0.5)),
    "exchange": dict(mutate=None, crossover=ga.Exchange(["b", "d", "h", "w"]), select=ga.Universal()),
}


HALF_WAY = r"expected a whole population, got one whose generation is not over in .*; fix: .*Population.open\(path\)"
OWN = (
    r"expected the operators of the generation .*, got none for one of your own .*; fix: Population.open\(path, operat"
)
RESTARTED = r"expected the machine to run since .*, got one that was started again; fix: .*\(path, after_restart=True\)"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "members.safetensors"


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(disk_order, "LEAST", 1 << 14)


def bytes_of(pop):
    return {at: pop[at].tobytes() for at in LAYOUT.by_path}


def fitness(number, size=SIZE):
    return np.random.default_rng(number).normal(size=size)


def log_at(path):
    return path.with_name(path.name + ".generation")


def fails(path, times=1, mutate="own", seed=(7, 0), **arguments):
    """Begin a generation in a file whose operator fails in the middle, as if its process were killed there."""
    count = 0

    def broken(gene, scale, draw):
        return gene + scale * draw

    pop = fs.Population.open(path)
    mutate = ga.Mutate(broken, scale=0.1) if mutate == "own" else mutate
    run_tasks = ga.generation.run_tasks

    def stopped(tasks, work, *rest, **other):
        def some(task, scratch, note):
            nonlocal count
            count += 1
            if count > times:
                raise RuntimeError("killed")
            work(task, scratch, note)

        return run_tasks(tasks, some, *rest, **other)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ga.UnfinishedError) as caught:
        patch.setattr(ga.generation, "run_tasks", stopped)
        ga.step(pop, fitness(0), seed=seed, mutate=mutate, **arguments)
    return pop, caught.value, mutate


@pytest.mark.parametrize("way", WAYS)
def test_generations_in_a_file_have_the_bits_of_those_in_memory(path, way):
    here, there = fs.Population.zeros(LAYOUT, SIZE), fs.Population.create(path, LAYOUT, SIZE)
    for pop in (here, there):
        pop["n"][...] = 3
        for member, seed in zip(pop, fs.seeds(1, SIZE), strict=True):
            fs.es.perturb(member, fs.Normal({"h": 0, "*": 0.5}), seed)
    for number in range(3):
        for pop in (here, there):
            ga.step(pop, fitness(number), seed=(7, number), **WAYS[way])
        assert bytes_of(there) == bytes_of(here)
        assert ga.seed_of(path) == (7, number)
    for pop in (here, there):  # a part of it
        ga.step(pop[8:20], fitness(5, 12), seed=5, **WAYS[way])
    assert ga.seed_of(path) == (5,)
    assert bytes_of(fs.load(path)) == bytes_of(here) == bytes_of(fs.Population.open(path))


def test_evolve_in_a_file_comes_to_the_same_and_the_file_knows_how_far(path):
    def evaluate(members, number):
        return -jnp.square(members["w"] - 1).sum((1, 2)) / (number + 1)

    def evolve(pop, generations, **other):
        records = ga.evolve(pop, evaluate, seed=7, mutate=fs.Normal(0.3), chunk=32, generations=generations, **other)
        return [record.fitness.tolist() for record in records]

    tree = {"b": np.zeros(5, "f4"), "h": jnp.zeros((3, 8), "bfloat16"), "w": np.zeros((8, 9), "f4")}
    layout = fs.Layout.from_tree(tree)
    here, there = fs.Population.zeros(layout, 64), fs.Population.create(path, layout, 64)
    assert ga.seed_of(path) is None
    expected = evolve(here, 6)
    assert evolve(there, 4) == expected[:4]
    del there
    assert ga.seed_of(path) == (7, 2)  # by which generation 3 was born
    assert evolve(fs.Population.open(path), 6, resume=3) == expected[3:]
    there = fs.load(path)
    assert all(there[at].tobytes() == here[at].tobytes() for at in layout.by_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_generation_that_ended_half_way_is_finished_on_the_next_open(path, way, times):
    here = fs.Population.zeros(LAYOUT, SIZE)
    fs.Population.create(path, LAYOUT, SIZE)
    ga.step(here, fitness(0), seed=(7, 0), **WAYS[way])
    fails(path, times, **WAYS[way])
    for read in (fs.load, fs.open, lambda path: fs.open(path, "r+")):
        with pytest.raises(ValueError, match=HALF_WAY):
            read(path)
    assert ga.seed_of(path) == (7, 0)
    assert bytes_of(fs.Population.open(path)) == bytes_of(here)
    assert bytes_of(fs.load(path)) == bytes_of(here)


def test_a_thread_that_had_not_begun_has_nothing_to_put_back(path, monkeypatch):
    def whole(gene, scale, draw):
        return gene + scale * draw

    def broken(gene, scale, draw):
        if draw > 2:
            raise ValueError("killed")
        return gene + scale * draw

    monkeypatch.setattr(ga.generation, "threads", lambda: 2)
    here, there = fs.Population.zeros(LAYOUT, SIZE), fs.Population.create(path, LAYOUT, SIZE)
    for pop in (here, there):
        ga.step(pop, fitness(1), seed=1, mutate=fs.Normal(1))
    ga.step(here, fitness(0), seed=(7, 0), mutate=ga.Mutate(whole, scale=0.1))
    run_tasks, left = ga.generation.run_tasks, {}

    def killed(*_):
        left.update({file: file.read_bytes() for file in (path, log_at(path))})

    def first_task(tasks, work, scratch, progress, **other):
        scratch()  # that of the thread that has not begun
        run_tasks(tasks[:1], work, scratch, progress=progress[:1], **other)

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="killed"):
        patch.setattr(ga.generation, "write_back", killed)
        patch.setattr(ga.generation, "run_tasks", first_task)
        ga.step(there, fitness(0), seed=(7, 0), mutate=ga.Mutate(broken, scale=0.1))
    for file, content in left.items():
        with file.open("r+b") as at:
            at.write(content)
    assert bytes_of(fs.Population.open(path, operators={"mutate": ga.Mutate(whole, scale=0.1)})) == bytes_of(here)


def test_a_part_of_a_population_is_finished(path):
    here = fs.Population.zeros(LAYOUT, SIZE)
    ga.step(here[4:20], fitness(0, 16), seed=1, mutate=fs.Normal(0.1))
    fs.Population.create(path, LAYOUT, SIZE)
    pop = fs.Population.open(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ga.generation, "run_tasks", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ga.step(pop[4:20], fitness(0, 16), seed=1, mutate=fs.Normal(0.1))
    log_at(path).write_bytes(log_at(path).read_bytes().replace(half_way.NOT_BEGUN, half_way.UNDER_WAY, 1))
    assert bytes_of(fs.Population.open(path)) == bytes_of(here)


def test_operators_of_ones_own_are_asked_for(path):
    here = fs.Population.zeros(LAYOUT, SIZE)
    fs.Population.create(path, LAYOUT, SIZE)
    _, _, mutate = fails(path)
    ga.step(here, fitness(0), seed=(7, 0), mutate=mutate)
    with pytest.raises(ValueError, match=OWN):
        fs.Population.open(path)
    assert bytes_of(fs.Population.open(path, operators={"mutate": mutate})) == bytes_of(here)


def test_the_same_process_finishes_it_by_left(path):
    here = fs.Population.zeros(LAYOUT, SIZE)
    fs.Population.create(path, LAYOUT, SIZE)
    pop, error, mutate = fails(path)
    ga.step(here, fitness(0), seed=(7, 0), mutate=mutate)
    ga.step(pop, fitness(0), seed=(7, 0), mutate=mutate, left=error.left)
    assert bytes_of(pop) == bytes_of(here) == bytes_of(fs.load(path))


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_that_open_a_half_way_population_at_once_one_finishes_it(path, monkeypatch, first):
    here, real, calls = fs.Population.zeros(LAYOUT, SIZE), in_files.plan_on_host, []
    fs.Population.create(path, LAYOUT, SIZE)
    ga.step(here, fitness(0), seed=(7, 0), mutate=fs.Normal(0.1))
    fails(path, mutate=fs.Normal(0.1))
    refused = []

    def planned(*arguments, **keywords):
        """Let another open it meanwhile, before or after the plan is made."""
        calls.append(len(calls))
        if len(calls) > 1:
            return real(*arguments, **keywords)
        steps = [lambda: real(*arguments, **keywords), other]
        return [step() for step in (steps[::-1] if first else steps)][first]

    def other():
        try:
            fs.Population.open(path)
        except BlockingIOError as error:
            refused.append(error)

    monkeypatch.setattr(in_files, "plan_on_host", planned)
    assert bytes_of(fs.Population.open(path)) == bytes_of(here) == bytes_of(fs.load(path))
    assert len(calls) + len(refused) == 2


def test_no_other_generation_is_begun_in_a_file_that_is_half_way_nor_one_that_is_over_gone_on_with(path):
    here, fails_with = fs.Population.zeros(LAYOUT, SIZE), dict(mutate=fs.Normal(0.1))
    idle = fs.Population.create(path, LAYOUT, SIZE)
    ga.step(here, fitness(0), seed=(7, 0), **fails_with)
    pop, error, _ = fails(path, **fails_with)
    for each in (idle, pop):
        with pytest.raises(ValueError, match=HALF_WAY):
            ga.step(each, fitness(1), seed=(7, 1), **fails_with)
    assert bytes_of(fs.Population.open(path)) == bytes_of(here)
    with pytest.raises(ValueError, match="left: expected a generation that is not over in .*, got none.*; fix: "):
        ga.step(pop, fitness(0), seed=(7, 0), left=error.left, **fails_with)
    assert bytes_of(fs.load(path)) == bytes_of(here)


def test_a_generation_of_which_nothing_was_made_leaves_the_file_as_it_was(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(ga.generation, "run_tasks", lambda *_, **__: 1 / 0)
        ga.step(pop, fitness(0), seed=0, mutate=fs.Normal(1))
    assert bytes_of(fs.load(path)) == bytes_of(fs.Population.zeros(LAYOUT, SIZE))
    assert ga.seed_of(path) is None
    ga.step(pop, fitness(0), seed=(5, 1), mutate=fs.Normal(1))
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(ga.generation, "run_tasks", lambda *_, **__: 1 / 0)
            ga.step(pop, fitness(0), seed=(5, 2), mutate=fs.Normal(1))
        assert ga.seed_of(path) == (5, 1)  # that of what the file holds
        fs.Population.open(path)


def test_where_no_log_can_be_written_nothing_is(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    path.with_name(path.name + ".generation-new").mkdir()
    with pytest.raises(OSError, match="generation-new"):
        ga.step(pop, fitness(0), seed=0, mutate=fs.Normal(1))
    assert bytes_of(fs.load(path)) == bytes_of(fs.Population.zeros(LAYOUT, SIZE))


def test_a_file_that_somebody_is_at_work_on_is_refused(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    with path.open("rb") as other, half_way.alone_in("", other.fileno()):
        with pytest.raises(
            BlockingIOError, match="expected a population that nobody else is at work on, got .*; fix: wait"
        ):
            ga.step(pop, fitness(0), seed=0, mutate=fs.Normal(1))
    fails(path, mutate=fs.Normal(1))
    with path.open("rb") as other, half_way.alone_in("", other.fileno()), pytest.raises(BlockingIOError):
        fs.Population.open(path)
    fs.Population.open(path)


def test_where_the_file_system_has_no_locks_a_population_evolves_all_the_same(path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    pop, here = fs.Population.create(path, LAYOUT, SIZE), fs.Population.zeros(LAYOUT, SIZE)
    monkeypatch.setattr(half_way.fcntl, "flock", refused)
    for each in (pop, here):
        ga.step(each, fitness(0), seed=(7, 0), mutate=fs.Normal(0.1))
    assert bytes_of(pop) == bytes_of(here)


def test_an_error_after_the_last_gene_says_which_generation_the_population_holds(path, monkeypatch):
    def evolve(pop, **other):
        evaluate = lambda members, number: -jnp.square(members["w"] - 1).sum((1, 2))  # noqa: E731
        return ga.evolve(pop, evaluate, seed=7, mutate=fs.Normal(0.3), generations=3, **other)

    def failing(log):
        raise MemoryError

    layout = fs.Layout.from_tree({"w": np.zeros((20, 48), "f4")})
    here, there = fs.Population.zeros(layout, 64), fs.Population.create(path, layout, 64)
    expected = [record.fitness.tolist() for record in evolve(here)]
    moves = evolve(there)
    found = [next(moves).fitness.tolist()]
    with monkeypatch.context() as patch, pytest.raises(MemoryError) as caught:
        patch.setattr(generation_log.Log, "over", failing)
        next(moves)
    assert any("the population holds generation 1, not yet evaluated" in note for note in caught.value.__notes__)
    found += [record.fitness.tolist() for record in evolve(there, resume=1)]
    assert found == expected and there["w"].tobytes() == here["w"].tobytes()


@pytest.mark.parametrize("step", ["mmap", "replace", "begun"])
def test_a_log_that_fails_as_it_begins_is_of_no_generation_and_leaves_no_other_file(path, monkeypatch, step):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    before = bytes_of(pop)
    module = {"mmap": generation_log.mmap, "replace": os, "begun": ga.kept_progress}[step]
    real = getattr(module, step)

    def failing(*arguments):
        if step == "begun":
            real(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, step, failing)
        ga.step(pop, fitness(0), seed=7, mutate=fs.Normal(0.1))
    assert {*os.listdir(path.parent)} <= {path.name, log_at(path).name}
    assert bytes_of(fs.Population.open(path)) == before == bytes_of(fs.open(path))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks")
def test_a_child_and_its_parent_are_not_at_work_on_a_file_at_once(path):
    program = """
import os, sys, threading, time, numpy as np, flatstore as fs
from flatstore import ga
path, order = sys.argv[1:]
pop = fs.Population.create(path, fs.Layout.from_tree({"w": np.zeros(3000, "f4")}), 8)
step = lambda: ga.step(pop, np.arange(8.0), seed=1, mutate=fs.Normal(0.1))
at_work, go_on = os.pipe(), os.pipe()
def waits():
    real = ga.kept_progress._InFile.begins
    def begins(*arguments):
        os.write(at_work[1], b".")
        os.read(go_on[0], 1)
        real(*arguments)
    ga.kept_progress._InFile.begins = begins
    step()
    ga.kept_progress._InFile.begins = real
def refused():
    try:
        step()
    except BlockingIOError:
        return True
def other(first, second):
    child = os.fork()
    if not child:
        os._exit(not first())
    second()
    if os.waitpid(child, 0)[1]:
        os._exit(1)
if order == "forked meanwhile":
    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    os.read(at_work[0], 1)
    other(refused, lambda: None)
    os.write(go_on[1], b".")
    thread.join()
else:
    def child():
        os.read(at_work[0], 1)
        is_refused = refused()
        os.write(go_on[1], b".")
        return is_refused
    other(child, waits)
step()
other(lambda: step(), lambda: None)
"""
    for order in ("forked meanwhile", "forked before"):
        command = [sys.executable, "-c", program, str(path.with_name(order)), order]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-2000:]


def test_after_a_restart_it_is_finished_only_if_asked(path, monkeypatch):
    fs.Population.create(path, LAYOUT, SIZE)
    fails(path, mutate=fs.Normal(1))
    monkeypatch.setattr(generation_log, "boot", lambda: "another")
    monkeypatch.setattr(ga.in_files, "boot", lambda: "another")
    with pytest.raises(ValueError, match=RESTARTED):
        fs.Population.open(path)
    here = fs.Population.zeros(LAYOUT, SIZE)
    ga.step(here, fitness(0), seed=(7, 0), mutate=fs.Normal(1))
    assert bytes_of(fs.Population.open(path, after_restart=True)) == bytes_of(here)


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    os.mkfifo(half_way.log_of(path))
    assert bytes_of(fs.load(path)) == bytes_of(fs.open(path)) == bytes_of(pop)
    with pytest.raises(
        ValueError, match="expected the log of a generation, got another file at .*it is empty.*; fix: "
    ):
        fs.Population.open(path)


def test_the_log_of_another_file_is_refused(path):
    fs.Population.create(path, LAYOUT, SIZE)
    fails(path, mutate=fs.Normal(1))
    whole = path.read_bytes()
    path.rename(path.with_name("kept"))
    path.write_bytes(whole)
    for read in (fs.Population.open, ga.seed_of):
        with pytest.raises(
            ValueError, match="expected the log of .*, got that of another file at .*; fix: if the file was"
        ):
            read(path)
    fs.save(path, fs.Population.zeros(LAYOUT, SIZE))  # which replaces what the log was of
    assert not log_at(path).exists() and ga.seed_of(path) is None
    fs.Population.open(path)


def test_a_damaged_log_is_a_value_error_at_each_byte(path):
    fs.Population.create(path, LAYOUT, SIZE)
    pop, _, _ = fails(path, mutate=fs.Normal(1))
    whole, parents = log_at(path).read_bytes(), bytes_of(pop)
    end = whole.index(b'"tasks"') + 20
    rng = np.random.default_rng(0)
    for at in [*range(8), *range(16, end), *rng.integers(end, end + 24 * SIZE, 50).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        log_at(path).write_bytes(damaged)
        with pytest.raises(ValueError, match="expected the log of "):
            fs.Population.open(path)
    for size in [*range(48), *range(48, len(whole), 97)]:
        log_at(path).write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected the log of a generation, got another file at"):
            fs.Population.open(path)
    log_at(path).write_bytes(whole)
    for number in (-1, 1 << 40):
        log = generation_log.read_log(str(path), path.stat())
        reached = int(log.progress[0, 0])
        log.progress[0, 0] = number
        with pytest.raises(ValueError, match="what it notes is of other tasks"):
            fs.Population.open(path)
        log.progress[0, 0] = reached
    assert bytes_of(pop) == parents


def rewritten(path, change, numbers=None):
    """Write the log of a file as it would be with other settings, or with other numbers of its tasks."""
    log = log_at(path).read_bytes()
    at = 16 + 32
    identity, length = log[16:32], int.from_bytes(log[32:40], "little")
    text = json.loads(log[at : at + length])
    end = at + length + 8 * (text["sizes"]["fitness"] + text["sizes"]["chosen"] + 3 * text["sizes"]["tasks"])
    tail = bytearray(log[at + length : end])
    change(text)
    if numbers is not None:
        tail[-8 * len(numbers) :] = np.array(numbers, np.int64).tobytes()
    new = json.dumps(text).encode()
    head = log[:16] + identity + np.array([len(new), crc32(new + tail)], np.int64).tobytes() + new + tail
    up = [-(-size // 64) * 64 for size in (len(head), end)]
    log_at(path).write_bytes(head.ljust(up[0], b"\0") + log[up[1] :])


ODD = [None, True, -1, 1.5, 2**63, "x", [], {}, [[]], {"kind": []}, {"kind": "Normal", "scale": "x"}]


def test_a_log_of_other_settings_is_a_value_error_or_one_that_might_have_been_asked_for(path):
    fs.Population.create(path, LAYOUT, SIZE)
    pop, _, _ = fails(path, mutate=fs.Normal(1))
    whole, parents = log_at(path).read_bytes(), bytes_of(pop)
    text = json.loads(whole[48 : whole.index(b"}}", 48) + 2])
    refused = 0
    for group, name in [(a, b) for a in text for b in (None, *text[a])]:
        for odd in ODD:
            log_at(path).write_bytes(whole)
            changed = odd if name is None else text[group] | {name: odd}
            rewritten(path, lambda new, change=(group, changed): new.update([change]))
            try:
                fs.Population.open(path)
            except ValueError:
                assert bytes_of(pop) == parents, (group, name, odd)
                refused += 1
            else:
                assert name is not None, (group, odd)
                for at in LAYOUT.by_path:
                    pop[at][...] = np.frombuffer(parents[at], pop[at].dtype).reshape(pop[at].shape)
    assert refused > 100


@pytest.mark.parametrize("kind", ["rows", "width", "a task beyond the genes", "a task before them"])
def test_a_log_whose_blocks_are_of_other_genes_is_an_error_before_they_are_put_back(path, kind):
    fs.Population.create(path, LAYOUT, SIZE)
    pop, _, _ = fails(path, mutate=fs.Normal(1))
    parents = bytes_of(pop)
    task = {"a task beyond the genes": [0, 10**6, 10**6 + 50], "a task before them": [0, -50, 50]}.get(kind)
    cut = {"rows": {"rows": 1}, "width": {"rows": 1, "width": 10}}.get(kind, {})
    rewritten(path, lambda text: text["cut"].update(cut), task)
    log = log_at(path).read_bytes()
    if task is not None:  # its last task says that a block of it was read
        start = 64 * -(-(48 + int.from_bytes(log[32:40], "little") + 8 * (SIZE + 46 + 9)) // 64)
        progress = np.array([task[1], 1, task[1] + 1], np.int64).tobytes()
        log = log[: start + 48] + progress + log[start + 72 :]
        owners = start + 128
        log = log[:owners] + np.array([2], np.int64).tobytes() + log[owners + 8 :]
        log_at(path).write_bytes(log)
        assert generation_log.read_log(str(path), path.stat()).owners[0] == 2
    with pytest.raises(ValueError, match="expected the log of a generation, got another file at .*; fix: take it away"):
        fs.Population.open(path)
    assert bytes_of(pop) == parents


def test_create_takes_room_and_refuses_what_is_there(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    assert path.stat().st_blocks * 512 >= pop.buffer.nbytes
    assert bytes_of(pop) == bytes_of(fs.Population.zeros(LAYOUT, SIZE)) and pop.size == SIZE
    with pytest.raises(FileExistsError, match=r"expected no file yet, got one at .*; fix: Population.open\(path\)"):
        fs.Population.create(path, LAYOUT, SIZE)
    with pytest.raises(ValueError, match="expected at least one member, got size 0"):
        fs.Population.create(path.with_name("other"), LAYOUT, 0)
    with pytest.raises(TypeError, match="Layout"):
        fs.Population.create(path.with_name("other"), {"w": 1}, 3)
    for size in (2**50, 2**100):
        with pytest.raises(OSError) as caught:
            fs.Population.create(path.with_name("other"), LAYOUT, size)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert sorted(os.listdir(path.parent)) == [path.name]
    fs.save(path, fs.Store.zeros(LAYOUT))
    with pytest.raises(ValueError, match="expected the file of a population, got that of one model, .*; fix: fs.open"):
        fs.Population.open(path)


OTHERS = "left: expected the genes, fitness and seed of the generation that is not over in .*, got others; fix: repeat"


def test_what_is_left_of_one_generation_is_not_that_of_another(path):
    noise, here = dict(mutate=fs.Normal(0.1)), fs.Population.zeros(LAYOUT, SIZE)
    fs.Population.create(path, LAYOUT, SIZE)
    pop, error, _ = fails(path, **noise)
    others = [
        dict(seed=(7, 0), left=error.left[1:]),
        dict(seed=(7, 1), left=error.left),
        dict(seed=(7, 0), left=error.left, elite=2),
        dict(seed=(7, 0), left=error.left, select=ga.Truncation(0.5)),
    ]
    half_made = bytes_of(pop)
    for other in others:
        with pytest.raises(ValueError, match=OTHERS):
            ga.step(pop, fitness(0), **noise, **other)
    with pytest.raises(ValueError, match=OTHERS):
        ga.step(pop, fitness(1), seed=(7, 0), left=error.left, **noise)
    assert bytes_of(pop) == half_made
    fs.Population.open(path)  # as another process may, which begins the next, too
    _, later, _ = fails(path, seed=(7, 1), **noise)
    with pytest.raises(ValueError, match=OTHERS):
        ga.step(pop, fitness(0), seed=(7, 0), left=error.left, **noise)
    ga.step(pop, fitness(0), seed=(7, 1), left=later.left[::-1], **noise)
    for number in range(2):
        ga.step(here, fitness(0), seed=(7, number), **noise)
    assert bytes_of(pop) == bytes_of(here) == bytes_of(fs.load(path))


def test_no_generation_is_begun_in_a_new_file_before_the_log_of_the_old_one_is_gone(path, monkeypatch):
    fs.Population.create(path, LAYOUT, SIZE)
    refused, forget = [], replacing.forget

    def forgets(target):
        with pytest.raises(BlockingIOError, match="expected a population that nobody else is at work on") as caught:
            ga.step(fs.Population.open(path), fitness(0), seed=0, mutate=fs.Normal(1))
        refused.append(caught.value)
        forget(target)

    monkeypatch.setattr(replacing, "forget", forgets)
    fs.save(path, fs.Population.zeros(LAYOUT, SIZE))
    assert refused and ga.seed_of(path) is None


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_that_create_a_population_at_once_the_second_is_refused(path, monkeypatch, has_links):
    flush, made = os.fsync, []

    def meanwhile(number):
        if not made:
            made.append(None)
            made[0] = fs.Population.create(path, LAYOUT, SIZE)
            ga.step(made[0], fitness(0), seed=(7, 0), mutate=fs.Normal(1))
        flush(number)

    def no_link(*names):
        raise OSError(errno.EPERM, "no links")

    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
        assert not fs.Population.create(path, LAYOUT, SIZE)["w"].any()
    else:
        monkeypatch.setattr(os, "fsync", meanwhile)
        with pytest.raises(FileExistsError, match="expected no file yet, got one at .*; fix: "):
            fs.Population.create(path, LAYOUT, SIZE)
        assert ga.seed_of(path) == (7, 0) and bytes_of(fs.Population.open(path)) == bytes_of(made[0])
    assert {x.name for x in path.parent.iterdir()} <= {path.name, log_at(path).name}


def test_a_generation_that_was_killed_after_its_last_gene_is_over_on_the_next_open(path):
    pop = fs.Population.create(path, LAYOUT, SIZE)
    ga.step(pop, fitness(0), seed=7, mutate=fs.Normal(0.1))
    expected = bytes_of(pop)
    del pop
    with open(log_at(path), "r+b") as log:
        log.write(half_way.MAGIC + half_way.UNDER_WAY)
    with pytest.raises(ValueError, match=HALF_WAY):
        fs.open(path)
    assert bytes_of(fs.Population.open(path)) == expected == bytes_of(fs.open(path))


def test_other_readers_see_the_file_as_it_is(path):
    from safetensors.numpy import load_file

    layout = fs.Layout.from_tree({"b": np.zeros(5, "f4"), "w": np.zeros((4, 3), "f4")})
    pop = fs.Population.create(path, layout, SIZE)
    ga.step(pop, fitness(0), seed=0, mutate=fs.Normal(1))
    found = load_file(path)
    assert {name: found[name].tobytes() for name in found} == {name: pop[name].tobytes() for name in ("b", "w")}


LIMITED = """
import resource, sys
import numpy as np, flatstore as fs
from flatstore import ga

def data():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmData")) << 10

layout = fs.Layout.from_tree({"w": np.zeros((250, 1024), "f4"), "b": np.zeros(100, "f4")})
small = fs.Population.create(sys.argv[2], layout, 4)
for pop in (small, fs.Population.create(sys.argv[1], layout, 256)):  # everything is compiled before the limit
    if pop.size == 256:
        limit = data() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        assert pop.buffer.nbytes >= 4 * (60 << 20)
    for record in ga.evolve(pop, lambda x, n: np.asarray(x["w"])[:, 0, n] - 1, seed=7, mutate=fs.Normal(0.1),
                            generations=3, chunk=16 if pop.size == 256 else 4):
        pass
try:
    np.ones(pop.buffer.nbytes, np.uint8)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_population_four_times_the_memory_evolves_to_the_same_bits(path):
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, path, path.with_name("small")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.returncode) == ("limited\n", 0), done.stderr
    layout = fs.Layout.from_tree({"w": np.zeros((250, 1024), "f4"), "b": np.zeros(100, "f4")})
    here = fs.Population.zeros(layout, 256)
    list(ga.evolve(here, lambda x, n: np.asarray(x["w"])[:, 0, n] - 1, seed=7, mutate=fs.Normal(0.1), generations=3))
    there = fs.Population.open(path)
    assert all(np.array_equal(there[at], here[at]) for at in ("w", "b")) and here["w"].any()


def test_the_log_is_small_beside_the_population(path):
    layout = fs.Layout.from_tree({"w": np.zeros(100_000, "f4")})
    pop = fs.Population.create(path, layout, 200)
    ga.step(pop, fitness(0, 200), seed=0, mutate=fs.Normal(1))
    assert log_at(path).stat().st_size <= pop.buffer.nbytes / 50
    assert json.loads(json.dumps(ga.seed_of(path))) == [0]


OPENS = """
import sys, flatstore as fs
try:
    fs.Population.open(sys.argv[1])
except BlockingIOError as error:
    print(error)
"""


@pytest.mark.parametrize("before", ["_finish_alone", "plan_on_host"])
def test_two_processes_that_open_a_file_at_once_do_not_both_finish_it(path, monkeypatch, before):
    here = fs.Population.zeros(LAYOUT, SIZE)
    fs.Population.create(path, LAYOUT, SIZE)
    for pop in (here, fs.Population.open(path)):
        ga.step(pop, fitness(1), seed=1, mutate=fs.Normal(1))
    ga.step(here, fitness(0), seed=(7, 0), mutate=fs.Normal(0.1))
    fails(path, mutate=fs.Normal(0.1))
    work, others = getattr(ga.in_files, before), []

    def meanwhile(*arguments, **named):
        done = subprocess.run([sys.executable, "-c", OPENS, path], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        others.append(done.stdout)
        return work(*arguments, **named)

    monkeypatch.setattr(ga.in_files, before, meanwhile)
    there = fs.Population.open(path)
    (said,) = others
    assert said == "" if before == "_finish_alone" else "expected a population that nobody else is at work on" in said
    assert bytes_of(there) == bytes_of(here)


def test_a_file_that_was_replaced_leaves_the_log_of_the_one_in_its_place_alone(path):
    old = fs.Population.create(path, LAYOUT, SIZE)
    fs.save(path, old)
    here = fs.Population.zeros(LAYOUT, SIZE)
    for pop in (here, old):
        ga.step(pop, fitness(0), seed=(7, 0), mutate=fs.Normal(1))
    assert bytes_of(old) == bytes_of(here) and not log_at(path).exists()
    fails(path, mutate=fs.Normal(1))
    half, log = path.read_bytes(), log_at(path).read_bytes()
    ga.step(old, fitness(1), seed=5, mutate=fs.Normal(1))
    assert (path.read_bytes(), log_at(path).read_bytes()) == (half, log)
    with pytest.raises(ValueError, match=HALF_WAY):
        fs.load(path)
    assert bytes_of(fs.Population.open(path)) == bytes_of(here)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks")
def test_a_child_that_was_forked_as_the_file_was_written_does_not_keep_it(path):
    program = """
import os, signal, sys, numpy as np, flatstore as fs
from flatstore import ga
flush, children = os.fsync, []
def forks(number):
    child = os.fork()
    if not child:
        signal.pause()
    children.append(child)
    flush(number)
os.fsync = forks
try:
    pop = fs.Population.create(sys.argv[1], fs.Layout.from_tree({"w": np.zeros(30, "f4")}), 8)
    os.fsync = flush
    ga.step(pop, np.arange(8.0), seed=1, mutate=fs.Normal(0.1))
finally:
    for child in children:
        os.kill(child, 9)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
