"""Stores of torch on a card: kernels in Triton, for each dtype a launch over whole tiles and one over what is left.

The bits are those of the host. What a move may not do, such as to reach the bound, is found on the way: a program that
finds it writes nothing, and what the others have written is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.groups import IN_NOISE, IN_WEIGHTS, NO_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.on_torch.launches import Launch
from flatstore.es.on_torch.logged import CardLog, LoggedMoves
from flatstore.es.on_torch.looking import largest, off_the_grid, parts, refuse_not_finite, to_grid
from flatstore.es.on_torch.optimising import move_by_rule
from flatstore.es.on_torch.tables import noisy, tables_of, trained
from flatstore.es.perturbing import check_way_back, key_of
from flatstore.es.sampling import refuse_other_layouts
from flatstore.es.undo_log import hand_over, refuse_used
from flatstore.es.weights import fixed_point, words
from flatstore.extras import require
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.layout import Array
from flatstore.memory import reading, using
from flatstore.noise import Noise, as_keys
from flatstore.store import OnTorch, TorchPopulation, TorchStore, after_verbs, write_in_order


class CardMoves:
    """The moves of a `TorchStore` on a card."""

    def zeros(self, store: Any, size: int | None = None) -> Any:
        """A store of zeros with the layout and the indices of another, beside it; or a population of so many."""
        made = (TorchStore if size is None else TorchPopulation).zeros(store.layout, store.device, size)
        made.parts = store.parts
        return made

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        if not isinstance(store, TorchStore):
            raise TypeError(
                f"expected a TorchStore to move, got {type(store).__name__}; fix: Store.from_tree(tree, device=…)"
            )
        if not isinstance(noise, Noise):
            raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: pass one, such as fs.Normal(0.02)")
        noise.check_grid(store.whole)
        refuse_other_dtypes(noisy(store, noise), "add noise to", NO_NOISE)

    def check_values(self, store: Any, noise: Any) -> None:
        """Raise unless the parameters of a centre are finite and, if there is a noise, on its grid."""
        with using(reads=[store.memory]), after_verbs(store.device):
            refuse_not_finite(store, trained(store), "numbers in a centre")
        if noise is not None:
            nothing = {"sign": 1, "exact": True, "perturbed": 0, "undo": None, "keep": False}
            self.update(store, noise, [], [], nothing)

    def snap(self, store: Any, noise: Any) -> None:
        """Round the parameters to the grid."""
        self.check(store, noise)
        on_grid = [leaf for leaf in noisy(store, noise) if leaf.dtype.itemsize > 2]

        def move() -> None:
            refuse_not_finite(store, on_grid)
            for leaf in on_grid:
                most = largest(store, leaf)
                if most >= noise.bound - noise.grid(leaf.dtype) / 2:
                    raise past_the_bound(noise, leaf.path, most, "pass a larger bound= of the noise")
            for leaf in on_grid:
                for part in parts(store, leaf):
                    part.copy_(to_grid(part, noise, leaf))

        store.write(_without_gradients(move))

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> Any:
        """Add the noise of a seed, `sign` times. Returns the log that takes it back, if there are 16-bit leaves."""
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
        self.check(store, noise)
        key = key_of(seed)
        tables = tables_of(store, noise)
        logged = [table for table in tables if exact and not table.is_gridded]
        check_way_back(store, noise, key, sign, bool(logged), undo)
        made = CardLog(store, noise, key, int(sign) + (undo.at if undo else 0))
        moves = LoggedMoves(store, noise, key, logged)
        plain = Launch(store, noise, [table for table in tables if table not in logged], exact)
        new_log: CardLog | None = None

        def move() -> None:
            nonlocal new_log
            refuse_used(undo)
            if undo:
                moves.refuse_others(undo)
            if not exact:
                refuse_not_finite(store, noisy(store, noise))
            with ExitStack() as back:
                plain.perturb_all(words(key), sign, back)
                if plain.failed:
                    raise off_the_grid(store, noise, plain.failed, "pass a larger bound= of the noise")
                moves.go(undo, made)
                back.pop_all()
            new_log = made if logged and made.at else None

        try:
            store.write(_without_gradients(move))
        except BaseException as interrupt:
            if new_log:  # the store has moved, and what came meanwhile is raised now
                interrupt.add_note(f"the store is perturbed; {hand_over(interrupt, new_log)} takes it back")
            raise
        return new_log

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> None:
        """Add the weighted noise of many seeds."""
        self.check(store, noise)
        sign, exact, perturbed, undo = how["sign"], how["exact"], how["perturbed"], how["undo"]
        keys, fixed = fixed_point(noise, seeds, weights)
        check_sign(sign, IN_WEIGHTS)
        tables = tables_of(store, noise)
        logged = [table for table in tables if exact and not table.is_gridded]
        if how["keep"] or (sign < 0 and logged):
            raise ValueError(
                "expected keep=False and, with 16-bit leaves, sign=1 on a card, whose updates have no logs, got "
                f"keep={how['keep']} and sign={sign}; fix: es.sample into a second store, or use a store on the host"
            )
        if (sign < 0 or perturbed) and not exact:
            raise ValueError(
                "expected float32 or float64 leaves on a grid to take back to the bit, got exact=False; fix: leave "
                "that out, or es.sample into a second store instead"
            )
        if perturbed and not len(keys):
            raise ValueError(
                "expected the seed that the store is perturbed by, got none; fix: pass its seed first, or perturbed=0"
            )
        if perturbed:
            check_way_back(store, noise, keys[:1], -perturbed, bool(logged), undo)
        first = words(keys[:1])
        moves = LoggedMoves(store, noise, keys[:1], logged)
        gridded = Launch(store, noise, [table for table in tables if table not in logged], exact)
        gridless = Launch(store, noise, logged if len(keys) else [], exact)  # by none -0.0 would become 0.0
        fix = "pass smaller weights, or a larger bound= of the noise"
        unchecked = [leaf for leaf in noisy(store, noise) if not exact or leaf.dtype.itemsize == 2]

        def move() -> None:
            refuse_used(undo)
            if undo:
                moves.refuse_others(undo)
            refuse_not_finite(store, unchecked)
            # These tables cannot be taken back, so they come last, when nothing can fail any more.
            last = [*(moves.taking_back(undo) if undo else ()), *gridless.updating(words(keys), fixed, sign)]
            with ExitStack() as back:
                if perturbed:
                    gridded.perturb_all(first, -perturbed, back)
                if not gridded.failed:
                    gridded.update_all(words(keys), fixed, sign, back)
                if not gridded.failed:
                    back.pop_all()
            if gridded.failed:
                raise off_the_grid(store, noise, gridded.failed, fix)
            for launch in last:
                launch()
            if undo:
                undo.close()

        store.write(_without_gradients(move))

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Write the store plus noise into a store, or into the members of a population."""
        self.check(store, noise)
        if not isinstance(out, OnTorch):
            raise TypeError(f"expected to sample into a device, got {type(out).__name__}; fix: zeros of the same kind")
        refuse_other_layouts("out", out, store)
        _refuse_elsewhere(out, store)
        check_sign(sign, IN_NOISE)
        members = 1 if out.size is None else out.size
        keys = as_keys(seeds if np.ndim(seeds) else [seeds])
        expected = members // 2 if antithetic else members
        if len(keys) != expected or (antithetic and members % 2):
            raise ValueError(
                f"expected {expected} seeds for {members} members{' in pairs' if antithetic else ''}, got {len(keys)}; "
                f"fix: fs.seeds(seed, {expected})"
            )
        centre = store.copy() if _shares(out, store) else store
        if antithetic:
            keys = np.repeat(keys, 2)
        signs = np.where(np.arange(members) % 2 * antithetic, -sign, sign)
        leaves = trained(out)
        launch = Launch(out, noise, tables_of(out, noise), False)

        def fill() -> None:
            refuse_not_finite(centre, leaves)
            with_noise, launches = noisy(centre, noise), launch.sampling(centre, words(keys), signs)
            for leaf in leaves:
                if leaf not in with_noise:
                    out.homes[leaf.path].copy_(centre.homes[leaf.path])
            for launched in launches:
                launched()

        with using(reads=[] if centre is not store or out is store else [store.memory]):
            out.write(_without_gradients(fill))

    def optimise(
        self, rule: Any, stores: Sequence[Any], settings: Sequence[float], keys: Array, then: Callable[[], object]
    ) -> None:
        """Move a store along a gradient by a rule, and call `then`."""
        store, gradient, *states = stores
        if not isinstance(gradient, TorchStore):
            raise TypeError(
                f"expected a gradient on the card, got a {type(gradient).__name__}; "
                "fix: Store.from_tree(tree, device=store.device)"
            )
        _refuse_elsewhere(gradient, store)

        def move() -> None:
            leaves, fix = trained(store), "correct the computation that makes it"
            refuse_not_finite(gradient, leaves, "numbers in a gradient", fix)
            move_by_rule(rule, stores, settings, keys)
            then()

        with reading(gradient.memory) as own:
            write_in_order(store.device, [x.memory for x in (store, *states)], _without_gradients(move), own)


OnTorch.moves_on_card = CardMoves()


def _without_gradients(work: Callable[[], None]) -> Callable[[], None]:
    def do() -> None:
        with require("torch", "torch").no_grad():
            work()

    return do


def _refuse_elsewhere(other: OnTorch, store: OnTorch) -> None:
    """Raise `ValueError` unless both are on one device: kernels are given addresses."""
    if other.device != store.device:
        raise ValueError(
            f"expected a store on {store.device}, got one on {other.device}; fix: make both on the same device"
        )


def _shares(out: OnTorch, store: OnTorch) -> bool:
    """Whether a store lies in what is written."""
    starts = {x.untyped_storage().data_ptr() for x in store.homes.values() if x.numel()}
    return any(x.untyped_storage().data_ptr() in starts for x in out.homes.values() if x.numel())
