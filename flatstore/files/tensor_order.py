"""In which order tensors are written, so that as many as can start at a multiple of 64 bytes.

A file has no padding between its tensors: each starts where the one before it ends. So those go first that take a
multiple of 64 bytes; then *bunches* of others that do so together, whose first one starts well; then the rest:

```
byte   0         256       512    536          576    600
       | 256     | 256     | 24   | 40         | 24   | 4 |
                           '-- a bunch: 64 ----'
```

Within a bunch, and within the rest, wide numbers go before narrow ones, so that each starts at a multiple of its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

ALIGN = 64
"""The bytes at whose multiples JAX takes views."""


class Size(NamedTuple):
    """What is to be known of a tensor."""

    nbytes: int
    itemsize: int


def in_file_order(sizes: Sequence[Size]) -> list[int]:
    """The numbers of the tensors, in the order in which they are to lie in a file.

    >>> in_file_order([Size(24, 4), Size(4, 4), Size(256, 4), Size(40, 8)])
    [2, 3, 0, 1]
    """
    whole = [i for i, size in enumerate(sizes) if size.nbytes % ALIGN == 0]
    waiting: dict[int, list[int]] = {}  # by what is missing, or left over, to a multiple
    for i, size in reversed(list(enumerate(sizes))):
        if size.nbytes % ALIGN:
            waiting.setdefault(size.nbytes % ALIGN, []).append(i)
    order = whole
    while bunch := _smallest_bunch({rest: len(numbers) for rest, numbers in waiting.items()}):
        for _ in range(min(len(waiting[rest]) // count for rest, count in bunch.items())):
            order += _wide_first([waiting[rest].pop() for rest, count in bunch.items() for _ in range(count)], sizes)
        waiting = {rest: numbers for rest, numbers in waiting.items() if numbers}
    return order + _wide_first([i for numbers in waiting.values() for i in numbers], sizes)


def _wide_first(numbers: list[int], sizes: Sequence[Size]) -> list[int]:
    return sorted(numbers, key=lambda i: (-sizes[i].itemsize, i))


def _smallest_bunch(counts: dict[int, int]) -> dict[int, int]:
    """The fewest of some rests that make a multiple of `ALIGN`: {rest: how many}; nothing if there are none.

    `counts` says how many there are of each.
    """
    reached: dict[int, tuple[int, dict[int, int]]] = {0: (0, {})}  # by sum: the fewest that make it, and which
    fewest, best = ALIGN + 1, dict[int, int]()
    for rest, count in counts.items():
        for total, (number, bunch) in list(reached.items()):
            for n in range(1, min(count, fewest - number - 1) + 1):
                at = (total + n * rest) % ALIGN
                if at == 0:
                    fewest, best = number + n, bunch | {rest: n}
                    break
                if at not in reached or number + n < reached[at][0]:
                    reached[at] = number + n, bunch | {rest: n}
    return best
