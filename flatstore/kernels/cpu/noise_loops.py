"""Noise added to parameters in compiled loops: made again from its seeds, block by block.

All loops run over blocks of the packed index. The random words of a block are drawn first; then come its *pieces*,
neighbours in the index that are neighbours in memory and take noise of one strength. The whole numbers of a piece are
made from its words, and turned into steps of the grid by the factor that belongs to that strength:

```
piece     first index | end | row of the factors | place of the first in memory | places from one member to the next
```
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.draws import WHOLE_NUMBERS, draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.normal import steps_of
from flatstore.kernels.cpu.storage import BITS, STORAGE


@cache
def grid_check(dtype: str) -> Any:
    """The compiled check of one parameter, before and after a move: whether it is on the grid and below the bound."""
    real = STORAGE[dtype][1]
    bits: Any = BITS[real]
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
def perturbation_loop(dtype: str, width: int) -> Any:
    """The compiled loop that adds the noise of one seed in place, or takes it back. Its draws have `width` bits."""
    whole_numbers, _ = WHOLE_NUMBERS[width]
    _, real, load, store = STORAGE[dtype]
    violation, bits = grid_check(dtype), BITS[real]
    unsigned = np.uint32 if real is np.float32 else np.uint64
    middle = real(1.5 * 2.0 ** np.finfo(real).nmant)

    @compiled
    def move(
        raw: Any, place: int, count: int, whole: Any, column: int, factor: Any, step: Any, size: Any, old: Any
    ) -> Any:
        """Add steps to `count` parameters, keep what they were in `old`, and look for what may break the grid.

        Returns bits that are 0 if all were on the grid, and twice the bits of the largest magnitude afterwards. Next to
        `middle * size` numbers are as far apart as on the grid: an addition rounds to it. This fails from a quarter of
        the bound on, where numbers on the grid may seem to be off it.
        """
        multiplier, offset, shift = factor
        off, largest, near = unsigned(0), unsigned(0), real(middle * size)
        for i in range(np.uint64(count)):
            before = load(raw[np.uint64(place) + i])
            steps = steps_of(whole[np.uint64(column) + i], multiplier, offset, shift)
            after = real(before + step * real(steps))
            snapped = real(real(before + near) - near)
            off = unsigned(off | unsigned(snapped.view(unsigned) ^ real(before).view(unsigned)))
            largest = unsigned(max(largest, unsigned(after.view(unsigned) << unsigned(1))))
            old[i] = before
            raw[np.uint64(place) + i] = store(after)
        return off, largest

    @compiled
    def perturb(
        begin: int, end: int, raw: Any, pieces: Any, noise: Any, step: Any, grid: Any, scratch: Any, note: Any
    ) -> None:
        """Add the noise to the parameters begin .. end - 1, and note where it stopped in `note[0]`.

        `noise` is (kind, keys, factors, the most steps of each), and `step` what one step adds. It stops before a
        piece in which a parameter is off the grid, or reaches the bound before or after the move. A bound of 0
        checks nothing.
        """
        kind, keys, factors, most = noise
        words, whole, old = scratch
        size, _, bound = grid
        limit = bits(bound).view(real)
        for start in range(begin, end, old.size):
            stop, k = min(start + old.size, end), first_run(pieces, start)
            if k == pieces.shape[0] or pieces[k, 0] >= stop:
                continue
            first = draw_words(kind, width, keys, start, stop - start, words)
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                place, count, row = pieces[k, 3] + low - pieces[k, 0], high - low, pieces[k, 2]
                ahead = raw, (place + old.size,)
                column = whole_numbers(words, 0, first + low - start, count, whole, ahead)
                factor = factors[row, 0], factors[row, 1], factors[row, 2]
                off, largest = move(raw, place, count, whole, column, factor, step, size, old)
                # What is below this now has been below the bound before.
                safe = real(max(limit - abs(step) * most[row], 0.0))
                if bound > 0 and (off != 0 or largest >= unsigned(safe.view(unsigned) << unsigned(1))):
                    violations = bits(0)
                    for i in range(count):
                        new = load(raw[np.uint64(place + i)])
                        violations = bits(violations | violation(old[i], new, grid))
                    if violations != 0:
                        for i in range(count):
                            raw[np.uint64(place + i)] = store(old[i])
                        note[0] = low
                        return
                k += 1
        note[0] = end

    return perturb


@cache
def sampling_loop(dtype: str, width: int) -> Any:
    """The compiled loop that writes a store plus noise into members of a population, from draws of `width` bits."""
    whole_numbers, _ = WHOLE_NUMBERS[width]
    _, real, load, store = STORAGE[dtype]

    @compiled
    def sample(
        begin: int, end: int, out: Any, centre: Any, pieces: Any, noise: Any, signs: Any, scratch: Any, note: Any
    ) -> None:
        """Write the parameters begin .. end - 1: member len(signs) * i + j is the centre + signs[j] * noise number i.

        `note[0]` becomes the index that was reached.

        The first place in a piece is that in `out`, the second that in `centre`; a row of -1 means no noise.
        """
        kind, keys, factors, step = noise
        words, whole, block = scratch
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
                        offset, count, row, apart, column = low - start, high - low, pieces[k, 2], pieces[k, 4], 0
                        home = pieces[k, 3] + low - pieces[k, 0] + (batch + seed) * signs.size * apart
                        if row >= 0:
                            ahead = out, (home, home + (signs.size - 1) * apart)
                            column = whole_numbers(words, seed, first + offset, count, whole, ahead)
                        for j in range(signs.size):
                            place = home + j * apart
                            if row < 0:  # minus zero plus zero would be zero
                                for i in range(count):
                                    out[np.uint64(place + i)] = store(block[np.uint64(offset + i)])
                                continue
                            multiplier, plus, shift = factors[row, 0], factors[row, 1], factors[row, 2]
                            signed = real(signs[j] * step)
                            for i in range(np.uint64(count)):
                                steps = steps_of(whole[np.uint64(column) + i], multiplier, plus, shift)
                                new = block[np.uint64(offset) + i] + signed * real(steps)
                                out[np.uint64(place) + i] = store(new)
                        k += 1
        note[0] = end

    return sample
