"""`flatstore evolve`, as a person runs it: a real process, real data, real files."""

import logging
import os
import pty
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

import flatstore as fs
from flatstore.cli.digits import Digits
from flatstore.cli.progress import progress
from flatstore.cli.task import Settings

SHORT = ["--population", "64", "--generations", "200", "--hidden", "16"]


def flatstore(*arguments, cwd=None):
    done = subprocess.run(
        [sys.executable, "-m", "flatstore", *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long(but="[es]")
@pytest.mark.parametrize("algo", ["es", "ga"])
def test_a_short_run_learns_says_what_it_took_and_writes_champion_and_curve(tmp_path, algo):
    status, out, err = flatstore("evolve", "--algo", algo, *SHORT, "--out", str(tmp_path))
    assert (status, err) == (0, "")
    assert float(re.search(r"test accuracy +([\d.]+) %", out)[1]) > 70
    assert "generations        200\n" in out
    assert "population         309,760 bytes: 64 members x 1,210 parameters\n" in out
    assert float(re.search(r"peak extra memory +([\d.]+) x the population", out)[1]) < 6
    picture = matplotlib.image.imread(tmp_path / "curve.png")
    assert picture.shape[0] > 300
    champion = fs.load(tmp_path / "champion.safetensors")
    assert champion.layout.size == 1210
    assert list(champion) == ["hidden/bias", "hidden/weight", "output/bias", "output/weight"]
    assert np.isfinite(champion.flat).all()


@pytest.mark.long
def test_a_short_run_of_mezo_learns_with_one_network_and_no_population(tmp_path):
    short = ["--algo", "mezo", "--generations", "2000", "--hidden", "16"]
    status, out, err = flatstore("evolve", *short, "--out", str(tmp_path))
    assert (status, err) == (0, "")
    assert float(re.search(r"test accuracy +([\d.]+) %", out)[1]) > 50
    assert "model              4,864 bytes: 1,210 parameters\n" in out
    assert fs.load(tmp_path / "champion.safetensors").layout.size == 1210
    assert matplotlib.image.imread(tmp_path / "curve.png").shape[0] > 300


@pytest.mark.long
@pytest.mark.parametrize("algo", ["es", "ga", "mezo"])
def test_the_same_seed_gives_the_same_champion_to_the_bit_and_another_seed_another(tmp_path, algo):
    runs = [("a", "7"), ("b", "7"), ("c", "8")]
    for name, seed in runs:
        assert (
            flatstore(
                "evolve",
                "--algo",
                algo,
                *(SHORT[:2] if algo != "mezo" else []),
                "--generations",
                "12",
                "--seed",
                seed,
                "--out",
                str(tmp_path / name),
            )[0]
            == 0
        )
    a, b, c = (fs.load(tmp_path / name / "champion.safetensors").buffer.tobytes() for name, _ in runs)
    assert a == b
    assert a != c


@pytest.mark.long(but="[es]")
@pytest.mark.parametrize("algo", ["es", "ga"])
def test_any_number_of_workers_gives_the_same_champion_to_the_bit(tmp_path, algo):
    champions: list[bytes] = []
    for workers in ("1", "2"):
        small = ["--population", "8", "--generations", "3", "--hidden", "8", "--algo", algo]
        status, _, err = flatstore("evolve", *small, "--workers", workers, "--out", str(tmp_path / workers))
        assert (status, err) == (0, "")
        champions.append(fs.load(tmp_path / workers / "champion.safetensors").buffer.tobytes())
    assert champions[0] == champions[1]


def test_a_member_alone_is_worth_what_it_is_among_all():
    settings = Settings(population=4, generations=1, hidden=8, seed=3)
    task = Digits(settings)
    pop = fs.Population.zeros(task.layout, 4)
    fs.es.sample(pop, fs.Store.zeros(task.layout), fs.Rademacher(0.1), fs.seeds(1, 4))
    with pop.lend() as stacked:
        together = task.evaluate(stacked, 2)
    alone = [task.evaluate_one(pop[i], 2) for i in range(4)]
    assert np.allclose(alone, together, rtol=1e-5) and len({*alone}) == 4


@pytest.mark.long
def test_inspect_shows_what_evolve_wrote(tmp_path):
    assert flatstore("evolve", *SHORT[:2], "--generations", "1", "--out", str(tmp_path))[0] == 0
    status, out, err = flatstore("inspect", str(tmp_path / "champion.safetensors"))
    assert (status, err) == (0, "")
    assert re.search(r"hidden/weight +\(64, 64\) +float32", out)


@pytest.mark.long(but="arguments0")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population", "3"], "expected --population >= 4, got 3; fix"),
        (["--population", "5"], "expected an even --population for --algo es, got 5; fix"),
        (["--generations", "0"], "expected --generations >= 1, got 0; fix"),
        (["--hidden", "0"], "expected --hidden >= 1, got 0; fix"),
        (["--seed", "-1"], "expected --seed >= 0, got -1; fix"),
        (["--task", "cartpole", "--population", "3"], "expected --population >= 4, got 3; fix"),
        (["--task", "cartpole", "--algo", "es", "--population", "5"], "expected an even --population for --algo es"),
        (["--algo", "mezo", "--population", "64"], "expected no --population for --algo mezo, got 64; fix"),
        (["--algo", "mezo", "--workers", "2"], "expected no --workers for --algo mezo, got 2; fix: leave it out"),
        (["--task", "cartpole", "--algo", "mezo"], "expected --algo ga, es for --task cartpole, got mezo; fix"),
        (["--out", "/dev/null/x"], "expected a folder to write to, got '/dev/null/x'"),
        (["--out", "/proc"], "expected a folder to write to, got '/proc'"),
    ],
)
def test_bad_settings_are_one_line_and_status_2(arguments, message):
    status, out, err = flatstore("evolve", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("flatstore evolve: ") and message in err
    assert err.count("\n") == 1


def test_help_names_every_option_and_its_defaults():
    status, out, _ = flatstore("evolve", "--help")
    assert status == 0
    for option in ("--task", "--algo", "--population", "--generations", "--hidden", "--seed", "--out"):
        assert option in out
    assert "digits: es, cartpole: ga" in " ".join(out.split())


def test_what_the_kernels_compile_is_shown_while_a_run_lasts(capsys):
    kernels = logging.getLogger("flatstore.kernels")
    before = kernels.level, list(kernels.handlers)
    with progress(2) as show:
        kernels.info("compiling %s (%s)", "generate", "float32")
        show.advance(2, "fitness 1")
    kernels.info("compiling nothing")
    assert capsys.readouterr().out == "compiling generate (float32)\ngeneration 2  fitness 1\n"
    assert (kernels.level, kernels.handlers) == before


IN_A_TERMINAL = """
import logging
from flatstore.cli.digits import Digits
from flatstore.cli.progress import progress
from flatstore.cli.task import Settings
with progress(2) as show:
    logging.getLogger("flatstore.kernels").info("compiling generate")
    input()
    show.advance(2, "fitness 1")
"""


def test_in_a_terminal_the_bar_says_what_is_compiled():
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stdin=its, stdout=its, env=environment) as process:
        os.close(its)
        shown = until(ours, "compiling generate")
        assert "evolving" in shown and "0/2" in shown
        os.write(ours, b"\n")
        assert "compiling" not in until(ours, "2/2").splitlines()[-1]
        assert process.wait(60) == 0
    os.close(ours)


def until(terminal, text):
    """What a process writes to its terminal until `text` has come."""
    shown = ""
    while text not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown
