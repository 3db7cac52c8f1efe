"""The weighted noise of many seeds, added to parameters in compiled loops that work as those of `noise_loops`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import WHOLE_NUMBERS, draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.logged_moves import centre_of_block
from flatstore.kernels.cpu.noise_loops import grid_check
from flatstore.kernels.cpu.normal import steps_of
from flatstore.kernels.cpu.storage import BITS, DITHERED, STORAGE
from flatstore.kernels.cpu.undo_log import behind_block
from flatstore.noise import ROUNDING

SEEDS_AT_ONCE = 4
"""How many seeds' noise is added to a sum at a time."""


@cache
def summed(width: int) -> Any:
    """The compiled function that sums the weighted noise of many seeds, of draws of `width` bits, for a block."""
    whole_numbers, _ = WHOLE_NUMBERS[width]

    @compiled
    def add_up(
        start: int,
        stop: int,
        first_piece: int,
        pieces: Any,
        noise: Any,
        weights: Any,
        words: Any,
        whole: Any,
        total: Any,
    ) -> None:
        """Write the sums for the indices start .. stop - 1 to `total`: whole numbers (int64), the same in any order."""
        kind, keys, factors = noise
        total[:] = 0
        for batch in range(0, keys.size, words.shape[0]):
            some = keys[batch : batch + words.shape[0]]
            first = draw_words(kind, width, some, start, stop - start, words)
            for seed in range(0, some.size, SEEDS_AT_ONCE):
                at, left, zero, k = batch + seed, some.size - seed, np.int32(0), first_piece
                a, b = weights[at], weights[at + 1] if left > 1 else zero
                c, d = weights[at + 2] if left > 2 else zero, weights[at + 3] if left > 3 else zero
                while k < pieces.shape[0] and pieces[k, 0] < stop:
                    low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                    offset, count, row, column = low - start, high - low, pieces[k, 2], 0
                    for j in range(min(SEEDS_AT_ONCE, left)):
                        column = whole_numbers(words, seed + j, first + offset, count, whole[j], None)
                    multiplier, plus, shift = factors[row, 0], factors[row, 1], factors[row, 2]
                    for i in range(np.uint64(count)):
                        x = np.uint64(column) + i
                        one = np.int64(a) * np.int64(steps_of(whole[0, x], multiplier, plus, shift))
                        two = np.int64(b) * np.int64(steps_of(whole[1, x], multiplier, plus, shift))
                        three = np.int64(c) * np.int64(steps_of(whole[2, x], multiplier, plus, shift))
                        four = np.int64(d) * np.int64(steps_of(whole[3, x], multiplier, plus, shift))
                        total[np.uint64(offset) + i] += (one + two) + (three + four)
                    k += 1

    return add_up


@cache
def update_loop(dtype: str, width: int, exact: bool, logged: bool = False) -> Any:
    """The compiled loop that adds the weighted noise of many seeds, rounded once: to the grid, or to the dtype.

    The draws have `width` bits. If it is `logged`, the noise of the first seed is taken back by an undo log first.
    """
    whole_numbers, _ = WHOLE_NUMBERS[width]
    _, real, load, _ = STORAGE[dtype]
    violation, bits, rounded = grid_check(dtype), BITS[real], DITHERED[dtype]
    add_up = summed(width)
    centre: Any = centre_of_block(dtype, width) if logged else None

    @compiled
    def update(
        begin: int,
        end: int,
        raw: Any,
        pieces: Any,
        noise: Any,
        weights: Any,
        settings: Any,
        grid: Any,
        undo: Any,
        scratch: Any,
        note: Any,
    ) -> None:
        """Move the parameters begin .. end - 1; stops before a piece that breaks `grid`, and notes where in `note[0]`.

        `weights` are whole numbers (int32). `settings` are (sign, bits to round off the sum, unit of what is left, key
        of the rounding, how many times the first seed's noise is taken back first, a step of it). The sum of weights
        times steps is one of integers: the same in any order. `undo` is (log, index that it begins with, numbers of
        steps, parameters), the last two as scratch.
        """
        kind, keys, factors = noise
        sign, drop, unit, key, back, step = settings
        words, whole, new, total, dither = scratch
        log, first_index, delta, old = undo
        in_log = np.uint64(0)
        for start in range(first_index if logged else begin, end, new.size):
            stop, first_piece = min(start + new.size, end), first_run(pieces, start)
            if first_piece == pieces.shape[0] or pieces[first_piece, 0] >= stop:
                continue
            if logged:
                if start >= begin:
                    rows = words, whole[0], delta, old
                    centre(start, stop, raw, pieces, (kind, keys[:1], factors), back * step, log, in_log, rows)
                in_log = behind_block(log, in_log)
                if start < begin:
                    continue
            add_up(start, stop, first_piece, pieces, noise, weights, words, whole, total)
            first, first_dither = 0, draw_words(ROUNDING, 32, key, start, stop - start, dither)
            if back != 0 and not logged:
                first = draw_words(kind, width, keys[:1], start, stop - start, words)
            k, place_in_block = first_piece, 0
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                offset, place, count = low - start, pieces[k, 3] + low - pieces[k, 0], high - low
                row = pieces[k, 2]
                if exact:
                    for i in range(count):
                        word = np.uint64(dither[0, np.uint64(first_dither + offset + i)])
                        if drop <= 32:
                            random = np.int64(word >> np.uint64(32 - drop))
                        else:
                            random = np.int64((np.uint64(2) * word + np.uint64(1)) << np.uint64(drop - 33))
                        total[np.uint64(offset + i)] = (total[np.uint64(offset + i)] + random) >> drop
                violations = bits(0)
                for i in range(count):
                    new[i] = load(old[np.uint64(place_in_block + i)] if logged else raw[np.uint64(place + i)])
                place_in_block += count
                if back != 0 and not logged:
                    column = whole_numbers(words, 0, first + offset, count, whole[0], None)
                    multiplier, plus, shift = factors[row, 0], factors[row, 1], factors[row, 2]
                    for i in range(count):
                        steps = steps_of(whole[0, np.uint64(column + i)], multiplier, plus, shift)
                        before = new[i]
                        new[i] = before - back * step * real(steps)
                        violations = bits(violations | violation(before, new[i], grid))
                for i in range(count):
                    before, change = new[i], real(total[np.uint64(offset + i)]) * unit
                    new[i] = before + sign * change
                    violations = bits(violations | violation(before, change, grid) | violation(before, new[i], grid))
                if grid[2] > 0 and violations != 0:
                    note[0] = low
                    return
                for i in range(count):
                    raw[np.uint64(place + i)] = rounded(new[i], dither[0, np.uint64(first_dither + offset + i)])
                k += 1
        note[0] = end

    return update
