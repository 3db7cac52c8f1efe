"""Stores of torch on a card: kernels in Triton, one launch for all leaves of a dtype.

The bits are those of the host. What a move may not do, such as to reach the bound, is found on the way: a program that
finds it writes nothing, and what the others have written is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from flatstore.es.grid import past_the_bound
from flatstore.es.groups import IN_NOISE, IN_WEIGHTS, NO_NOISE, SIGNS_ACROSS, check_sign
from flatstore.es.perturbing import key_of
from flatstore.es.sampling import refuse_other_layouts
from flatstore.es.weights import fixed_point, words
from flatstore.extras import require
from flatstore.kernels.cpu import refuse_other_dtypes
from flatstore.layout import Leaf
from flatstore.memory import using
from flatstore.noise import Noise, as_keys
from flatstore.store import OnTorch, TorchStore

TILE = 1024
"""Parameters that a program moves: whole blocks of random words of every kind."""

AT_ONCE = 1 << 20
"""Parameters of a leaf that are looked at together."""


MEMBERS = 65535
"""Members that a launch goes over: the second number of a program is no larger."""


class Table(NamedTuple):
    """The leaves of one dtype that a kernel goes over."""

    dtype: str
    leaves: Sequence[Leaf]
    rows: Any
    """As `flatstore/kernels/triton/moves.py` describes, int64."""
    programs: Any
    """The row of each program, int32."""


class CardMoves:
    """The moves of a `TorchStore` on a card."""

    def check(self, store: Any, noise: Any) -> None:
        """Raise unless a noise suits a store."""
        if not isinstance(store, TorchStore):
            raise TypeError(
                f"expected a TorchStore to move, got {type(store).__name__}; fix: Store.from_tree(tree, device=…)"
            )
        if not isinstance(noise, Noise):
            raise TypeError(f"expected a noise, got {type(noise).__name__}; fix: pass one, such as fs.Normal(0.02)")
        noise.check_grid(store.layout)
        refuse_other_dtypes(_noisy(store, noise), "add noise to", NO_NOISE)

    def snap(self, store: Any, noise: Any) -> None:
        """Round the parameters to the grid."""
        self.check(store, noise)
        on_grid = [leaf for leaf in _noisy(store, noise) if leaf.dtype.itemsize > 2]

        def move() -> None:
            _refuse_not_finite(store, _noisy(store, noise))
            for leaf in on_grid:
                largest = _largest(store, leaf)
                if largest >= noise.bound - noise.grid(leaf.dtype) / 2:
                    raise past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
            for leaf in on_grid:
                for part in _parts(store, leaf):
                    part.copy_(_to_grid(part, noise, leaf))

        store.write(_without_gradients(move))

    def perturb(self, store: Any, noise: Any, seed: Any, sign: int, exact: bool, undo: Any) -> None:
        """Add the noise of a seed, `sign` times."""
        check_sign(sign, IN_NOISE, SIGNS_ACROSS)
        self.check(store, noise)
        _refuse_logs(store, noise, exact, undo is not None)
        key = words(key_of(seed))

        def move() -> None:
            if not exact:
                _refuse_not_finite(store, _noisy(store, noise))
            launch = _Launch(store, noise, _tables(store, noise), exact)
            launch.all(lambda table, times, how, done: launch.perturb(table, key, sign * times, how, done))
            if launch.failed:
                raise _because(store, noise, launch.failed, "pass a larger bound= of the noise")

        store.write(_without_gradients(move))

    def update(self, store: Any, noise: Any, seeds: Any, weights: Any, how: Mapping[str, Any]) -> None:
        """Add the weighted noise of many seeds."""
        self.check(store, noise)
        sign, exact, perturbed = how["sign"], how["exact"], how["perturbed"]
        keys, fixed = fixed_point(noise, seeds, weights)
        check_sign(sign, IN_WEIGHTS)
        if how["undo"] is not None or how["keep"]:
            _refuse_logs(store, noise, True, True)
        if sign < 0 or perturbed:
            if not exact:
                raise ValueError(
                    "expected float32 or float64 leaves on a grid to take back to the bit, got exact=False; fix: leave "
                    "that out, or es.sample into a second store instead"
                )
            _refuse_logs(store, noise, True, False)
        if perturbed and not len(keys):
            raise ValueError(
                "expected the seed that the store is perturbed by, got none; fix: pass its seed first, or perturbed=0"
            )

        def move() -> None:
            _refuse_not_finite(store, _noisy(store, noise))
            launch = _Launch(store, noise, _tables(store, noise), exact)
            if perturbed:
                launch.all(
                    lambda table, times, how, done: launch.perturb(
                        table, words(keys[:1]), -perturbed * times, how, done
                    )
                )
            if not launch.failed:
                launch.all(
                    lambda table, times, how, done: launch.update(table, words(keys), fixed, sign * times, how, done)
                )
                if launch.failed and perturbed:
                    again = _Launch(store, noise, _tables(store, noise), False)
                    again.all(
                        lambda table, times, how, done: again.perturb(
                            table, words(keys[:1]), perturbed * times, how, done
                        )
                    )
            if launch.failed:
                raise _because(store, noise, launch.failed, "pass smaller weights, or a larger bound= of the noise")

        store.write(_without_gradients(move))

    def sample(self, out: Any, store: Any, noise: Any, seeds: Any, sign: int, antithetic: bool) -> None:
        """Write the store plus noise into a store, or into the members of a population."""
        self.check(store, noise)
        if not isinstance(out, OnTorch):
            raise TypeError(f"expected to sample into a device, got {type(out).__name__}; fix: zeros of the same kind")
        refuse_other_layouts("out", out, store)
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

        def fill() -> None:
            _refuse_not_finite(centre, [leaf for leaf in out.layout.homes if leaf.trainable and leaf.size])
            noisy = _noisy(centre, noise)
            for leaf in out.layout.homes:
                if leaf.trainable and leaf not in noisy:
                    out.homes[leaf.path].copy_(centre.homes[leaf.path])
            launch = _Launch(out, noise, _tables(out, noise), False)
            for table in launch.tables:
                launch.sample(table, centre, words(keys), signs)

        with using(reads=[] if centre is not store or out is store else [store.memory]):
            out.write(_without_gradients(fill))


OnTorch.moves_on_card = CardMoves()


@cache
def _kernels() -> Any:
    return require("flatstore.kernels.triton.moves", "triton")


class _Launch:
    """Launches of kernels over the tables of a store. What fails is taken back, in all tables."""

    def __init__(self, store: OnTorch, noise: Noise, tables: Sequence[Table], exact: bool) -> None:
        self.store, self.noise, self.tables, self.exact = store, noise, tables, exact
        self.failed: list[Table] = []
        """The tables in which something breaks the grid."""
        self._torch = require("torch", "torch")

    def all(self, kernel: Callable[[Table, int, int, Any], None]) -> None:
        """Launch `kernel(table, times, how, done)` for each table; if one fails, take all back."""
        kernels = _kernels()
        flags: list[tuple[Table, Any]] = []
        unchecked: list[Table] = []
        for table in self.tables:
            if not (self.exact and table.leaves[0].dtype.itemsize > 2):
                unchecked.append(table)
                continue
            done = self._torch.zeros(len(table.programs), dtype=self._torch.uint8, device=self.store.device)
            kernel(table, 1, kernels.CHECKED, done)
            flags.append((table, done))
        self.failed = [table for table, done in flags if not bool(done.all())]
        if self.failed:
            for table, done in flags:
                kernel(table, -1, kernels.WHERE_DONE, done)
            return
        for table in unchecked:  # they have no way back, so they come last
            kernel(table, 1, kernels.AT_ALL, table.programs)

    def _on_device(self, array: Any) -> Any:
        return self._torch.from_numpy(np.array(array)).to(self.store.device)

    def _settings(self, unit: float, table: Table) -> Any:
        dtype = table.leaves[0].dtype
        size = self.noise.grid(dtype) if dtype.itemsize > 2 else 1.0
        return self._on_device(np.array([unit, size, 1 / size, self.noise.bound]))

    def _common(self, table: Table) -> dict[str, Any]:
        kinds = require("flatstore.kernels.triton.storage", "triton").KINDS
        constants = {"kind": self.noise.kind, "width": self.noise.width, "dtype": kinds[table.dtype], "tile": TILE}
        return constants | {"enable_fp_fusion": False}

    def perturb(self, table: Table, key: Any, times: int, how: int, done: Any) -> None:
        """Add the noise of a seed so many times."""
        _kernels().perturb[(len(table.programs),)](
            table.rows,
            table.programs,
            done,
            self._on_device(key.astype(np.int64)),
            self._settings(times * self.noise.step, table),
            how=how,
            **self._common(table),
        )

    def update(self, table: Table, keys: Any, fixed: Any, times: int, how: int, done: Any) -> None:
        """Add the weighted noise of some seeds."""
        dtype = table.leaves[0].dtype
        gridded = self.exact and dtype.itemsize > 2
        finer = round(math.log2(self.noise.step / self.noise.grid(dtype))) if gridded else 0
        drop = max(0, fixed.point - finer) if gridded else 0
        _kernels().update[(len(table.programs),)](
            table.rows,
            table.programs,
            done,
            self._on_device(keys.astype(np.int64).reshape(-1, 2)),
            self._on_device(fixed.whole),
            self._on_device(np.array([len(fixed.whole), drop])),
            self._on_device(words(fixed.key).astype(np.int64)),
            self._settings(times * self.noise.step * 2.0 ** (drop - fixed.point), table),
            how=how,
            gridded=gridded,
            **self._common(table),
        )

    def sample(self, table: Table, centre: OnTorch, keys: Any, signs: Any) -> None:
        """Write the centre plus noise into each member."""
        centres, seeds = self._on_device(_addresses(centre, table)), self._on_device(keys.astype(np.int64))
        signed, settings = self._on_device(signs.astype(np.float64)), self._settings(self.noise.step, table)
        for since in range(0, len(signs), MEMBERS):
            _kernels().sample[(len(table.programs), min(MEMBERS, len(signs) - since))](
                table.rows, table.programs, centres, seeds, signed, settings, since, **self._common(table)
            )


def _addresses(store: OnTorch, table: Table) -> Any:
    """The address in a store of the first parameter of each row."""
    return np.array([store.homes[leaf.path].data_ptr() for leaf in table.leaves], np.int64)


def _tables(store: OnTorch, noise: Noise) -> Sequence[Table]:
    """A table for each dtype of the leaves that noise is added to; planned once for a store and a noise."""
    if noise not in store.cache:
        store.cache[noise] = [
            _table(store, noise, [leaf for leaf in _noisy(store, noise) if leaf.dtype.name == name], name)
            for name in dict.fromkeys(leaf.dtype.name for leaf in _noisy(store, noise))
        ]
    return store.cache[noise]


def _table(store: OnTorch, noise: Noise, leaves: Sequence[Leaf], dtype: str) -> Table:
    torch = require("torch", "torch")
    rows: list[list[int]] = []
    counts: list[int] = []
    for leaf in leaves:
        begin, end = leaf.index, leaf.index + leaf.size
        address, factor = store.homes[leaf.path].data_ptr(), noise.factor(noise.scale_of(leaf.path))
        rows.append([begin, end, sum(counts), *factor, address, leaf.nbytes])
        counts.append(-(-end // TILE) - begin // TILE)
    programs = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
    on_device = [torch.from_numpy(x).to(store.device) for x in (np.array(rows, np.int64), programs)]
    return Table(dtype, leaves, *on_device)


def _noisy(store: OnTorch, noise: Noise) -> list[Leaf]:
    return [leaf for leaf in store.layout.homes if leaf.trainable and leaf.size and noise.scale_of(leaf.path)]


def _without_gradients(work: Callable[[], None]) -> Callable[[], None]:
    def do() -> None:
        with require("torch", "torch").no_grad():
            work()

    return do


def _parts(store: OnTorch, leaf: Leaf) -> Sequence[Any]:
    """A leaf, in parts that are small enough for what is computed of them on the way."""
    return store.homes[leaf.path].view(-1).split(AT_ONCE)


def _largest(store: OnTorch, leaf: Leaf) -> float:
    return max(float(part.abs().max()) for part in _parts(store, leaf))


def _to_grid(part: Any, noise: Noise, leaf: Leaf) -> Any:
    grid = noise.grid(leaf.dtype)
    return (part / grid).round() * grid + 0.0


def _refuse_not_finite(store: OnTorch, leaves: Sequence[Leaf]) -> None:
    for leaf in leaves:
        if not all(bool(part.isfinite().all()) for part in _parts(store, leaf)):
            raise ValueError(
                f"{leaf.path!r}: expected finite parameters, got others; fix: go back to the last good ones"
            )


def _refuse_logs(store: OnTorch, noise: Noise, exact: bool, is_log: bool) -> None:
    if is_log or (exact and any(leaf.dtype.itemsize == 2 for leaf in _noisy(store, noise))):
        raise ValueError(
            "expected float32 leaves to take back to the bit on a card, got 16-bit leaves, whose logs are kept on the "
            "host alone; fix: pass exact=False, es.sample into a second store, or use a store on the host"
        )


def _because(store: OnTorch, noise: Noise, tables: Sequence[Table], fix: str) -> ValueError:
    """The error for parameters that are off the grid or reach the bound. The store is as it was."""
    torch = require("torch", "torch")
    leaves = [leaf for table in tables for leaf in table.leaves]
    _refuse_not_finite(store, leaves)
    for leaf in leaves:
        largest = _largest(store, leaf)
        if largest >= noise.bound:
            return past_the_bound(noise, leaf.path, largest, "pass a larger bound= of the noise")
        bits = torch.int32 if leaf.dtype.itemsize == 4 else torch.int64
        if not all(torch.equal(_to_grid(x, noise, leaf).view(bits), x.view(bits)) for x in _parts(store, leaf)):
            return ValueError(
                f"{leaf.path!r}: expected parameters on the grid of the noise (step {noise.step:.3g}), got others, the "
                f"largest {largest:.6g}; fix: es.snap(store, noise) once"
            )
    worst = max(leaves, key=lambda leaf: _largest(store, leaf))
    return ValueError(
        f"{worst.path!r}: expected parameters below the bound {noise.bound:g} after the move, got others, the largest "
        f"before it {_largest(store, worst):.6g}; fix: {fix}"
    )


def _shares(out: OnTorch, store: OnTorch) -> bool:
    """Whether a store lies in what is written."""
    starts = {x.untyped_storage().data_ptr() for x in store.homes.values() if x.numel()}
    return any(x.untyped_storage().data_ptr() in starts for x in out.homes.values() if x.numel())
