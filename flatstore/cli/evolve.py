"""`flatstore evolve`: a network whose parameters live in a flat store, evolved on a real task."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flatstore.cli.algorithms import EvolutionStrategy, GeneticAlgorithm, Mezo, Strategy
from flatstore.cli.cartpole import CartPole
from flatstore.cli.digits import Digits
from flatstore.cli.plot_curve import Curve
from flatstore.cli.progress import progress
from flatstore.cli.run_command import has_run, recall, remember
from flatstore.cli.task import Settings, Task
from flatstore.extras import require
from flatstore.files import save
from flatstore.store import Population

_TASKS: dict[str, type[Task]] = {"digits": Digits, "cartpole": CartPole}
_ALGORITHMS = {"es": "Evolution strategy", "ga": "Genetic algorithm", "mezo": "MeZO"}
# The first algorithm of a task is its default.
_DEFAULTS: dict[str, dict[str, tuple[Callable[[Task, Settings], Strategy], Settings]]] = {
    "digits": {
        "es": (partial(EvolutionStrategy, sigma=0.1, rate=0.008), Settings(256, 3000, 64, 0)),
        "ga": (partial(GeneticAlgorithm, share=0.2, sigma=0.02, last_sigma=0.003), Settings(320, 2000, 32, 0)),
        "mezo": (partial(Mezo, sigma=0.01, rate=70.0), Settings(1, 12_000, 32, 0)),
    },
    "cartpole": {
        "ga": (partial(GeneticAlgorithm, share=0.2, sigma=0.2, last_sigma=0.02), Settings(64, 50, 16, 0)),
        "es": (partial(EvolutionStrategy, sigma=0.1, rate=0.1), Settings(64, 100, 16, 0)),
    },
}
_CHAMPION, _CURVE, _POINTS = "champion.safetensors", "curve.png", "curve.jsonl"
_CHECKS = 40  # how many times in a run the champion is measured
_TRACED = 2  # the generation whose memory is measured: the first that compiles nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `flatstore evolve`. `run` takes what they parse to."""
    parser.description = (
        "Evolve a network on scikit-learn's handwritten digits or on Gymnasium's CartPole-v1. Its parameters live in "
        "a flat population for the whole run; JAX evaluates them where they lie. The same seed gives the same network "
        "to the bit. Each generation is on the disk when it is over: a run that was stopped goes on by --resume."
    )
    parser.add_argument("--task", choices=list(_TASKS), help="what to learn (default digits)")
    first = ", ".join(f"{task}: {next(iter(algorithms))}" for task, algorithms in _DEFAULTS.items())
    parser.add_argument(
        "--algo",
        choices=list(_ALGORITHMS),
        help=f"evolution strategy, genetic algorithm, or one network perturbed in its place (default {first})",
    )
    for name, what in (
        ("population", "members"),
        ("generations", "generations"),
        ("hidden", "units of the hidden layer"),
        ("seed", "seed"),
    ):
        defaults = "; ".join(
            f"{task} " + ", ".join(f"{algo}: {getattr(settings, name)}" for algo, (_, settings) in algorithms.items())
            for task, algorithms in _DEFAULTS.items()
        )
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default {defaults})")
    parser.add_argument(
        "--workers",
        type=_workers,
        metavar="N|ray[:ADDRESS]",
        help="processes that evaluate the members one by one, where they lie, which pays for --task cartpole; or, with "
        "--algo es, the cluster of Ray at an address, or one on this machine (default none)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("evolved"),
        metavar="DIR",
        help="the folder of the run, and of what comes out (default %(default)s)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, as it was begun: to the same bits"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evolve, print what came out, and write the champion and the learning curve; returns the exit status."""
    if arguments.resume:
        try:
            vars(arguments).update(recall(arguments.out, vars(arguments)))
        except ValueError as error:
            return _fail(str(error))
    task_name = arguments.task or next(iter(_TASKS))
    if task_name not in _TASKS:  # the folder says so, and not the user
        return _fail(f"expected --task {', '.join(_TASKS)}, got {task_name!r} in {str(arguments.out)!r}; fix: copy it")
    algorithms, task_type = _DEFAULTS[task_name], _TASKS[task_name]
    algo = arguments.algo or next(iter(algorithms))
    if algo not in algorithms:
        have = ", ".join(algorithms)
        return _fail(f"expected --algo {have} for --task {task_name}, got {algo}; fix: choose one of these")
    strategy_type, defaults = algorithms[algo]
    chosen = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in vars(defaults).items()
    }
    settings = Settings(**chosen)
    problem = _problem_with_settings(settings, task_name, algo) or _problem_with_folder(arguments.out, arguments.resume)
    if problem is not None:
        return _fail(problem)
    for module in (task_type.NEEDS, "matplotlib", "rich"):
        require(module, "demo")
    try:
        start, prepared = time.perf_counter(), 0.0
        with progress(settings.generations) as display:
            display.note(f"loading {task_type.TITLE}, compiling")
            task = task_type(settings)
            try:
                strategy = strategy_type(task, settings)
            except ConnectionError as error:
                return _fail(str(error))
            if not arguments.resume:
                (arguments.out / _POINTS).unlink(missing_ok=True)
                remember(arguments.out, task_name, algo, settings)
            try:
                records = strategy.run(arguments.out)
            except (ValueError, OSError) as error:
                return _fail(str(error))
            curve = Curve(arguments.out / _POINTS)
            every, traced = -(-settings.generations // _CHECKS), min(_TRACED, settings.generations - 1)
            count, number, scratch, state = 0, 0, 0, ""
            while number < settings.generations:
                if count == traced:
                    scratch, record = _with_peak(lambda: next(records))
                else:
                    record = next(records)
                count, number = count + 1, record.number + 1
                if count == 1:
                    prepared = time.perf_counter() - start
                if (number % every == 0 or number == settings.generations) and number not in curve.points:
                    measures = task.measure(strategy.champion(), number)
                    curve.add(number, record.mean, measures)
                    state = "".join(f"  {name} {value:5.1f}{task.UNIT}" for name, value in measures.items())
                display.advance(number, f"fitness {record.mean:7.3f}{state}{strategy.status}")
            next(records, None)  # the run is over: workers say which bits they have, and end
            champion = strategy.champion()
            result, value = task.report(champion)
    except KeyboardInterrupt:
        way = f"flatstore evolve --out {shlex.quote(str(arguments.out))} --resume"
        way += f" --workers {shlex.quote(str(settings.workers))}" if settings.on_ray else ""
        print(f"\nflatstore evolve: interrupted; {way} goes on", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    save(arguments.out / _CHAMPION, champion)
    curve.write(arguments.out / _CURVE, f"{_ALGORITHMS[algo]} on {task.TITLE}", task)
    evolved, extra = strategy.evolved, strategy.state_bytes + max(scratch, task.temporaries)
    noun, members = ("population", f"{evolved.size:,} members x ") if isinstance(evolved, Population) else ("model", "")
    size = evolved.buffer.nbytes
    print(f"{result:<18} {value}")
    print(f"generations        {settings.generations:,}")
    print(f"time               {seconds:.1f} s, of which {prepared:.1f} s until the first generation")
    print(f"{noun:<18} {size:,} bytes: {members}{evolved.layout.size:,} parameters")
    print(f"peak extra memory  {extra / size:.2f} x the {noun} ({extra:,} bytes)")
    print(f"written            {arguments.out / _CHAMPION}, {arguments.out / _CURVE}")
    return 0


def _workers(text: str) -> int | str:
    if text.partition(":")[0] == "ray":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or ray[:ADDRESS], got {text!r}; fix: --workers 2"
        ) from None


def _fail(problem: str) -> int:
    """Print what is wrong; returns the exit status for it."""
    print(f"flatstore evolve: {problem}", file=sys.stderr)
    return 2


def _problem_with_settings(settings: Settings, task: str, algo: str) -> str | None:
    """What is wrong with the settings, if anything."""
    if settings.on_ray and algo != "es":
        return f"expected --algo es with --workers {settings.workers}, got {algo}; fix: --algo es, or leave it out"
    if settings.workers and algo == "mezo":
        return f"expected no --workers for --algo mezo, got {settings.workers}; fix: leave it out"
    if algo == "mezo" and settings.population != 1:
        return f"expected no --population for --algo mezo, got {settings.population}; fix: leave it out"
    for name, least in (
        ("population", 1 if algo == "mezo" else 4),
        ("generations", 1),
        ("hidden", 1),
        ("seed", 0),
        ("workers", 0),
    ):
        if not (name == "workers" and settings.on_ray) and getattr(settings, name) < least:
            return f"expected --{name} >= {least}, got {getattr(settings, name)}; fix: give a larger number"
    if algo == "es" and settings.population % 2:
        return f"expected an even --population for --algo es, got {settings.population}; fix: members come in pairs"
    return None


def _problem_with_folder(folder: Path, resume: bool) -> str | None:
    """Why a run cannot be begun in the folder, or gone on with, if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in (_CHAMPION, _CURVE, _POINTS):
            if (folder / name).is_dir():
                raise IsADirectoryError(21, f"{name} is a folder")
        if not resume and has_run(folder):
            return (
                f"expected a folder without a run as --out, got {str(folder)!r}; "
                "fix: go on with it by --resume, or choose another --out"
            )
    except OSError as error:
        return f"expected a folder to write to, got {str(folder)!r} ({error.strerror}); fix: choose another --out"
    return None


def _with_peak(step: Callable[[], Any]) -> tuple[int, Any]:
    """(the most bytes that NumPy and Python allocated during `step` beyond those before, its result)."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = step()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()
