"""What the verbs of `es` do with a store on a device: jitted functions to which its leaves are donated.

The bits are those of the host, for the functions are `es.virtual`, `es.snapped` and `es.updated`. What has to be known
of the parameters first, whether they are on the grid and below the bound, is computed on the device too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.groups import IN_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.on_device.donating import (
    members_at_once,
    perturbed_size,
    perturbing,
    sampling,
    snapping,
    updated_size,
    updating,
)
from flatstore.es.on_device.logged_leaves import LoggedLeaves
from flatstore.es.on_device.looking import (
    LARGER_BOUND,
    check_dtypes,
    largest_on_grid,
    largest_to_snap,
    refuse_not_finite,
    refuse_past_the_bound,
    remember,
)
from flatstore.es.on_device.optimising import numbers_for, optimising
from flatstore.es.on_device.steps_back import steps_back
from flatstore.es.on_device.undo_log import Seeded
from flatstore.es.perturbing import check_way_back, key_of
from flatstore.es.sampling import refuse_other_layouts
from flatstore.es.undo_log import UndoLog, hand_over, refuse_used
from flatstore.es.weights import fixed_point, weighted_seeds, words
from flatstore.layout import Array
from flatstore.memory import reading, using, write
from flatstore.noise import Noise, as_keys
from flatstore.store import JaxPopulation, JaxStore, OnJax, replace_together


class JaxMoves:
    """The moves of a `JaxStore`."""

    def zeros(self, store: Any, size: int | None = None) -> Any:
        """A store of zeros with the layout of another, beside it; or a population of so many."""
        return (JaxStore if size is None else JaxPopulation).zeros(store.layout, store.device, size)

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        if not isinstance(store, JaxStore):
            raise TypeError(
                f"expected a JaxStore to move, got {type(store).__name__}; fix: Store.from_tree(tree, device=…)"
            )
        if not isinstance(noise, Noise):
            raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: pass one, such as fs.Normal(0.02)")
        check_dtypes(store.layout, noise)

    def check_values(self, store: Any, noise: Any) -> None:
        """Raise unless the parameters of a centre are finite and, if there is a noise, on its grid."""
        with using(reads=[store.memory]):
            refuse_not_finite(store, name="numbers in a centre")
            if noise is not None:
                largest_on_grid(store, noise)

    def snap(self, store: Any, noise: Any) -> None:
        """Round the parameters to the grid."""
        self.check(store, noise)

        def move() -> None:
            for leaf, largest in largest_to_snap(store, noise):
                if largest >= noise.bound - noise.grid(leaf.dtype) / 2:
                    raise past_the_bound(noise, leaf.path, largest, LARGER_BOUND)
            store.replace(snapping(store.layout, noise))

        store.write(move)

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> Any:
        """Add the noise of a seed, `sign` times."""
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
        self.check(store, noise)
        key, sign = key_of(seed), int(sign)
        logged = LoggedLeaves(store, noise)
        check_way_back(store, noise, key, sign, bool(exact and logged), undo)
        at = undo.at if undo else 0
        log = UndoLog(store, noise, key, at + sign, False)
        arguments = words(key)[0], np.float32(sign)
        near = partial(perturbed_size, store.layout, noise)

        def change(times: int) -> Seeded:
            return Seeded(arguments[0], np.float32(times))

        def move() -> None:
            if not exact:
                refuse_not_finite(store, noise)
                return store.replace(perturbing(store.layout, noise, False), *arguments)
            refuse_used(undo)
            found = largest_on_grid(store, noise)
            most = refuse_past_the_bound(
                store, noise, found, abs(sign), lambda paths: near(paths)(store.homes, *arguments)
            )
            on_grid = perturbing(store.layout, noise, True)
            if undo:
                logged.refuse_changed(undo)
            with steps_back() as back:
                if undo:
                    logged.take_back(change(at), undo)
                    back.callback(logged.add_again, change(at))
                store.replace(on_grid, *arguments)
                back.callback(store.replace, on_grid, arguments[0], np.float32(-sign))
                if log.at:
                    logged.add(change(log.at), log)
            remember(store, noise, most)
            if undo:
                undo.close()

        try:
            store.write(move)
        except BaseException as interrupt:
            if log.chunks:  # the store has moved, and what came meanwhile is raised now
                interrupt.add_note(f"the store is perturbed; {hand_over(interrupt, log)} takes it back")
            raise
        return log if log.chunks else None

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> Any:
        """Add the weighted noise of many seeds."""
        sign, exact, perturbed, undo, keep = (how[x] for x in ("sign", "exact", "perturbed", "undo", "keep"))
        weighted, key = weighted_seeds(noise, seeds, weights), fixed_point(noise, seeds, weights)[1].key
        layout, fix = store.layout, "pass smaller weights, or a larger bound= of the noise"
        logged = LoggedLeaves(store, noise)
        log = UndoLog(store, noise, key, 1, True)
        times = float(np.abs(weighted.whole.astype(np.float64)).sum()) * 2.0 ** -float(weighted.point)
        near = partial(updated_size, layout, noise, sign)

        def perturb(times: int) -> None:
            arguments = weighted.seeds[0], np.float32(times)
            found, look = largest_on_grid(store, noise), partial(perturbed_size, layout, noise)
            most = refuse_past_the_bound(store, noise, found, 1, lambda paths: look(paths)(store.homes, *arguments))
            store.replace(perturbing(layout, noise, True), *arguments)
            remember(store, noise, most)

        def refuse_at_the_centre() -> dict[str, float]:
            found = largest_on_grid(store, noise) if exact else {}
            return refuse_past_the_bound(
                store, noise, found, times, lambda paths: near(paths)(store.homes, weighted), fix
            )

        def move() -> None:
            refuse_used(undo)
            refuse_not_finite(store, noise)
            if undo:
                logged.refuse_changed(undo)
            on_grid = keep or sign < 0
            with steps_back() as back:
                if perturbed:
                    perturb(-perturbed)
                    back.callback(perturb, perturbed)
                most = refuse_at_the_centre()
                if undo:
                    change = Seeded(weighted.seeds[0], np.float32(perturbed)) if perturbed else weighted
                    logged.take_back(change, undo)
                    back.callback(logged.add_again, change)
                if len(weighted.seeds):  # else -0.0 would become 0.0
                    store.replace(updating(layout, noise, sign, exact, on_grid), weighted)
                if keep:
                    back.callback(store.replace, updating(layout, noise, -sign, exact, on_grid), weighted)
                    logged.add(weighted, log)
            remember(store, noise, most)
            if undo:
                undo.close()

        store.write(move)
        return log if log.chunks else None

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Write the store plus noise into a store, or into the members of a population."""
        self.check(store, noise)
        if not isinstance(out, (JaxStore, JaxPopulation)):
            raise TypeError(f"expected to sample into a device, got {type(out).__name__}; fix: zeros of the same kind")
        refuse_other_layouts("out", out, store)
        check_sign(sign, IN_NOISE)
        members = 1 if out.size is None else out.size
        keys = words(as_keys(seeds if np.ndim(seeds) else [seeds]))
        expected = members // 2 if antithetic else members
        if len(keys) != expected or (antithetic and members % 2):
            raise ValueError(
                f"expected {expected} seeds for {members} members{' in pairs' if antithetic else ''}, got {len(keys)}; "
                f"fix: fs.seeds(seed, {expected})"
            )
        signs = np.full(members, sign, np.float32)
        if antithetic:
            keys, signs[1::2] = keys.repeat(2, axis=0), -sign
        centre = store.copy() if out is store else store
        fill_members, step = sampling(out.layout, noise, out.size), members_at_once(out.layout, members)

        def fill() -> None:
            refuse_not_finite(centre)
            for first in range(0, members, step):
                part = slice(first, first + step)
                out.replace(fill_members, centre.homes, keys[part], signs[part], np.int32(first))

        with using(reads=[] if out is store else [store.memory]):
            out.write(fill)

    def optimise(
        self, rule: Any, stores: Sequence[Any], settings: Sequence[float], keys: Array, then: Callable[[], object]
    ) -> None:
        """Move a store along a gradient by a rule, and call `then`."""
        store, gradient, *states = stores
        if not isinstance(gradient, JaxStore):
            raise TypeError(
                f"expected a gradient on the device, got a {type(gradient).__name__}; "
                "fix: Store.from_tree(tree, device=store.device)"
            )
        moved = [store, *states]
        function, numbers = optimising(store.layout, rule, len(states)), numbers_for(store.layout, settings)

        def move() -> None:
            refuse_not_finite(gradient, None, "numbers in a gradient", "correct the computation that makes it")
            replace_together(moved, function, gradient.homes, numbers, words(keys))
            then()

        with reading(gradient.memory) as own:
            write([x.memory for x in moved], move, own)
        for x in moved:
            x.verify()


OnJax.moves = JaxMoves()
