"""The suite of benchmarks: a file per question, with asv's classes and a table over the same calls."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTIONS = [
    "access",
    "conversion",
    "lending",
    "small_models",
    "generation",
    "perturbation",
    "sixteen_bits",
    "evaluation",
    "files",
    "scaling",
]
OTHERS = ["run_figures", "process_figures", "scale", "compare"]
OPTIONAL = ["evosax", "evotorch", "gymnasium", "matplotlib", "optax", "ray", "safetensors", "torch", "transformers"]


def benchmarks_of(module):
    """The classes of a module in which asv finds what it runs, and the names of that, as it looks for them."""
    classes = [x for name, x in vars(module).items() if inspect.isclass(x) and not name.startswith("_")]
    found = {x: [name for name in dir(x) if name.startswith(("time_", "track_"))] for x in classes}
    return {x: names for x, names in found.items() if names}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_has_one_file_with_benchmarks_of_asv_and_lines_of_a_table(question):
    module = importlib.import_module(f"benchmarks.{question}")
    found = benchmarks_of(module)
    assert found and all(x.__module__ == module.__name__ and inspect.getdoc(x) for x in found)
    assert module.MEASURES and all(inspect.isgeneratorfunction(measure) for measure in module.MEASURES)
    assert all(inspect.getdoc(measure) for measure in module.MEASURES)
    assert f"python -m benchmarks.{question}" in module.__doc__
    assert len((ROOT / f"benchmarks/{question}.py").read_text().splitlines()) <= 300


def test_the_suite_is_found_without_what_is_optional():
    modules = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"]
    program = f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    program += "".join(f"import benchmarks.{name}\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def for_flatstore(params):
    """The first of the parameters that are flatstore's, or the first of all."""
    lists = params if params and isinstance(params[0], list) else [params] if params else []
    return [next((x for x in some if "flatstore" in str(x)), some[0]) for some in lists]


@pytest.mark.long
@pytest.mark.parametrize("question", QUESTIONS)
def test_each_benchmark_of_asv_runs_once(question):
    for benchmark, names in benchmarks_of(importlib.import_module(f"benchmarks.{question}")).items():
        params, made = for_flatstore(getattr(benchmark, "params", [])), benchmark()
        getattr(made, "setup", lambda *_: None)(*params)
        for name in names:
            result = getattr(made, name)(*params)
            assert result is None if name.startswith("time_") else float(result) >= -1, (benchmark, name)


@pytest.mark.long
@pytest.mark.parametrize("name", QUESTIONS + OTHERS)
def test_a_quick_table_has_its_lines(name):
    """CI runs this in its step of benchmarks, where the tables are shown."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    _, rule, *lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert set(rule) <= set("|- ") and all(line.count("|") >= rule.count("|") for line in lines)
    assert len(lines) >= len(re.findall("^measuring", done.stderr, re.MULTILINE)) > 0 or name == "compare"
    for measure in getattr(importlib.import_module(f"benchmarks.{name}"), "MEASURES", ()):
        assert f"measuring {measure.__name__} ..." in done.stderr
