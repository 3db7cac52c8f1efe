"""Moves of 16-bit floats along the noise of one seed, which keep what rounding loses in an undo log, or use one.

A block of parameters is copied side by side into a small array, moved there, and copied back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from flatstore.kernels.compiler import compiled
from flatstore.kernels.cpu.bits import word_at
from flatstore.kernels.cpu.draws import WHOLE_NUMBERS, draw_words
from flatstore.kernels.cpu.generation import first_run
from flatstore.kernels.cpu.normal import steps_of
from flatstore.kernels.cpu.storage import FINITE, SIGN, STORAGE, TOO_LARGE_FOR
from flatstore.kernels.cpu.undo_log import BLOCK, apart, behind_block, checksum, restore_block, write_block

LENGTH, WHY = range(2)
"""What a loop notes: how many bytes of its new log are used, and why it stopped."""

FOUND_OTHERS, NOT_FINITE = 1, 2
"""Why a loop stops: a block is not as its log left it, or would hold an infinity or NaN."""

_U, _W, _H = np.uint32, np.uint64, np.uint16
_ZERO = _W(0)


@compiled
def gathered(start: int, stop: int, raw: Any, pieces: Any, out: Any) -> int:
    """Copy the parameters start .. stop - 1 side by side into `out`; return how many there are."""
    k, count = first_run(pieces, start), 0
    while k < pieces.shape[0] and pieces[k, 0] < stop:
        low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
        home = pieces[k, 3] + low - pieces[k, 0]
        for i in range(_W(high - low)):
            out[_W(count) + i] = raw[_W(home) + i]
        count += high - low
        k += 1
    return count


@compiled
def scattered(start: int, stop: int, block: Any, pieces: Any, raw: Any) -> None:
    """Copy what `gathered` has copied back to the parameters start .. stop - 1."""
    k, count = first_run(pieces, start), 0
    while k < pieces.shape[0] and pieces[k, 0] < stop:
        low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
        home = pieces[k, 3] + low - pieces[k, 0]
        for i in range(_W(high - low)):
            raw[_W(home) + i] = block[_W(count) + i]
        count += high - low
        k += 1


@compiled
def checking_loop(
    begin: int, end: int, raw: Any, pieces: Any, log: Any, first_index: int, block: Any, note: Any
) -> None:
    """Go over the parameters begin .. end - 1; stop before a block that is not as its log left it."""
    at = _ZERO
    for start in range(first_index, end, BLOCK):
        count = gathered(start, min(start + BLOCK, end), raw, pieces, block)
        if count == 0:
            continue
        if start >= begin and checksum(block, count) != _U(word_at(log, at)):
            note[0] = start
            return
        at = behind_block(log, at)
    note[0] = end


@cache
def centre_of_block(dtype: str, width: int) -> Any:
    """The compiled function that gives a block of parameters as it was before noise of `width` bits was added."""
    whole_numbers, _ = WHOLE_NUMBERS[width]
    _, real, load, _ = STORAGE[dtype]
    store = FINITE[dtype]

    @compiled
    def centre(
        start: int, stop: int, raw: Any, pieces: Any, noise: Any, there: Any, log: Any, at: Any, scratch: Any
    ) -> None:
        """Write the parameters start .. stop - 1 as they were to the last array of `scratch`, side by side."""
        kind, keys, factors = noise
        words, whole, delta, old = scratch
        first = draw_words(kind, width, keys, start, stop - start, words)
        k, count = first_run(pieces, start), 0
        while k < pieces.shape[0] and pieces[k, 0] < stop:
            low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
            home, row = pieces[k, 3] + low - pieces[k, 0], pieces[k, 2]
            column = whole_numbers(words, 0, first + low - start, high - low, whole, None)
            multiplier, plus, shift = factors[row, 0], factors[row, 1], factors[row, 2]
            for i in range(_W(high - low)):
                delta[_W(count) + i] = real(steps_of(whole[_W(column) + i], multiplier, plus, shift))
                old[_W(count) + i] = raw[_W(home) + i]
            count += high - low
            k += 1
        for i in range(_W(count)):
            old[i] = store(real(load(old[i]) - there * delta[i]))
        restore_block(old, count, log, at)

    return centre


@cache
def logged_loop(dtype: str, width: int, takes_back: bool, adds: bool) -> Any:
    """The compiled loop that takes noise back by a log, adds it with another sign and makes a new log, or both.

    Its draws have `width` bits.
    """
    whole_numbers, _ = WHOLE_NUMBERS[width]
    _, real, load, _ = STORAGE[dtype]
    store, too_large = FINITE[dtype], TOO_LARGE_FOR[dtype]

    @compiled
    def move(
        begin: int, end: int, raw: Any, pieces: Any, noise: Any, steps: Any, log: Any, out: Any, scratch: Any, note: Any
    ) -> None:
        """Move the parameters begin .. end - 1, and note where it stopped in `note[0]`: before a block, or at the end.

        `noise` is (kind, keys, factors); `steps` what one step of it has added, and what it is to add from now on.
        `log` is (bytes, index that they begin with). The new log is written to `out` from its beginning. `scratch` ends
        with what is noted for the caller, by `LENGTH` and `WHY`.
        """
        kind, keys, factors = noise
        there, ahead = steps
        data, first_index = log
        words, whole, delta, old, new, distance, places, outcome = scratch
        at, place, outcome[WHY] = _ZERO, _ZERO, 0
        for start in range(first_index if takes_back else begin, end, BLOCK):
            stop, first_piece = min(start + BLOCK, end), first_run(pieces, start)
            outcome[LENGTH] = place
            if first_piece == pieces.shape[0] or pieces[first_piece, 0] >= stop:
                continue
            if start < begin:
                at = behind_block(data, at)
                continue
            first = draw_words(kind, width, keys, start, stop - start, words)
            k, count = first_piece, 0
            while k < pieces.shape[0] and pieces[k, 0] < stop:
                low, high = max(start, pieces[k, 0]), min(stop, pieces[k, 1])
                home, row = pieces[k, 3] + low - pieces[k, 0], pieces[k, 2]
                column = whole_numbers(words, 0, first + low - start, high - low, whole, (raw, (home,)))
                multiplier, plus, shift = factors[row, 0], factors[row, 1], factors[row, 2]
                for i in range(_W(high - low)):
                    delta[_W(count) + i] = real(steps_of(whole[_W(column) + i], multiplier, plus, shift))
                    new[_W(count) + i] = raw[_W(home) + i]
                count += high - low
                k += 1
            if takes_back:
                if checksum(new, count) != _U(word_at(data, at)):
                    note[0], outcome[WHY] = start, FOUND_OTHERS
                    return
                for i in range(_W(count)):
                    new[i] = store(real(load(new[i]) - there * delta[i]))
                restore_block(new, count, data, at)
                at = behind_block(data, at)
            if adds:
                largest = _U(0)
                for i in range(_W(count)):
                    old[i] = new[i]
                    change = real(ahead * delta[i])
                    moved = real(load(old[i]) + change)
                    largest = max(largest, _U(moved.view(np.uint32) & ~SIGN))
                    new[i] = store(moved)
                    distance[i] = store(real(load(new[i]) - change))
                if largest >= too_large:
                    note[0], outcome[WHY] = start, NOT_FINITE
                    return
                for i in range(_W(count)):  # a loop of 16 bits alone: twice as many at a time
                    distance[i] = apart(old[i], distance[i])
                for i in range(_W(count), _W(-(-count // 64) * 64)):
                    distance[i] = 0
                place = write_block(old, distance, count, checksum(new, count), out, place, places)
            scattered(start, stop, new, pieces, raw)
        outcome[LENGTH] = place
        note[0] = end

    return move
