"""Evolution strategies in compiled loops: parameters moved along noise that is made again from its seeds.

All loops run over blocks of the packed index. The random words of a block are drawn first; then come its *pieces*,
neighbours in the index that are neighbours in memory and take noise of one strength. What a number adds is looked up in
that strength's line of a table, as a whole number of that line's *units*:

```
piece     first index | end | line of the table | place of the first in memory | places from one member to the next
```
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import blocks_of
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.prefetch import fetch
from flatstore.kernels.cpu.storage import BITS, DITHERED, STORAGE
from flatstore.noise import ROUNDING

TOGETHER = 4
"""Seeds whose noise is added to a sum at a time."""


@compiled
def found_in(
    row: int, first: int, count: int, width: int, table: Any, line: int, words: Any, out: Any, soon: Any
) -> int:
    """What `count` numbers of `width` bits (16 or 1) find in a line of a table, from number `first` of a row of words.

    The highest bit is the sign, the others say where the magnitude stands. Of single bits whole words are looked up:
    returns the place in `out` of the first that was asked for. `soon` is (array, place, place): what will be written
    soon, so many elements from both places on, is fetched meanwhile. None fetches nothing.
    """
    if width == 16:
        halves, begin, whole = words.view(np.int16), np.uint64(first), np.uint64(count // 16)
        for group in range(whole):
            at = np.uint64(16) * group
            if soon is not None:
                fetch(soon[0], np.uint64(soon[1]) + at)
                fetch(soon[0], np.uint64(soon[2]) + at)
            for i in range(at, at + np.uint64(16)):
                out[i] = table[line, np.uint32(halves[row, begin + i]) & np.uint32(0x7FFF)]
        for i in range(np.uint64(16) * whole, np.uint64(count)):
            out[i] = table[line, np.uint32(halves[row, begin + i]) & np.uint32(0x7FFF)]
        for i in range(np.uint64(count)):  # apart, for this loop becomes vector instructions
            minus = halves[row, begin + i] >> np.int16(15)
            out[i] = np.int16((out[i] ^ minus) - minus)
        return 0
    plus, minus, begin = table[line, 0], -table[line, 0], first // 32
    for w in range(np.uint64((first + count + 31) // 32 - begin)):
        word = words[row, np.uint64(begin) + w]
        for at in range(np.uint64(32) * w, np.uint64(32) * w + np.uint64(32), np.uint64(16)):
            if soon is not None:
                fetch(soon[0], np.uint64(soon[1]) + at)
                fetch(soon[0], np.uint64(soon[2]) + at)
        for bit in range(np.uint32(32 // width)):  # a constant 32 would be unrolled, not turned into vectors
            out[np.uint64(32) * w + np.uint64(bit)] = minus if (word >> bit) & np.uint32(1) else plus
    return first - 32 * begin


@cache
def checker(dtype: str) -> Any:
    """The compiled check of one parameter: 0, unless it is off the grid, has reached the bound, or would."""
    real = STORAGE[dtype][1]
    bits = BITS[real]
    magnitude, top = bits(np.iinfo(bits).max), bits(np.iinfo(bits).bits - 1)

    @compiled
    def fault(old: Any, new: Any, grid: Any) -> Any:
        """Before and after the move; `grid` is (size, 1 / size, the bits of the bound).

        As integers: NaN and minus zero are not what the grid makes of them, and where the bound is reached the
        difference is negative.
        """
        size, per, bound = grid
        snapped = real(np.rint(old * per) * size + real(0))
        before, after = real(old).view(bits), real(new).view(bits)
        inside = bits(bound - bits(1) - (before & magnitude)) | bits(bound - bits(1) - (after & magnitude))
        return bits((snapped.view(bits) ^ before) | (bits(inside) >> top))

    return fault


@cache
def perturbation_loop(dtype: str) -> Any:
    """The compiled loop that adds the noise of one seed in place, or takes it back."""
    _, real, load, store = STORAGE[dtype]
    fault, bits = checker(dtype), BITS[real]

    @compiled
    def perturb(begin: int, end: int, raw: Any, pieces: Any, draw: Any, sign: Any, grid: Any, rows: Any) -> int:
        """Add `sign` times the noise to the parameters begin .. end - 1.

        `draw` is (kind, width, keys, table, what a unit of each line adds).
        Stops before a piece that is off the grid, or has reached the bound, or would; returns where. A bound of 0
        checks nothing.
        """
        kind, width, keys, table, units = draw
        words, drawn, old = rows
        for start in range(begin, end, old.size):
            stop, k = min(start + old.size, end), first_run(pieces, start)
            if k == pieces.shape[0] or pieces[k, 0] >= stop:
                continue
            skip = blocks_of(kind, width, keys, start, stop - start, words)
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                place, count = pieces[k, 3] + low - pieces[k, 0], high - low
                line, next_block = pieces[k, 2], place + old.size
                soon = raw, next_block, next_block + 8  # lines of float64 have 8
                shift = found_in(0, skip + low - start, count, width, table, line, words, drawn, soon)
                faults, unit = bits(0), sign * real(units[line])
                for i in range(count):
                    old[i] = load(raw[np.uint64(place + i)])
                    new = old[i] + unit * real(drawn[np.uint64(shift + i)])
                    faults = bits(faults | fault(old[i], new, grid))
                    raw[np.uint64(place + i)] = store(new)
                if grid[2] > 0 and faults != 0:
                    for i in range(count):
                        raw[np.uint64(place + i)] = store(old[i])
                    return low
                k += 1
        return end

    return perturb


@cache
def sampling_loop(dtype: str) -> Any:
    """The compiled loop that writes a store plus noise into the members of a population."""
    _, real, load, store = STORAGE[dtype]

    @compiled
    def sample(
        begin: int, end: int, out: Any, centre: Any, pieces: Any, draw: Any, signs: Any, rows: Any
    ) -> None:  # fmt: skip
        """Write the parameters begin .. end - 1: member len(signs) * i + j is the centre + signs[j] * noise number i.

        The first place in a piece is that in `out`, the second that in `centre`; a line of -1 is no noise.
        """
        kind, width, keys, table, units = draw
        words, drawn, middle = rows
        for start in range(begin, end, middle.size):
            stop, first = min(start + middle.size, end), first_run(pieces, start)
            k = first
            while k < pieces.shape[0] and pieces[k, 0] < stop:  # all of it, for it may be one of the members
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                place = pieces[k, 5] + low - pieces[k, 0]
                for i in range(high - low):
                    middle[np.uint64(low - start + i)] = load(centre[np.uint64(place + i)])
                k += 1
            if k == first:
                continue
            for brood in range(0, keys.size, words.shape[0]):
                some = keys[brood : brood + words.shape[0]]
                skip = blocks_of(kind, width, some, start, stop - start, words)
                for row in range(some.size):
                    k = first
                    while k < pieces.shape[0] and pieces[k, 0] < stop:
                        low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                        offset, line, shift = low - start, pieces[k, 2], 0
                        home = pieces[k, 3] + low - pieces[k, 0] + (brood + row) * signs.size * pieces[k, 4]
                        if line >= 0:
                            soon = out, home, home + (signs.size - 1) * pieces[k, 4]
                            shift = found_in(row, skip + offset, high - low, width, table, line, words, drawn, soon)
                        for j in range(signs.size):
                            place = home + j * pieces[k, 4]
                            if line < 0:  # minus zero plus zero would be zero
                                for i in range(high - low):
                                    out[np.uint64(place + i)] = store(middle[np.uint64(offset + i)])
                                continue
                            unit = real(signs[j] * units[line])
                            for i in range(high - low):
                                out[np.uint64(place + i)] = store(
                                    middle[np.uint64(offset + i)] + unit * real(drawn[np.uint64(shift + i)])
                                )
                        k += 1

    return sample


@cache
def update_loop(dtype: str, exact: bool) -> Any:
    """The compiled loop that adds the weighted noise of many seeds, rounded once: to the grid, or to the dtype."""
    _, real, load, _ = STORAGE[dtype]
    fault, bits, rounded = checker(dtype), BITS[real], DITHERED[dtype]

    @compiled
    def update(
        begin: int, end: int, raw: Any, pieces: Any, draw: Any, weights: Any, move: Any, grid: Any, rows: Any
    ) -> int:
        """Move the parameters begin .. end - 1; stops before a piece that is wrong, and returns where.

        `weights` are whole numbers (int32), `move` is (sign, bits to round off, unit of what is left, key of the
        rounding, what is taken back first: times of the first seed's noise, a step of it). `draw` ends with how many
        steps a unit of each line has. The sum of weights times steps is one of integers: the same in any order.
        """
        kind, width, keys, table, units = draw
        sign, drop, unit, key, back, step = move
        words, drawn, new, total, dither = rows
        for start in range(begin, end, new.size):
            stop, first = min(start + new.size, end), first_run(pieces, start)
            if first == pieces.shape[0] or pieces[first, 0] >= stop:
                continue
            total[:] = 0
            skip = 0
            for brood in range(0, keys.size, words.shape[0]):
                some = keys[brood : brood + words.shape[0]]
                skip = blocks_of(kind, width, some, start, stop - start, words)
                for row in range(0, some.size, TOGETHER):
                    at, left, none, k = brood + row, some.size - row, np.int32(0), first
                    a, b = weights[at], weights[at + 1] if left > 1 else none
                    c, d = weights[at + 2] if left > 2 else none, weights[at + 3] if left > 3 else none
                    while k < pieces.shape[0] and pieces[k, 0] < stop:
                        low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                        offset, shift = low - start, 0
                        for j in range(min(TOGETHER, left)):
                            number, line = skip + offset, pieces[k, 2]
                            shift = found_in(row + j, number, high - low, width, table, line, words, drawn[j], None)
                        for i in range(high - low):
                            x = np.uint64(shift + i)
                            one = np.int64(a) * np.int64(drawn[0, x]) + np.int64(b) * np.int64(drawn[1, x])
                            two = np.int64(c) * np.int64(drawn[2, x]) + np.int64(d) * np.int64(drawn[3, x])
                            total[np.uint64(offset + i)] += one + two
                        k += 1
            ahead = blocks_of(ROUNDING, 32, key, start, stop - start, dither)
            if back != 0:
                skip = blocks_of(kind, width, keys[:1], start, stop - start, words)
            k = first
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                offset, place, count = low - start, pieces[k, 3] + low - pieces[k, 0], high - low
                steps = units[pieces[k, 2]]
                for i in range(count):
                    total[np.uint64(offset + i)] *= steps
                if exact:
                    for i in range(count):
                        word = np.uint64(dither[0, np.uint64(ahead + offset + i)])
                        if drop <= 32:
                            random = np.int64(word >> np.uint64(32 - drop))
                        else:
                            random = np.int64((np.uint64(2) * word + np.uint64(1)) << np.uint64(drop - 33))
                        total[np.uint64(offset + i)] = (total[np.uint64(offset + i)] + random) >> drop
                faults = bits(0)
                for i in range(count):
                    new[i] = load(raw[np.uint64(place + i)])
                if back != 0:
                    shift = found_in(0, skip + offset, count, width, table, pieces[k, 2], words, drawn[0], None)
                    delta = back * (real(steps) * step)
                    for i in range(count):
                        before = new[i]
                        new[i] = before - delta * real(drawn[0, np.uint64(shift + i)])
                        faults = bits(faults | fault(before, new[i], grid))
                for i in range(count):
                    before, whole = new[i], real(total[np.uint64(offset + i)]) * unit
                    new[i] = before + sign * whole
                    faults = bits(faults | fault(before, whole, grid) | fault(before, new[i], grid))
                if grid[2] > 0 and faults != 0:
                    return low
                for i in range(count):
                    raw[np.uint64(place + i)] = rounded(new[i], dither[0, np.uint64(ahead + offset + i)])
                k += 1
        return end

    return update
