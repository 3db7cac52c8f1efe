"""`flatstore evolve --task cartpole`: the real environment, counted right, and solved in a real process."""

import re
import subprocess
import sys

import gymnasium
import matplotlib.image
import numpy as np
import pytest

import flatstore as fs
from flatstore.cli.cartpole import Episodes, mean_return
from flatstore.cli.network import initial_noise, layout_of_network

SHORT = ["--task", "cartpole", "--population", "48", "--generations", "12", "--hidden", "8"]


def flatstore(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "flatstore", "evolve", *arguments], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("algo", [[], ["--algo", "es", "--generations", "100"]])
def test_a_short_run_solves_it_and_writes_champion_and_curve(tmp_path, algo):
    status, out, err = flatstore(*SHORT, *algo, "--out", str(tmp_path))
    assert (status, err) == (0, "")
    assert float(re.search(r"mean return +([\d.]+) over 100 fresh episodes", out)[1]) >= 475
    assert "population         11,136 bytes: 48 members x 58 parameters\n" in out
    assert matplotlib.image.imread(tmp_path / "curve.png").shape[0] > 300
    champion = fs.load(tmp_path / "champion.safetensors")
    assert [champion[path].shape for path in ("hidden/weight", "output/weight")] == [(8, 4), (2, 8)]


@pytest.mark.long
@pytest.mark.parametrize("algo", ["es", "ga"])
def test_the_same_seed_gives_the_same_champion_to_the_bit_and_another_seed_another(tmp_path, algo):
    runs = [("a", "7"), ("b", "7"), ("c", "8")]
    for name, seed in runs:
        arguments = ["--algo", algo, "--generations", "3", "--seed", seed, "--out", str(tmp_path / name)]
        assert flatstore(*SHORT, *arguments)[0] == 0
    a, b, c = (fs.load(tmp_path / name / "champion.safetensors").buffer.tobytes() for name, _ in runs)
    assert a == b
    assert a != c


def networks(size):
    pop = fs.Population.zeros(layout_of_network(4, 8, 2), size)
    fs.es.sample(pop, fs.Store.zeros(pop.layout), initial_noise(4, 8), fs.seeds(3, size))
    return pop


def returns_one_by_one(pop, each, seed):
    """The oracle: every episode alone in the environment that is not vectorised, the network in NumPy."""
    start = gymnasium.make_vec("CartPole-v1", num_envs=pop.size * each, vectorization_mode="vector_entry_point")
    start.reset(seed=int(fs.seeds(seed, 1)[0] >> 1))
    env = gymnasium.make("CartPole-v1")
    returns = []
    for episode, state in enumerate(start.unwrapped.state.T):
        member = pop[episode // each]
        env.reset()
        env.unwrapped.state = state
        seen, total, over = state.astype("f4"), 0.0, False
        while not over:
            hidden = np.maximum(member["hidden/weight"] @ seen + member["hidden/bias"], 0)
            action = (member["output/weight"] @ hidden + member["output/bias"]).argmax()
            seen, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        returns.append(total)
    return np.reshape(returns, (pop.size, each))


def test_the_return_is_that_of_the_first_episode_alone():
    pop = networks(16)
    episodes = Episodes(16, 3)
    with pop.lend() as stacked:
        first, again = (episodes.returns(stacked, (0, 5)) for _ in range(2))
        other = episodes.returns(stacked, (0, 6))
    assert first.tolist() == again.tolist() != other.tolist()
    assert first.tolist() == returns_one_by_one(pop, 3, (0, 5)).tolist()
    assert len({*first.ravel()}) > 5


def test_a_worker_gives_a_member_the_mean_of_the_returns_that_it_has_alone():
    pop = networks(4)
    for i in range(4):
        alone = returns_one_by_one(pop[i : i + 1], 3, (5, 0, 7))
        assert mean_return(5, 3, pop[i], 7) == alone.mean()


@pytest.mark.long(but="es")
@pytest.mark.parametrize("algo", ["es", "ga"])
def test_any_number_of_workers_gives_the_same_champion_to_the_bit(tmp_path, algo):
    champions: list[bytes] = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        status, out, err = flatstore(
            *SHORT, "--algo", algo, "--generations", "2", "--workers", workers, "--out", str(folder)
        )
        assert (status, err) == (0, "")
        champions.append(fs.load(folder / "champion.safetensors").buffer.tobytes())
    assert champions[0] == champions[1]


def test_a_warning_of_gymnasium_does_not_reach_the_user():
    spec = gymnasium.spec("CartPole-v1")
    gymnasium.register("CartPole-v2", spec.entry_point, vector_entry_point=spec.vector_entry_point)
    try:
        with pytest.warns(DeprecationWarning, match="out of date"):
            gymnasium.make_vec("CartPole-v1", vectorization_mode="vector_entry_point")
        Episodes(1, 1)
    finally:
        del gymnasium.registry["CartPole-v2"]


def test_without_gymnasium_the_error_names_the_extra():
    program = "import sys; sys.modules['gymnasium'] = None; from flatstore.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, "evolve", *SHORT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "flatstore evolve: expected the library 'gymnasium', got none; fix: pip install 'flatstore[demo]'\n"
    )
