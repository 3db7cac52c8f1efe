"""The task: Gymnasium's CartPole-v1, a pole on a cart to be balanced for 500 steps by pushing left or right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flatstore.cli.network import Program, initial_noise, layout_of_network, logits
from flatstore.cli.task import Settings, Task
from flatstore.extras import require
from flatstore.layout import Array, Layout
from flatstore.noise import Normal, seeds
from flatstore.store import Population, Store

_jax: Any = jax

# What episodes are run for: each has its own random numbers, and so its own starting states.
_EVALUATE, _CHOOSE, _MEASURE, _REPORT = range(4)


class CartPole(Task):
    """Balance a pole: 4 observations, 2 actions, a reward of 1 per step; solved is a mean return of 475."""

    layout: Layout
    initial: Normal

    TITLE: ClassVar[str] = "CartPole-v1"
    NEEDS: ClassVar[str] = "gymnasium"
    AXIS: ClassVar[str] = "mean return"
    UNIT: ClassVar[str] = ""
    FITNESS: ClassVar[str | None] = "population"
    EPISODES, TO_CHOOSE, TO_REPORT = 4, 20, 100

    def __init__(self, settings: Settings) -> None:
        """Start the environments."""
        self.seed: int = settings.seed
        self.layout, self.initial = layout_of_network(4, settings.hidden, 2), initial_noise(4, settings.hidden)
        self._to_evaluate = None if settings.workers else Episodes(settings.population, self.EPISODES)
        self._to_choose = Episodes(settings.population, self.TO_CHOOSE)
        self._to_report = Episodes(1, self.TO_REPORT)

    def evaluate(self, stacked: Any, generation: int) -> Array:
        """The mean return of each member over a few episodes."""
        assert self._to_evaluate
        return self._to_evaluate.returns(stacked, (self.seed, _EVALUATE, generation)).mean(axis=1)

    @property
    def evaluate_one(self) -> Callable[[Store, int], float]:
        """The mean return of a member over a few episodes, which are the same for all members of a generation."""
        return partial(mean_return, self.seed, self.EPISODES)

    def choose(self, pop: Population) -> int:
        """The member with the highest mean return over more episodes."""
        with pop.lend() as stacked:
            return int(self._to_choose.returns(stacked, (self.seed, _CHOOSE)).mean(axis=1).argmax())

    def measure(self, champion: Store, number: int) -> dict[str, float]:
        """The mean return over 100 new episodes, by name."""
        return {"champion": float(self._fresh(champion, (self.seed, _MEASURE, number)).mean())}

    def report(self, champion: Store) -> tuple[str, str]:
        """The mean return over 100 other new episodes, as text."""
        returns = self._fresh(champion, (self.seed, _REPORT))
        return "mean return", f"{returns.mean():.2f} over {returns.size} fresh episodes (worst {returns.min():.0f})"

    @property
    def temporaries(self) -> int:
        """The most bytes of temporary memory that a compiled program took to evaluate the population."""
        to_evaluate = self._to_evaluate.act.temporaries if self._to_evaluate else 0
        return max(to_evaluate, self._to_choose.act.temporaries)

    def _fresh(self, champion: Store, seed: tuple[int, ...]) -> Array:
        with champion.lend() as params:
            return self._to_report.returns(_jax.tree.map(partial(jnp.expand_dims, axis=0), params), seed)


class Episodes:
    """`each` episodes for each of `networks` networks, all at once in one vectorised environment."""

    def __init__(self, networks: int, each: int, act: Any = None) -> None:
        self._shape = networks, each
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gymnasium = require("gymnasium", "demo")
            self._env: Any = gymnasium.make_vec(
                "CartPole-v1", num_envs=networks * each, vectorization_mode="vector_entry_point"
            )
        self.act: Any = act or Program(act_of_all)

    def returns(self, stacked: Any, seed: tuple[int, ...]) -> Array:
        """The return of each episode, the sum of its rewards until it ends: shape (networks, each)."""
        observations, _ = self._env.reset(seed=int(seeds(seed, 1)[0] >> 1))
        totals, running = np.zeros(self._env.num_envs), np.ones(self._env.num_envs, bool)
        while running.any():
            actions = np.asarray(self.act(stacked, observations.reshape(*self._shape, -1))).ravel()
            observations, rewards, terminated, truncated, _ = self._env.step(actions)
            totals += np.where(running, rewards, 0)  # an episode that has ended starts again by itself
            running &= ~(terminated | truncated)
        return totals.reshape(self._shape)


def act_of_all(stacked: Any, observations: Any) -> Any:
    """The actions of the networks for observations of shape (networks, each, 4): shape (networks, each)."""
    return jax.vmap(logits)(stacked, observations.swapaxes(1, 2)).argmax(axis=1)


def mean_return(seed: int, each: int, member: Store, generation: int) -> float:
    """The mean return of one network over a few episodes: what a worker evaluates, by NumPy."""
    return float(_episodes_of_one(each).returns(member, (seed, _EVALUATE, generation)).mean())


@cache
def _episodes_of_one(each: int) -> Episodes:
    return Episodes(1, each, act_of_one)


def act_of_one(member: Store, observations: Array) -> Array:
    """The actions of one network for observations of shape (1, each, 4), by NumPy: shape (1, each)."""
    hidden = np.maximum(member["hidden/weight"] @ observations[0].T + member["hidden/bias"][:, None], 0)
    return (member["output/weight"] @ hidden + member["output/bias"][:, None]).argmax(axis=0)[None]
