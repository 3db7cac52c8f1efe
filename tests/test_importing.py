"""Importing the package takes little: what compiles, or is not for everybody, is imported when it is first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flatstore as fs

HEAVY = ("numba", "torch", "ray", "triton", "matplotlib", "multiprocessing", "xxhash", "flatstore.es", "flatstore.ga")
TYPED = [
    (node.module, alias.name)
    for block in ast.parse(Path(fs.__file__).read_text()).body
    if isinstance(block, ast.If)
    for node in block.body
    for alias in node.names
]


def shown(code):
    """What Python prints, in a process of its own in which nothing is imported."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_heavy_is_imported_before_it_is_used():
    code = f"import sys, jax; before = set(sys.modules); import flatstore as fs, numpy as np; heavy = {HEAVY!r}\n"
    code += "found = lambda: [name for name in heavy if name in sys.modules and name not in before]\n"
    code += "store = fs.Store.from_tree({'w': np.ones(3, 'f4')}); store.flat; print(found())\n"
    code += "fs.es.snap(store, fs.Normal(0.1)); print('numba' in found())"
    assert shown(code) == "[]\nTrue"


@pytest.mark.parametrize(("room", "name"), TYPED)
def test_what_is_imported_later_is_what_its_types_say(room, name):
    assert name in dir(fs)
    value = getattr(fs, name)
    assert value is getattr(sys.modules[room], name) and getattr(fs, name) is value


def test_all_of_it_can_be_imported_by_name_in_any_order():
    names = [name for _, name in reversed(TYPED)]
    code = f"from flatstore import {', '.join(names)}; print(*(x.__name__ for x in ({', '.join(names)})))"
    assert shown(code).split() == [getattr(fs, name).__name__ for name in names]


def test_all_that_is_imported_later_has_types():
    later = {*fs._NAMES, *("bench", "es", "ga", "scale")}
    assert {name for _, name in TYPED} == later and later < {*fs._ROOMS, *fs._NAMES}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flatstore' has no attribute 'nothing'"):
        fs.nothing  # noqa: B018
    assert not hasattr(fs, "__wrapped__")


def test_a_population_is_made_in_a_file_whatever_was_imported(tmp_path):
    layout = "fs.Layout.from_tree({'w': np.zeros(3, 'f4')})"
    path = str(tmp_path / "pop.safetensors")
    made = f"import flatstore as fs, numpy as np; print(len(fs.Population.create({path!r}, {layout}, 4)))"
    assert shown(made) == "4"
    assert shown(f"import flatstore as fs; print(len(fs.Population.open({path!r})))") == "4"
