"""The examples are programs: each runs in a process of its own, and finds what it looks for."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def shown(name, *arguments):
    """What an example prints. Its warnings are errors."""
    command = [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def number(pattern, text):
    """The number that a pattern's group finds in a text."""
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def test_pycma_drives_a_population_to_exclusive_or():
    text = shown("cma_es")
    assert number(r"loss (\S+)", text) < 1e-6
    assert number(r"largest error of the best: (\S+)", text) < 0.01


def test_nsga2_finds_the_front_of_two_objectives():
    text = shown("nsga2", "60")
    assert number(r"true front: (\S+)", text) < 0.03
    assert number(r"sqrt\(f1\) = (\S+)", text) < 0.2
    assert number(r"to (\S+); from", text) > 1.8


def test_lexicase_solves_every_case_of_parity():
    assert "it solves 8 of 8 cases" in shown("lexicase")


@pytest.mark.long
def test_simulated_binary_crossover_makes_children_around_their_parents():
    text = shown("sbx", "2000")
    assert abs(number(r"mean (\S+),", text)) < 0.01
    assert 0.95 < number(r"from 0: (\S+)", text) < 1.05
    assert re.findall(r"^ *(.+): \S+ billion genes per second$", text, re.MULTILINE) == [
        "uniform",
        "blend",
        "simulated binary",
    ]


@pytest.mark.skipif(find_spec("evosax") is None, reason="evosax is not installed")
def test_a_strategy_of_evosax_asks_into_a_population():
    text = shown("evosax_snes")
    assert number(r"loss (\S+)", text) < 1e-6
    assert number(r"largest error of the best: (\S+)", text) < 0.01


@pytest.mark.parametrize(("scheme", "steps"), [("mezo", 150), pytest.param("at-scale", 20, marks=pytest.mark.long)])
def test_a_language_model_is_fine_tuned_in_place_and_loaded_by_transformers(scheme, steps, tmp_path):
    text = shown("mezo_transformers", "--scheme", scheme, "--steps", str(steps), "--out", str(tmp_path / "out"))
    before, after = number(r"parameters, loss (\S+)", text), number(r"steps: loss (\S+)", text)
    assert after < before - 0.5
    assert "loaded by transformers, the same bits" in text


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_an_engine_evolves_where_its_parameters_are_and_agrees_with_the_trainer_on_every_bit(processes):
    text = shown("engine", "--processes", str(processes), "--generations", "25")
    assert "taken back to the bit: True" in text and "the trainer has the same bits: True" in text
    before, after = re.findall(r"loss (\S+)", text)
    assert float(after) < 0.75 * float(before)
    assert "refused, since a captured graph would not have seen it: 1 leaf elsewhere" in text


@pytest.mark.parametrize(
    ("sharded", "counts"),
    [
        (False, (1, 2)),
        (True, (2,)),
        pytest.param(False, (1, 3), marks=pytest.mark.long),
        pytest.param(True, (1, 3), marks=pytest.mark.long),
    ],
)
def test_processes_of_jax_agree_on_every_bit_with_the_host(sharded, counts):
    digests = set()
    for processes in counts:
        text = shown("jax_processes", "--processes", str(processes), *["--sharded"] * sharded)
        found = re.findall(r"fitness (\S+) to (\S+), centre (\w+), as replayed on the host: True", text)
        assert len(found) == processes and len(set(found)) == 1, text
        first, last, digest = found[0]
        assert float(last) > 0.5 * float(first)
        digests.add(digest)
    assert sharded or len(digests) == 1  # in shards the sums over rows, and so fitness, are rounded in another order


def test_every_example_is_run_here():
    names = {"cma_es", "engine", "evosax_snes", "jax_processes", "nsga2", "lexicase", "mezo_transformers", "sbx"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == names
