"""Evolution strategies in compiled loops: parameters moved along noise that is made again from its seeds.

All loops run over blocks of the packed index. The random words of a block are drawn first; then come its *pieces*,
neighbours in the index that are neighbours in memory and take noise of one strength. What a number adds is looked up in
the row of a table that belongs to that strength, as a multiple of that row's *unit*:

```
piece     first index | end | row of the table | place of the first in memory | places from one member to the next
```
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.prefetch import fetch
from flatstore.kernels.cpu.storage import BITS, DITHERED, STORAGE
from flatstore.noise import ROUNDING

SEEDS_AT_ONCE = 4
"""How many seeds' noise is added to a sum at a time."""


@compiled
def look_up(
    words: Any, seed: int, first: int, count: int, width: int, table: Any, row: int, multiples: Any, ahead: Any
) -> int:
    """Look up `count` numbers of `width` bits (16 or 1) in a row of the table, and write their multiples.

    They are the numbers from `first` on in row `seed` of `words`: the highest bit is the sign, the others say where the
    magnitude stands. Single bits are looked up by whole words. Returns the column of `multiples` that belongs to number
    `first`. `ahead` is None, or (array, place, place): the `count` elements from each place on, which will be written
    soon, are fetched meanwhile.
    """
    if width == 16:
        numbers, begin = words.view(np.int16), np.uint64(first)
        for i in range(np.uint64(count)):
            if ahead is not None and i & np.uint64(15) == 0:
                fetch(ahead[0], np.uint64(ahead[1]) + i)
                fetch(ahead[0], np.uint64(ahead[2]) + i)
            multiples[i] = table[row, np.uint32(numbers[seed, begin + i]) & np.uint32(0x7FFF)]
        for i in range(np.uint64(count)):  # apart, for this loop becomes vector instructions
            minus = numbers[seed, begin + i] >> np.int16(15)
            multiples[i] = np.int16((multiples[i] ^ minus) - minus)
        return 0
    plus, minus, begin = table[row, 0], -table[row, 0], first // 32
    for w in range(np.uint64((first + count + 31) // 32 - begin)):
        word = words[seed, np.uint64(begin) + w]
        for at in range(np.uint64(32) * w, np.uint64(32) * w + np.uint64(32), np.uint64(16)):
            if ahead is not None:
                fetch(ahead[0], np.uint64(ahead[1]) + at)
                fetch(ahead[0], np.uint64(ahead[2]) + at)
        for bit in range(np.uint32(32 // width)):  # a constant 32 would be unrolled, not turned into vectors
            multiples[np.uint64(32) * w + np.uint64(bit)] = minus if (word >> bit) & np.uint32(1) else plus
    return first - 32 * begin


@cache
def grid_check(dtype: str) -> Any:
    """The compiled check of one parameter, before and after a move: whether it is on the grid and below the bound."""
    real = STORAGE[dtype][1]
    bits = BITS[real]
    magnitude, top = bits(np.iinfo(bits).max), bits(np.iinfo(bits).bits - 1)

    @compiled
    def violation(old: Any, new: Any, grid: Any) -> Any:
        """Return 0 if `old` is on the grid and both are below the bound; `grid` is (size, 1 / size, bits of the bound).

        The comparison is one of integers: the grid changes the bits of NaN and of minus zero, and where the bound is
        reached the difference is negative.
        """
        size, per_size, bound = grid
        snapped = real(np.rint(old * per_size) * size + real(0))
        before, after = real(old).view(bits), real(new).view(bits)
        room = bits(bound - bits(1) - (before & magnitude)) | bits(bound - bits(1) - (after & magnitude))
        return bits((snapped.view(bits) ^ before) | (bits(room) >> top))

    return violation


@cache
def perturbation_loop(dtype: str) -> Any:
    """The compiled loop that adds the noise of one seed in place, or takes it back."""
    _, real, load, store = STORAGE[dtype]
    violation, bits = grid_check(dtype), BITS[real]

    @compiled
    def perturb(
        begin: int, end: int, raw: Any, pieces: Any, noise: Any, sign: Any, grid: Any, scratch: Any, note: Any
    ) -> None:
        """Add `sign` times the noise to the parameters begin .. end - 1, and note where it stopped in `note[0]`.

        `noise` is (kind, width, keys, table, what a unit of each row adds). It stops before a piece in which a
        parameter is off the grid, or reaches the bound before or after the move. A bound of 0 checks nothing.
        """
        kind, width, keys, table, units = noise
        words, multiples, old = scratch
        for start in range(begin, end, old.size):
            stop, k = min(start + old.size, end), first_run(pieces, start)
            if k == pieces.shape[0] or pieces[k, 0] >= stop:
                continue
            first = draw_words(kind, width, keys, start, stop - start, words)
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                place, count, row = pieces[k, 3] + low - pieces[k, 0], high - low, pieces[k, 2]
                ahead = raw, place + old.size, place + old.size + 8  # a cache line of float64 has 8
                column = look_up(words, 0, first + low - start, count, width, table, row, multiples, ahead)
                violations, unit = bits(0), sign * real(units[row])
                for i in range(count):
                    old[i] = load(raw[np.uint64(place + i)])
                    new = old[i] + unit * real(multiples[np.uint64(column + i)])
                    violations = bits(violations | violation(old[i], new, grid))
                    raw[np.uint64(place + i)] = store(new)
                if grid[2] > 0 and violations != 0:
                    for i in range(count):
                        raw[np.uint64(place + i)] = store(old[i])
                    note[0] = low
                    return
                k += 1
        note[0] = end

    return perturb


@cache
def sampling_loop(dtype: str) -> Any:
    """The compiled loop that writes a store plus noise into the members of a population."""
    _, real, load, store = STORAGE[dtype]

    @compiled
    def sample(
        begin: int, end: int, out: Any, centre: Any, pieces: Any, noise: Any, signs: Any, scratch: Any, note: Any
    ) -> None:
        """Write the parameters begin .. end - 1: member len(signs) * i + j is the centre + signs[j] * noise number i.

        `note[0]` becomes the index that was reached.

        The first place in a piece is that in `out`, the second that in `centre`; a row of -1 means no noise.
        """
        kind, width, keys, table, units = noise
        words, multiples, block = scratch
        for start in range(begin, end, block.size):
            stop, first_piece = min(start + block.size, end), first_run(pieces, start)
            k = first_piece
            while k < pieces.shape[0] and pieces[k, 0] < stop:  # read all of the block: it may be one of the members
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                place = pieces[k, 5] + low - pieces[k, 0]
                for i in range(high - low):
                    block[np.uint64(low - start + i)] = load(centre[np.uint64(place + i)])
                k += 1
            if k == first_piece:
                continue
            for batch in range(0, keys.size, words.shape[0]):
                some = keys[batch : batch + words.shape[0]]
                first = draw_words(kind, width, some, start, stop - start, words)
                for seed in range(some.size):
                    k = first_piece
                    while k < pieces.shape[0] and pieces[k, 0] < stop:
                        low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                        offset, count, row, step, column = low - start, high - low, pieces[k, 2], pieces[k, 4], 0
                        home = pieces[k, 3] + low - pieces[k, 0] + (batch + seed) * signs.size * step
                        if row >= 0:
                            ahead = out, home, home + (signs.size - 1) * step
                            column = look_up(words, seed, first + offset, count, width, table, row, multiples, ahead)
                        for j in range(signs.size):
                            place = home + j * step
                            if row < 0:  # minus zero plus zero would be zero
                                for i in range(count):
                                    out[np.uint64(place + i)] = store(block[np.uint64(offset + i)])
                                continue
                            unit = real(signs[j] * units[row])
                            for i in range(count):
                                out[np.uint64(place + i)] = store(
                                    block[np.uint64(offset + i)] + unit * real(multiples[np.uint64(column + i)])
                                )
                        k += 1
        note[0] = end

    return sample


@cache
def update_loop(dtype: str, exact: bool) -> Any:
    """The compiled loop that adds the weighted noise of many seeds, rounded once: to the grid, or to the dtype."""
    _, real, load, _ = STORAGE[dtype]
    violation, bits, rounded = grid_check(dtype), BITS[real], DITHERED[dtype]

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
        scratch: Any,
        note: Any,
    ) -> None:
        """Move the parameters begin .. end - 1; stops before a piece that breaks `grid`, and notes where in `note[0]`.

        `weights` are whole numbers (int32). `settings` are (sign, bits to round off the sum, unit of what is left, key
        of the rounding, how many times the first seed's noise is taken back first, a step of it). `noise` ends with
        how many steps a unit of each row has. The sum of weights times steps is one of integers: the same in any order.
        """
        kind, width, keys, table, units = noise
        sign, drop, unit, key, back, step = settings
        words, multiples, new, total, dither = scratch
        for start in range(begin, end, new.size):
            stop, first_piece = min(start + new.size, end), first_run(pieces, start)
            if first_piece == pieces.shape[0] or pieces[first_piece, 0] >= stop:
                continue
            total[:] = 0
            first = 0
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
                            column = look_up(
                                words, seed + j, first + offset, count, width, table, row, multiples[j], None
                            )
                        for i in range(count):
                            x = np.uint64(column + i)
                            one = np.int64(a) * np.int64(multiples[0, x]) + np.int64(b) * np.int64(multiples[1, x])
                            two = np.int64(c) * np.int64(multiples[2, x]) + np.int64(d) * np.int64(multiples[3, x])
                            total[np.uint64(offset + i)] += one + two
                        k += 1
            first_dither = draw_words(ROUNDING, 32, key, start, stop - start, dither)
            if back != 0:
                first = draw_words(kind, width, keys[:1], start, stop - start, words)
            k = first_piece
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                offset, place, count = low - start, pieces[k, 3] + low - pieces[k, 0], high - low
                row = pieces[k, 2]
                steps = units[row]
                for i in range(count):
                    total[np.uint64(offset + i)] *= steps
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
                    new[i] = load(raw[np.uint64(place + i)])
                if back != 0:
                    column = look_up(words, 0, first + offset, count, width, table, row, multiples[0], None)
                    delta = back * (real(steps) * step)
                    for i in range(count):
                        before = new[i]
                        new[i] = before - delta * real(multiples[0, np.uint64(column + i)])
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
