"""`flatstore evolve`: a network whose parameters live in a flat store, evolved on real data."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flatstore.cli.curve import Curve
from flatstore.cli.digits import Digits, accuracy, jit
from flatstore.cli.progress import progress
from flatstore.cli.strategies import EvolutionStrategy, GeneticAlgorithm, Settings, Strategy
from flatstore.extras import require
from flatstore.files import save
from flatstore.store import Store

_STRATEGIES: dict[str, tuple[type[Strategy], Settings]] = {
    "es": (EvolutionStrategy, Settings(population=256, generations=3000, hidden=64, seed=0)),
    "ga": (GeneticAlgorithm, Settings(population=320, generations=1000, hidden=32, seed=0)),
}
_CHAMPION, _CURVE = "champion.safetensors", "curve.png"
_CHECKS = 40  # how often the champion is looked at in a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `flatstore evolve`. `run` takes what they parse to."""
    parser.description = (
        "Evolve a network on scikit-learn's handwritten digits. Its parameters live in a flat population for the "
        "whole run; JAX evaluates them where they lie. The same seed gives the same network to the bit."
    )
    parser.add_argument(
        "--algo", choices=list(_STRATEGIES), default="es", help="evolution strategy or genetic algorithm"
    )
    for name, what in (
        ("population", "members"),
        ("generations", "generations"),
        ("hidden", "units of the hidden layer"),
        ("seed", "seed"),
    ):
        defaults = ", ".join(f"{algo}: {getattr(settings, name)}" for algo, (_, settings) in _STRATEGIES.items())
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default {defaults})")
    parser.add_argument(
        "--out", type=Path, default=Path("evolved"), metavar="DIR", help="where to write (default %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evolve, print what came out, and write the champion and the learning curve; returns the exit status."""
    strategy_type, defaults = _STRATEGIES[arguments.algo]
    chosen = {
        name: default if getattr(arguments, name) is None else getattr(arguments, name)
        for name, default in vars(defaults).items()
    }
    settings = Settings(**chosen)
    problem = _problem(settings, arguments.algo)
    if problem is None:
        problem = _cannot_write(arguments.out)
    if problem is not None:
        print(f"flatstore evolve: {problem}", file=sys.stderr)
        return 2
    for module in ("sklearn", "safetensors", "matplotlib", "rich"):
        require(module, "demo")
    start = time.perf_counter()
    with progress(settings.generations) as show:
        show.note("loading digits, compiling")
        digits = Digits.load()
        measure = _compiled_accuracy(digits)
        strategy = strategy_type(digits, settings)
        compiled = time.perf_counter() - start
        curve = Curve()
        scratch = 0
        every = max(1, settings.generations // _CHECKS)
        for number in range(settings.generations):
            if number == 0:
                scratch, scores = _traced(lambda: strategy.generation(0))
            else:
                scores = strategy.generation(number)
            if (number + 1) % every == 0 or number + 1 == settings.generations:
                curve.add(number + 1, *measure(strategy.champion()))
            show.advance(number + 1, float(scores.mean()), curve)
        champion = strategy.champion()
        train, test = measure(champion)
    seconds = time.perf_counter() - start
    save(arguments.out / _CHAMPION, champion)
    curve.write(arguments.out / _CURVE, arguments.algo)
    pop = strategy.pop
    population = pop.buffer.nbytes
    extra = strategy.state + max(scratch, strategy.temporaries)
    print(f"test accuracy      {100 * test:.2f} % (training {100 * train:.2f} %)")
    print(f"generations        {settings.generations:,}")
    print(f"time               {seconds:.1f} s, of which {compiled:.1f} s to load and compile")
    print(f"population         {population:,} bytes: {pop.size:,} members x {pop.layout.size:,} parameters")
    print(f"peak extra memory  {extra / population:.2f} x the population ({extra:,} bytes)")
    print(f"written            {arguments.out / _CHAMPION}, {arguments.out / _CURVE}")
    return 0


def _problem(settings: Settings, algo: str) -> str | None:
    """What is wrong with the settings, if anything."""
    for name, least in (("population", 4), ("generations", 1), ("hidden", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            return f"expected --{name} >= {least}, got {getattr(settings, name)}; fix: give a larger number"
    if algo == "es" and settings.population % 2:
        return f"expected an even --population for --algo es, got {settings.population}; fix: its members are pairs"
    return None


def _cannot_write(folder: Path) -> str | None:
    """Why the results could not be written when the run is over, if they could not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in (_CHAMPION, _CURVE):
            if (folder / name).is_dir():
                raise IsADirectoryError(21, f"{name} is a folder")
    except OSError as error:
        return f"expected a folder to write to, got {str(folder)!r} ({error.strerror}); fix: choose another --out"
    return None


def _compiled_accuracy(digits: Digits) -> Callable[[Store], tuple[float, float]]:
    """A function that gives a network's accuracy on the training and the test images."""
    compiled = jit(accuracy)

    def measure(store: Store) -> tuple[float, float]:
        with store.lend() as params:
            train = compiled(params, digits.train_x, digits.train_y)
            test = compiled(params, digits.test_x, digits.test_y)
            return float(train), float(test)

    return measure


def _traced(step: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that NumPy and Python held at once during `step`, beyond what there was; and its result."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = step()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()
