"""asv itself runs a project of somebody else's, with our base classes, and finds what they say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flatstore import bench

PROJECT = Path(__file__).parents[2] / "examples/bench"


@pytest.mark.long
def test_a_project_of_somebody_elses_is_measured(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(project), "JAX_PLATFORMS": "cpu"}

    def run(*command):
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "init", "-q")
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    asv = [sys.executable, "-m", "asv"]
    run(*asv, "machine", "--yes")
    shown = run(*asv, "run", "--python=same", "--quick", "--dry-run", "--show-stderr")
    assert "failed" not in shown, shown
    for name in ("PeakByAFlatVector", "PeakInPlace", "OfXla", "Times", "track_moved_leaves"):
        assert f"parameters.{name}" in shown, shown
    peaks = [shown.partition(f"parameters.Peak{name}.")[2] for name in ("ByAFlatVector", "InPlace")]
    vector, in_place = (re.search(r"4096 +(\S+)", peak)[1] for peak in peaks)
    assert float(vector.removesuffix("M")) > 24 and not in_place.endswith("M"), shown


def make(size):
    return size


class Peak(bench.asv.PeakMemory):
    make = staticmethod(make)
    work = staticmethod(bytearray)


class Extra(bench.asv.XlaTemporaries):
    @staticmethod
    def make(size):
        import jax

        return jax.jit(lambda x: x[::-1]), jax.ShapeDtypeStruct((size,), "float32")


class Times(bench.asv.Ratio):
    rounds = 3

    @staticmethod
    def make(size):
        return lambda: sum(range(100 * size)), lambda: sum(range(size))


def test_the_classes_track_what_the_functions_say():
    assert Peak().track_peak_memory(64 << 20) == pytest.approx(64 << 20, rel=0.1)
    assert Extra().track_extra_bytes(1000) >= 4000
    assert Times().track_ratio(10_000) > 10
    assert (Peak.unit, Extra.unit, Times.unit) == ("bytes", "bytes", "times as long")


@pytest.mark.parametrize("kind", [bench.asv.PeakMemory, bench.asv.XlaTemporaries, bench.asv.Ratio])
def test_what_is_not_overridden_is_named(kind):
    with pytest.raises(NotImplementedError, match="make"):
        kind.make(1)
