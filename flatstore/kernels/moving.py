"""Evolution strategies in compiled loops: parameters moved along noise that is made again from its seeds.

Like a generation, all loops run over blocks of the packed index: a block of the centre is read into scratch, moved, and
written where it belongs. `spans` are (first indices and ends, multipliers): a draw times the multiplier, rounded to an
integer, is how many steps are added.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.generation import first_run, reader, scales_of, writer
from flatstore.kernels.storage import STORAGE
from flatstore.kernels.words import draws, looked_up


@compiled
def covered(runs: Any, run: int, start: int, stop: int) -> bool:
    """Whether every parameter of a block is in one run."""
    return run < runs.shape[0] and runs[run, 0] <= start and stop <= runs[run, 1]


@cache
def perturbation(dtype: str) -> Any:
    """The compiled loop that adds the noise of one seed in place, or takes it back."""
    read, write, real = reader(dtype), writer(dtype), STORAGE[dtype][1]
    bits = np.uint64 if real is np.float64 else np.uint32
    magnitude = bits(2 ** (63 if real is np.float64 else 31) - 1)

    @compiled
    def perturb(
        begin: int, end: int, raw: Any, runs: Any, spans: Any, grid: Any, keys: Any, draw: Any, rows: Any, found: Any
    ) -> None:  # fmt: skip
        """Move the parameters begin .. end - 1 by `grid`'s (step times sign), unless they are off its grid.

        Stops before a block that is off the grid, or has reached the bound, or would: `found` is (where the block at
        work starts, 0 or what is wrong). A bound of 0 checks nothing.
        """
        kind, width, table = draw
        move, per, size, bound = grid
        old, new, old_bits, new_bits, scale, drawn, random, alone = rows
        for start in range(begin, end, scale.size):
            found[0] = start
            stop, run = min(start + scale.size, end), first_run(runs, start)
            if start + scale.size > end or not covered(runs, run, start, stop):
                old[:] = 0
            read(start, stop, run, old, alone, raw, runs)
            scales_of(start, spans, scale)
            skip = draws(kind, width, keys, start, scale.size, random)
            looked_up(0, skip + scale.size, width, table, random, drawn)
            for i in range(scale.size):
                new[0, i] = old[0, i] + real(np.rint(scale[i] * drawn[np.uint64(skip + i)])) * move
            if bound > 0:
                # As integers: NaN and minus zero are not what the grid makes of them.
                differ, largest = bits(0), bits(0)
                for i in range(scale.size):
                    snapped = real(np.rint(old[0, i] * per) * size + real(0))
                    differ = bits(differ | (snapped.view(bits) ^ old_bits[0, i]))
                for i in range(scale.size):
                    largest = max(largest, max(old_bits[0, i] & magnitude, new_bits[0, i] & magnitude))
                if differ != 0 or largest >= bound:
                    found[1] = 1
                    return
            write(start, stop, run, new, alone, raw, runs)
        found[0] = end

    return perturb
