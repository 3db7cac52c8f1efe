"""Weighted sums of noise added to 16-bit floats, rounded at random, with an undo log or by one.

An update rounds w + c up or down by a random word r. With the opposite of the word, ~r, the subtraction rounds back:

```
to one side      floor(w + c + r / 2**16)               w and c in parts of the last digit
back             floor(w' - c + ~r / 2**16) = w         where w' has as many digits behind the point as w
```

So a log holds no more than that of a perturbation, however small the update is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.bits import word_at
from flatstore.kernels.cpu.draws import draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.logged_moves import FOUND_OTHERS, LENGTH, WHY, gathered, scattered
from flatstore.kernels.cpu.storage import DITHERED, STORAGE
from flatstore.kernels.cpu.undo_log import BLOCK, apart, behind_block, checksum, restore_block, write_block
from flatstore.kernels.cpu.weighted_sums import summed
from flatstore.noise import ROUNDING

_U, _W, _H = np.uint32, np.uint64, np.uint16
_ZERO = _W(0)


@cache
def logged_update_loop(dtype: str, width: int, takes_back: bool) -> Any:
    """The compiled loop that adds weighted noise of `width` bits and makes a log, or takes it back by one."""
    _, real, load, _ = STORAGE[dtype]
    rounded, add_up = DITHERED[dtype], summed(width)

    @compiled
    def update(
        begin: int,
        end: int,
        raw: Any,
        pieces: Any,
        noise: Any,
        weights: Any,
        rounding: Any,
        log: Any,
        out: Any,
        scratch: Any,
        note: Any,
    ) -> None:
        """Move the parameters begin .. end - 1, and note where it stopped in `note[0]`: before a block, or at the end.

        `rounding` is (unit of the sum, key of the rounding). `log` is (bytes, index that they begin with). The new log
        is written to `out` from its beginning. `scratch` ends with what is noted for the caller, by `LENGTH` and `WHY`.
        """
        unit, key = rounding
        data, first_index = log
        words, whole, total, dither, change, random, old, new, distance, places, outcome = scratch
        at, place, outcome[WHY] = _ZERO, _ZERO, 0
        for start in range(first_index if takes_back else begin, end, BLOCK):
            stop, first_piece = min(start + BLOCK, end), first_run(pieces, start)
            outcome[LENGTH] = place
            if first_piece == pieces.shape[0] or pieces[first_piece, 0] >= stop:
                continue
            if start < begin:
                at = behind_block(data, at)
                continue
            count = gathered(start, stop, raw, pieces, new)
            if takes_back and checksum(new, count) != _U(word_at(data, at)):
                note[0], outcome[WHY] = start, FOUND_OTHERS
                return
            add_up(start, stop, first_piece, pieces, noise, weights, words, whole, total)
            first = draw_words(ROUNDING, 32, key, start, stop - start, dither)
            k, count = first_piece, 0
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                for i in range(_W(high - low)):
                    change[_W(count) + i] = real(real(total[_W(low - start) + i]) * unit)
                    random[_W(count) + i] = dither[0, _W(first + low - start) + i]
                count += high - low
                k += 1
            if takes_back:
                for i in range(_W(count)):
                    new[i] = rounded(real(load(new[i]) - change[i]), ~random[i])
                restore_block(new, count, data, at)
                at = behind_block(data, at)
            else:
                for i in range(_W(count)):
                    old[i] = new[i]
                    new[i] = rounded(real(load(old[i]) + change[i]), random[i])
                    distance[i] = rounded(real(load(new[i]) - change[i]), ~random[i])
                for i in range(_W(count)):
                    distance[i] = apart(old[i], distance[i])
                for i in range(_W(count), _W(-(-count // 64) * 64)):
                    distance[i] = _H(0)
                place = write_block(old, distance, count, checksum(new, count), out, place, places)
            scattered(start, stop, new, pieces, raw)
        outcome[LENGTH] = place
        note[0] = end

    return update
