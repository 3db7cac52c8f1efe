"""The task: scikit-learn's handwritten digits, 1,797 images of 8 × 8."""

from __future__ import annotations

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
from flatstore.noise import Normal
from flatstore.store import Population, Store

_jax: Any = jax

SHIFT, NOISE = 0.3, 0.4
"""How a training image is varied: moved by at most SHIFT pixels, plus NOISE times standard normal noise."""


class Digits(Task):
    """Classify images, given as columns of 64 numbers. The training and the test set share none."""

    layout: Layout
    initial: Normal
    train_x: Array
    test_x: Array
    train_y: Any
    test_y: Any

    TITLE: ClassVar[str] = "digits"
    NEEDS: ClassVar[str] = "sklearn"
    AXIS: ClassVar[str] = "accuracy, %"
    UNIT: ClassVar[str] = " %"
    FITNESS: ClassVar[str | None] = None
    BATCH = 128

    def __init__(self, settings: Settings) -> None:
        """Load the data, four fifths for training, classes in proportion."""
        self.seed: int = settings.seed
        self._settings = settings
        self.layout, self.initial = layout_of_network(64, settings.hidden, 10), initial_noise(64, settings.hidden)
        images, labels = require("sklearn.datasets", "demo").load_digits(return_X_y=True)
        split = require("sklearn.model_selection", "demo").train_test_split
        train_x, test_x, train_y, test_y = split(images, labels, test_size=0.2, random_state=42, stratify=labels)
        mean = train_x.mean(axis=0)
        self.train_x, self.test_x = (np.ascontiguousarray(((x - mean) / 6).T, np.float32) for x in (train_x, test_x))
        self.train_y, self.test_y = train_y.astype(np.int32), test_y.astype(np.int32)
        self._fitness, self._on_all = Program(fitness), Program(fitness_on_all)
        self._train, self._test, self._one = Program(accuracy), Program(accuracy), Program(log_likelihood)

    def batch(self, generation: int) -> tuple[Array, Array]:
        """Some training images, each moved a little and with noise: the same for the same seed and generation."""
        rng: Any = np.random.default_rng((self.seed, generation))
        chosen: Array = rng.choice(len(self.train_y), self.BATCH, replace=False)
        x = _moved(self.train_x[:, chosen], rng)
        noise = rng.standard_normal(x.shape, dtype=np.float32)
        return x + NOISE * noise, self.train_y[chosen]

    def evaluate(self, stacked: Any, generation: int) -> Array:
        """The mean log-probability that each member gives the labels of the generation's batch."""
        return np.asarray(self._fitness(stacked, *self.batch(generation)))

    @property
    def evaluate_one(self) -> Callable[[Store, int], float]:
        """The same for one member, in any process: there the data are loaded once."""
        return self.fitness_of

    def __reduce__(self) -> Any:
        """What another process makes of it: the task that it has already, or makes now."""
        return digits_of, (self._settings,)

    def fitness_of(self, member: Store, generation: int) -> float:
        """The same for one member, which is copied: in a population its leaves lie where JAX cannot view them."""
        return float(self._one(member.copy().tree, *self.batch(generation)))

    def choose(self, pop: Population) -> int:
        """The member that explains all training images best."""
        with pop.lend() as stacked:
            return int(np.asarray(self._on_all(stacked, self.train_x, self.train_y)).argmax())

    def measure(self, champion: Store, number: int) -> dict[str, float]:
        """The accuracy on the training and on the test images, in percent."""
        with champion.lend() as params:
            train, test = self._train(params, self.train_x, self.train_y), self._test(params, self.test_x, self.test_y)
            return {"training": 100 * float(train), "test": 100 * float(test)}

    def report(self, champion: Store) -> tuple[str, str]:
        """The test and the training accuracy, as text."""
        accuracies = self.measure(champion, 0)
        return "test accuracy", f"{accuracies['test']:.2f} % (training {accuracies['training']:.2f} %)"

    @property
    def temporaries(self) -> int:
        """The most bytes of temporary memory that a compiled program took to evaluate the population."""
        return max(self._fitness.temporaries, self._on_all.temporaries)


@cache
def digits_of(settings: Settings) -> Digits:
    """The task, of which a process that evaluates members has one."""
    return Digits(settings)


def _moved(x: Array, rng: Any) -> Array:
    """Each image moved by a fraction of a pixel along both axes, between its neighbours; edges repeat."""
    images = x.reshape(8, 8, -1)
    for axis in (0, 1):
        distance = rng.uniform(-SHIFT, SHIFT, images.shape[2]).astype(np.float32)
        padded = np.pad(images, [(1, 1) if k == axis else (0, 0) for k in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(8) + k, axis=axis) for k in (0, 2))
        images = (1 - abs(distance)) * images + np.maximum(distance, 0) * before + np.maximum(-distance, 0) * after
    return images.reshape(x.shape)


def log_likelihood(params: Any, x: Any, y: Any) -> Any:
    """The fitness of one network: the mean log-probability that it gives the labels."""
    log_p = jax.nn.log_softmax(logits(params, x), axis=0)
    return jnp.take_along_axis(log_p, y[None], axis=0).mean()


def fitness(stacked: Any, x: Any, y: Any) -> Any:
    """The fitness of every member: shape (members,)."""
    return jax.vmap(log_likelihood, in_axes=(0, None, None))(stacked, x, y)


def fitness_on_all(stacked: Any, x: Any, y: Any) -> Any:
    """The fitness of every member on many images: a few members at a time, so that their activations stay small."""
    return _jax.lax.map(partial(log_likelihood, x=x, y=y), stacked, batch_size=8)


def accuracy(params: Any, x: Any, y: Any) -> Any:
    """The share of images that one network labels right."""
    return (logits(params, x).argmax(axis=0) == y).mean()
