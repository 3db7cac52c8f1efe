"""Contexts in which a store is perturbed. However they are left, the store is given back to the bit."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from flatstore.es.groups import IN_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.perturbing import as_one, perturb
from flatstore.es.undo_log import UndoLog, hand_over
from flatstore.es.updating import update
from flatstore.memory import LentError, patience, waiting
from flatstore.noise import Noise, Seed
from flatstore.store import AnyStore
from flatstore.threads import Leaving, add_notes, moment, uninterrupted
from flatstore.trees import StructureError


class Perturbation:
    """A context in which the noise of a seed may be added to a store; at its end, whatever is there is taken back."""

    def __init__(self, store: AnyStore, noise: Noise, seed: Seed) -> None:
        self.store, self.noise, self.seed = store, noise, seed
        self._since = moment()
        self._log: UndoLog | None = None
        self.at = 0
        """How many times the noise is added now: 1, 0 or -1. It is always true, also after an interrupt."""

    def go(self, at: int) -> None:
        """Go to one side of the centre, 1 or -1, or back to it, 0, in one pass. Raises the errors of `perturb`."""

        def move() -> None:
            self._log = perturb(self.store, self.noise, self.seed, sign=at - self.at, undo=self._log)
            self.at = at

        if at != self.at:
            as_one(self.store, move)

    def update(self, weights: Any, then: Callable[[], object]) -> None:
        """Take the noise back, and add it weighted, in one pass; call `then` when the store has moved."""

        def move() -> None:
            keys = np.array([self.seed], np.uint64)
            update(self.store, self.noise, keys, weights, perturbed=self.at, undo=self._log)
            self.at, self._log = 0, None
            then()

        as_one(self.store, move)

    def __enter__(self) -> Any:
        return self

    __exit__ = Leaving(lambda context: context.at == 0)

    def leave(self, error: BaseException | None) -> None:
        """Go back to the centre. If the store is lent, an exception is given a note that says how to go back.

        If views in the frames of the exception keep the store lent, they are dropped. If there is no exception,
        `LentError` is raised.
        """
        try:
            return self._back()
        except LentError as lent:
            if error is None:
                lent.add_note(f"the store is still perturbed; fix: end the lend, then {self._way_back(lent)}")
                raise
        except StructureError as moved:
            if error is None or self.at:
                raise
            return add_notes(error, self._since, str(moved))
        caught: BaseException | None = error
        cleared: set[int] = set()
        while caught is not None and id(caught) not in cleared:  # a chain may be a circle
            cleared.add(id(caught))
            traceback.clear_frames(caught.__traceback__)
            caught = caught.__context__
        try:
            with waiting(max(1.0, patience())):  # for a computation that was begun in the block, and still reads
                self._back()
        except LentError:
            note = f"the store is lent and still perturbed; fix: end the lend, then {self._way_back(error)}"
            add_notes(error, self._since, note)

    def _way_back(self, error: Any) -> str:
        """The call that goes back. The undo log, if there is one, is handed over with the error."""
        undo = f", undo={hand_over(error, self._log)}" if self._log else ""
        return f"es.perturb(store, noise, {self.seed}, sign={-self.at}{undo})"

    def _back(self) -> None:
        """Go back to the centre, at the second try if memory was short for a moment."""
        try:
            try:
                self.go(0)
            except MemoryError:
                self.go(0)
        except (MemoryError, ValueError) as stuck:
            if self.at:
                stuck.add_note(f"the store is still perturbed; fix: mend that, then {self._way_back(stuck)}")
            raise


class perturbed(Perturbation):  # a name as of the function that it is used as
    """A context in which the store is perturbed; at its end, also after an error, the store is given back to the bit.

    Accepts the same arguments as `perturb` and raises the same errors. Contexts may be nested. If the store is still
    lent at the end, so that it cannot be written, the exception has a note that says how to take the noise back; an
    exception of the block is never replaced.

    Nothing that a signal handler raises can prevent it: what comes while the noise is added is raised when it has been
    taken back, and what comes as the block ends is raised when the store is as it was.

    >>> import flatstore as fs
    >>> store, noise = fs.Store.from_tree({"w": np.zeros(4, "f4")}), fs.Rademacher(0.5)
    >>> with perturbed(store, noise, 7) as moved:
    ...     sorted(set(abs(moved["w"]).tolist()))
    [0.5]
    >>> store["w"].tolist()
    [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, store: AnyStore, noise: Noise, seed: Seed, *, sign: int = 1) -> None:
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
        super().__init__(store, noise, seed)
        self._sign = sign

    def __enter__(self) -> Any:
        """Add the noise, and return the store."""
        try:
            self.go(self._sign)
            return self.store
        except BaseException:
            uninterrupted(lambda: self.leave(None))
            raise
