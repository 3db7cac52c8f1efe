"""A centre that follows the moves of a run elsewhere, and the members around it.

```
told       moves 7, 8: their weights, the seeds are a function of the number      evaluate members 3, 4 of generation 9
answers    their fitness, and the digest of the centre, which tells one that has other bits
```
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import xxhash

from flatstore import es
from flatstore.evaluation import Evaluate, one_number, pickled
from flatstore.layout import Array
from flatstore.noise import Noise, seeds
from flatstore.store import Store

Make = Callable[[], tuple[Store, Evaluate]] | str
"""A function that makes the centre and what evaluates a member of it, or its name, `module:function`."""

Method = TypeVar("Method", bound=Callable[..., Any])

Told = tuple[int, bytes, float | None]
"""A move as it travels: its number, its weights as the bytes of float64, and its rate."""

State = tuple[int, list[Array], int]
"""What move number n finds: n, the bytes of the centre and of the optimiser's states, and the optimiser's count."""


@dataclass(frozen=True)
class Job:
    """What every process of a run is told once."""

    make: Make
    noise: Noise
    optimiser: Callable[[Store], Any] | None
    seed: tuple[int, ...]
    members: int


class Held:
    """A centre and its optimiser: what moves, and has the same bits in every process.

    Raises `TypeError` for what `make` returns if it is no centre and function, and for other optimisers than `es.Adam`
    and `es.Momentum`.
    """

    def __init__(self, job: Job) -> None:
        self.centre: Store
        self.evaluate: Evaluate
        self.centre, self.evaluate = made(job.make, Store)
        self.optimiser: Any | None = job.optimiser(self.centre) if callable(job.optimiser) else None
        if job.optimiser is not None and type(self.optimiser) not in (es.Adam, es.Momentum):
            raise TypeError(
                f"expected es.Adam, es.Momentum or None as optimiser, got {job.optimiser!r}; "
                "fix: pass the class, or functools.partial(es.Adam, beta1=0.8)"
            )
        self._stores: list[Store] = [self.centre]
        if self.optimiser is not None:
            self._stores += self.optimiser.states.values()

    @property
    def count(self) -> int:
        """The optimiser's number of steps."""
        return 0 if self.optimiser is None else self.optimiser.count

    def digest(self) -> int:
        """XXH3 of all bytes, and of the count."""
        state = xxhash.xxh3_64(self.count.to_bytes(8, "little"))
        for store in self._stores:
            state.update(store.buffer.data)
        return state.intdigest()

    def state(self, number: int) -> State:
        """What the move of this number finds: a copy."""
        return number, [store.buffer.copy() for store in self._stores], self.count

    def restore(self, state: State) -> None:
        """Become what another process was."""
        for store, there in zip(self._stores, state[1], strict=True):
            store.buffer[:] = there
        if self.optimiser is not None:
            self.optimiser.count = state[2]


class Replica(Held):
    """A centre in a worker, at the generation `number`, from 0 on."""

    number: int

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._job, self.number = job, 0
        self._trial = self.centre.copy()
        self._seeds = lru_cache(maxsize=1)(self._made_seeds)

    def restore(self, state: State) -> None:
        """Become what another process was."""
        super().restore(state)
        self.number = state[0]

    def follow(self, moves: Sequence[Told]) -> None:
        """Make the moves that are to come next."""
        assert [number for number, _, _ in moves] == [*range(self.number, self.number + len(moves))]
        entries = [
            (self._seeds(number), np.frombuffer(weights), *(() if self.optimiser is None else (rate,)))
            for number, weights, rate in moves
        ]
        if entries:  # to make none would look at all of the centre
            es.replay(self.centre, self._job.noise, entries, optimiser=self.optimiser)
        self.number += len(moves)

    def fitness(self, members: Sequence[int]) -> Array:
        """The fitness of members of the generation, float64. What evaluating one raises has a note that names it."""
        keys, out = self._seeds(self.number), np.empty(len(members))
        for place, i in enumerate(members):
            es.sample(self._trial, self.centre, self._job.noise, keys[i // 2], sign=1 - 2 * (i % 2))
            try:
                out[place] = one_number(self.evaluate(self._trial, self.number), i)
            except Exception as error:
                error.add_note(f"it was raised in a worker, as it evaluated member {i} of generation {self.number}")
                raise
        return out

    def _made_seeds(self, number: int) -> Array:
        return seeds((*self._job.seed, number), self._job.members // 2)


def told(move: es.Move) -> Told:
    """A move as it travels."""
    return move.number, move.weights.tobytes(), move.rate


def made(make: Any, kind: type, *arguments: Any) -> tuple[Any, Any]:
    """The store or population, and the function, that a function returns, or the one of a name.

    Raises `ValueError` for what is no name, `TypeError` for what is no function, or returns something else.
    """
    if isinstance(make, str):
        module, _, name = make.partition(":")
        if not module or not name:
            raise ValueError(f"expected make as 'module:function', got {make!r}; fix: 'my_job:make', or the function")
        make = getattr(importlib.import_module(module), name)
    if not callable(make):
        raise TypeError(f"expected a function as make, or its name, got {make!r}; fix: pass one, or 'my_job:make'")
    pair: Any = make(*arguments)
    parts: tuple[Any, ...] = pair if isinstance(pair, tuple) else (pair,)  # pyright: ignore[reportUnknownVariableType]
    if len(parts) != 2 or not isinstance(parts[0], kind) or not callable(parts[1]):
        got = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"expected a {kind.__name__} and a function from make, got {got}; fix: return both")
    return parts[0], parts[1]


def end(ray: Any, actor: Any) -> None:
    """End an actor of Ray. One whose cluster this process has left has ended with that."""
    if ray.is_initialized():
        with contextlib.suppress(ray.exceptions.ActorHandleNotFoundError):
            ray.kill(actor)


def arriving(method: Method) -> Method:
    """A method of an actor. What it raises and does not pickle is raised as a `RuntimeError` of the same words."""

    @wraps(method)
    def called(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            if pickled(error) is None:
                words = f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())
                raise RuntimeError("; ".join(words)) from error
            raise

    return cast(Method, called)


def cause_of(error: Any) -> Exception:
    """What was raised in an actor of Ray; to be raised from a `WorkerError`, the traceback there."""
    return error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error))
