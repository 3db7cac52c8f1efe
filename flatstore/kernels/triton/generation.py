# pyright: basic, reportInvalidTypeForm=false
# Triton compiles the functions below: it knows their types, and refuses such annotations.
"""One generation of a genetic algorithm in Triton, in the population's own memory: a block of the genes of a leaf.

The parents' genes of the block are in scratch before any is overwritten. A program makes a tile of one child:

```
scratch   parents x genes of a block       population   members x genes: the block of those that children replace
```
"""

from __future__ import annotations

from typing import Any

from flatstore.extras import require
from flatstore.kernels.cpu import SEGMENT as _SEGMENT
from flatstore.kernels.triton.numbers import philox, random_words, whole_numbers
from flatstore.kernels.triton.storage import FLOAT32, FLOAT64, load, store
from flatstore.noise import CROSSOVER as _CROSSOVER

triton: Any = require("triton", "triton")
tl: Any = require("triton.language", "triton")

MOTHER, EITHER, POINTS, BLEND, UNIT = range(5)
"""How the genes of a child come from its parents: the mother alone, drawn one by one, by cuts, between both, whole."""

NOTHING, NOISE, SOME_NOISE, SOME_NEW = range(4)
"""What is changed: nothing, every gene, or some: by noise, or to new values."""

INSIDE, CLIPPED, REFLECTED = range(3)
"""What is done with a gene outside of its bounds."""

_EITHER, _POINTS, _BLEND, _UNIT = (tl.constexpr(x) for x in (EITHER, POINTS, BLEND, UNIT))
_NOISE, _SOME_NOISE, _SOME_NEW = (tl.constexpr(x) for x in (NOISE, SOME_NOISE, SOME_NEW))
_CLIPPED, _REFLECTED = tl.constexpr(CLIPPED), tl.constexpr(REFLECTED)
CROSSOVER, SEGMENT = tl.constexpr(_CROSSOVER), tl.constexpr(_SEGMENT)


@triton.jit
def _crossed(
    a, b, child, place, start, seed, of_mother, cuts, places, cross: tl.constexpr, points: tl.constexpr,
    real: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """The genes of a child, from those of its mother and father."""
    if cross == _EITHER:
        gene = tl.where(whole_numbers(start, seed, CROSSOVER, 1, tile) != 0, a, b)
    elif cross == _POINTS:
        behind = tl.zeros([tile], tl.int32)
        for k in tl.static_range(points):
            cut = tl.minimum(tl.maximum(tl.load(cuts + child * points + k) - start, 0), tile).to(tl.int32)
            behind += (place >= cut).to(tl.int32)
        gene = tl.where(behind % 2 == 0, a, b)
    elif cross == _BLEND:
        low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
        words = random_words(start, low, high, CROSSOVER, tile // 8, 3)
        number = tl.interleave(words & 0xFFFF, words >> 16).to(tl.int32)
        gene = a + load(places, number, place >= 0, real) * (b - a)
    elif cross == _UNIT:
        gene = tl.where(tl.load(of_mother + child) != 0, a, b)
    else:
        gene = a
    return gene


@triton.jit
def _some_changed(
    gene, start, seed, scale, table, thresholds, mutate: tl.constexpr, kind: tl.constexpr, width: tl.constexpr,
    real: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Genes of which some are changed: in each segment of the index, from one to the next by a distance."""
    segments: tl.constexpr = tile // SEGMENT
    low, high = tl.load(seed).to(tl.uint32), tl.load(seed + 1).to(tl.uint32)
    number = start // SEGMENT + tl.arange(0, segments)
    a, b = (number & 0xFFFFFFFF).to(tl.uint32), (number >> 32).to(tl.uint32)
    c = tl.full([segments], kind, tl.uint32)
    limits = tl.load(thresholds + tl.arange(0, SEGMENT))
    rows = tl.reshape(gene, [segments, SEGMENT])
    column = tl.arange(0, SEGMENT)[None, :]
    at = tl.zeros([segments], tl.int32) - 1
    block = 0
    while tl.min(at, 0) < SEGMENT - 1:
        first, second, third, fourth = philox(a, b, c, tl.zeros([segments], tl.uint32) + block, low, high)
        for half in tl.static_range(2):
            distance = first if half == 0 else third
            drawn = second if half == 0 else fourth
            passed = tl.sum((limits[None, :] <= distance[:, None].to(tl.int64)).to(tl.int32), 1)
            at = tl.minimum(at + 1 + passed, SEGMENT)
            value = load(table, (drawn & ((1 << width) - 1)).to(tl.int32), at >= 0, real)
            if mutate == _SOME_NEW:
                rows = tl.where(column == at[:, None], value[:, None], rows)
            else:
                rows = tl.where(column == at[:, None], rows + scale * value[:, None], rows)
        block += 1
    return tl.reshape(rows, [tile])


@triton.jit
def _remainder(x, m):
    """The remainder of x / m, exactly, for numbers of 0 or more: by subtractions of which none is rounded."""
    while tl.max((x >= m).to(tl.int32), 0) != 0:
        part = m + tl.zeros_like(x)
        while tl.max((part <= x * 0.5).to(tl.int32), 0) != 0:
            part = tl.where(part <= x * 0.5, part * 2, part)
        x = tl.where(x >= m, x - part, x)
    return x


@triton.jit
def _bounded(gene, low, high, outside: tl.constexpr):
    """Genes brought between their bounds; NaN compares as inside, and stays."""
    if outside == _CLIPPED:
        gene = tl.where(gene < low, low, gene)
        gene = tl.where(gene > high, high, gene)
    elif outside == _REFLECTED:
        once = tl.where(gene < low, low + (low - gene), gene)
        once = tl.where(once > high, high - (gene - high), once)
        far = (once < low) | (once > high)
        if tl.max(far.to(tl.int32), 0) != 0:
            x, down, up = gene.to(tl.float64), low.to(tl.float64), high.to(tl.float64)
            below, width = x < down, up - down
            past = tl.where(below, down - x, x - up)
            ends = (width == 0) | (past == float("inf")) | (far == 0)
            turn = _remainder(tl.where(ends, 0.0, past), tl.where(width == 0, 1.0, 2 * width))
            back = tl.where(turn <= width, turn, width - (turn - width))
            inner = tl.where(below, tl.minimum(down + back, up), tl.maximum(up - back, down))
            inner = tl.where(ends, tl.where(below, down, up), inner)
            once = tl.where(far, inner.to(once.dtype), once)
        gene = once
    return gene


@triton.jit
def replace(
    scratch, numbers, settings, mothers, fathers, slots, keys, of_mother, cuts, places, table,
    thresholds, since, cross: tl.constexpr, points: tl.constexpr, mutate: tl.constexpr, kind: tl.constexpr,
    width: tl.constexpr, outside: tl.constexpr, dtype: tl.constexpr, aligned: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Write children over the members in `slots`, number `since` and on: a program for each and each tile.

    `numbers` are the first index of the block, its end, the index at which its first tile begins, the index of the
    leaf's first gene, the genes of a member, and the address of the first; `settings` are the strength of a change, and
    the bounds: float64. `scratch` is an address; `mothers` and `fathers` are rows of it, as long as the block.
    `aligned` says that all rows begin and end at multiples of 16 bytes.
    """
    child = tl.program_id(1) + since
    real: tl.constexpr = FLOAT64 if dtype == FLOAT64 else FLOAT32
    itemsize: tl.constexpr = 8 if dtype == FLOAT64 else 4 if dtype == FLOAT32 else 2
    begin, end, leaf = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 3)
    start = tl.load(numbers + 2) + tl.program_id(0).to(tl.int64) * tile
    low, high = tl.maximum(begin - start, 0).to(tl.int32), tl.minimum(end - start, tile).to(tl.int32)
    if aligned:
        low, high = tl.multiple_of(low, 16 // itemsize), tl.multiple_of(high, 16 // itemsize)
    place = tl.arange(0, tile)
    mask = (place >= low) & (place < high)
    stride, rows = (end - begin) * itemsize, tl.load(scratch) + (start - begin) * itemsize
    a = load(rows + tl.load(mothers + child) * stride, place, mask, dtype, aligned)
    b = load(rows + tl.load(fathers + child) * stride, place, mask, dtype, aligned)
    seed = keys + 2 * child
    scale, least, most = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    if real == FLOAT32:
        scale, least, most = scale.to(tl.float32), least.to(tl.float32), most.to(tl.float32)
    gene = _crossed(a, b, child, place, start, seed, of_mother, cuts, tl.load(places), cross, points, real, tile)
    if mutate == _NOISE:
        gene = gene + scale * (whole_numbers(start, seed, kind, width, tile).to(gene.dtype) + 0.5)
    elif mutate == _SOME_NOISE or mutate == _SOME_NEW:
        gene = _some_changed(gene, start, seed, scale, tl.load(table), thresholds, mutate, kind, width, real, tile)
    nothing = tl.zeros([tile], gene.dtype)
    gene = _bounded(gene, least + nothing, most + nothing, outside)
    member = tl.load(numbers + 5) + (tl.load(slots + child) * tl.load(numbers + 4) + start - leaf) * itemsize
    store(member, place, gene, mask, dtype, aligned)
