"""What is drawn is normal, or fair signs, and knows nothing of its neighbours, of other seeds or of other leaves.

Every check takes a draw function `(keys, start, stop) -> (len(keys), stop - start)`, so that bad generators run through
the code that the good ones pass. Seeds are fixed. Each threshold follows from the law of its statistic: an ideal
generator misses it with a chance of `CHANCE`, and any of the five hundred with one of 1 in 2,000.
"""

import math
from dataclasses import replace
from functools import partial
from statistics import NormalDist

import numpy as np
import pytest

import flatstore as fs
from flatstore.noise.kinds import CROSSOVER, MUTATION, NORMAL, RADEMACHER, ROUNDING, SPARSE
from flatstore.noise.philox import numbers

CHANCE = 1e-6
KINDS = NORMAL, RADEMACHER, CROSSOVER, SPARSE, ROUNDING, MUTATION
ONE, MANY = np.array([7], np.uint64), np.arange(1 << 17, dtype=np.uint64)
BIT = np.append(np.uint64(0), np.uint64(1) << np.arange(64, dtype=np.uint64))
SEEDS = {
    "consecutive": MANY[:256],
    "high half": MANY[:256] << np.uint64(32),
    "one bit apart": np.concatenate([BIT, fs.seeds(7, 1) ^ BIT]),
    "hashed": np.concatenate([fs.seeds((3, generation), 16) for generation in range(16)]),
    # By what Philox adds to the halves of its key in each round.
    "rounds apart": MANY[:256] * 0x9E3779B9 % 2**32 | (MANY[:256] * 0xBB67AE85 % 2**32) << 32,
}
FAR = 2**35 - 2**19  # in the middle of 2 ** 20 indices from here on, the count of blocks comes to need a 33rd bit
TABLE, SIGNS = fs.Normal(1.0).values, fs.Rademacher(1.0).values
DISTINCT, TIMES = np.unique(TABLE, return_counts=True)
LEAVES = fs.Layout.from_tree(list(np.zeros((256, 8209), "f4"))).homes
COARSE, FINE = fs.Normal(16 * fs.Normal(1.0).step), fs.Normal(2.0)  # 16 steps and a million
normal, signs, raw = fs.Normal(1.0).draw, fs.Rademacher(1.0).draw, partial(numbers, NORMAL, 16)


def magnitude(keys, start, stop):
    """Whether a draw is among the larger half in magnitude, as a sign: what a correlation of values cannot see."""
    return np.where(np.abs(normal(keys, start, stop)) > NormalDist().inv_cdf(0.75), SIGNS[1], SIGNS[0])


def bits(keys, start, stop, draw=raw):
    """The 16 bits of each number that a normal draw is made of, as signs; start and stop count bits."""
    code = draw(keys, start // 16, stop // 16)
    return SIGNS.take(np.unpackbits(code.astype("<u2").view(np.uint8), axis=1, bitorder="little"))


DRAWS = {"normal": normal, "magnitude": magnitude, "bits": bits, "signs": signs}


def deltas(keys, start, stop):
    """What is added at 16 steps, leaf by leaf, as a draw of variance 1 and a little more."""
    ranges = [(leaf, max(start - leaf.index, 0), min(stop - leaf.index, leaf.size)) for leaf in LEAVES]
    return np.concatenate([COARSE.delta(leaf, keys, i, j) for leaf, i, j in ranges if i < j], axis=1) / COARSE.scale


def of_leaf(keys, start, stop, noise=FINE, index=None):
    """Leaves in the place of seeds: what one seed adds to each. With an index: as if all leaves began there."""
    leaves = [replace(LEAVES[key], index=LEAVES[key].index if index is None else index) for key in keys.tolist()]
    return np.concatenate([noise.delta(leaf, ONE, start, stop) for leaf in leaves]) / noise.scale


def of_window(keys, start, stop, width=64):
    """Places far apart, at multiples of 2 ** 13, in the place of seeds; with indices of so many bits."""
    first = [key * 2**13 % 2**width for key in keys.tolist()]
    return np.concatenate([normal(ONE, i + start, i + stop) for i in first])


def codes(x):
    """The number of each normal draw among the distinct ones; of signs, 16 in a row are one number."""
    if np.abs(x).max() == 1:
        return np.packbits(x < 0, axis=1, bitorder="little").view("<u2")
    return np.searchsorted(DISTINCT, x).astype(np.uint16)


def small(z, name):
    """Standard normal deviates: none is larger than the largest of so many should be (two sides, Bonferroni)."""
    largest, bound = np.abs(z).max(), -NormalDist().inv_cdf(CHANCE / 2 / np.size(z))
    assert largest < bound, f"{name}: {largest:.1f} standard deviations, expected < {bound:.1f}"


def chi_square(square, freedom, name):
    """Neither too large nor too small: its cube root is nearly normal (Wilson and Hilferty)."""
    variance = 2 / (9 * freedom)
    small(((square / freedom) ** (1 / 3) - (1 - variance)) / math.sqrt(variance), f"{name}, chi-square")


def white(z, name):
    """Uncorrelated standard normal deviates: none is large, and the sum of their squares is as it should be."""
    small(z, name)
    chi_square(np.square(z, dtype=np.float64).sum(), np.size(z), name)


def unit_rows(x):
    """Rows of mean square 1."""
    return (x / np.sqrt(np.square(x, dtype=np.float64).mean(axis=1, keepdims=True))).astype(np.float32)


def samples(draw, size=1 << 21):
    """Many numbers of one seed, and sixteen of each of many seeds."""
    return {"one seed": draw(ONE, 0, size), "many seeds": draw(MANY[: size // 16], 0, 16)}


def has_moments_of(values, draw):
    """The mean of n powers x ** k is normal, of variance (E x ** 2k - (E x ** k) ** 2) / n."""
    for name, x in samples(draw).items():
        x, law, power = x.ravel().astype(np.float64), values.astype(np.float64), 1.0
        for k in range(1, 7):
            power = power * x
            mean, error = (law**k).mean(), math.sqrt((law**k).var() / x.size)
            small((power.mean() - mean) / max(error, 1e-9), f"{name}, moment {k}")  # an even power of a sign is 1


def has_distribution_of(values, draw):
    """Kolmogorov and Smirnov, 10⁶ draws: a distance of d or more has a chance of at most 2 exp(-2 n d ** 2).

    That is the tail of the limit law, and a bound for every n, for discrete laws too (Massart).
    """
    values = np.sort(values)
    for name, x in samples(draw).items():
        value, count = np.unique(x.ravel()[: 10**6], return_counts=True)
        to = np.cumsum(count) / 10**6
        right = to - np.searchsorted(values, value, side="right") / values.size
        left = to - count / 10**6 - np.searchsorted(values, value, side="left") / values.size
        distance = np.abs([left, right]).max()
        assert distance < math.sqrt(math.log(2 / CHANCE) / 2 / 10**6), f"{name}, Kolmogorov-Smirnov {distance}"


def draws_every_number_as_often(draw):
    """Chi-square over the 65,536 numbers of 16 bits: each is expected 32 times (16 signs in a row: twice).

    Some normal draws are those of several numbers.
    """
    for name, x in samples(draw).items():
        times = np.ones(1 << 16) if np.abs(x).max() == 1 else TIMES
        count = np.bincount(codes(x).ravel(), minlength=times.size)
        expected = times * count.sum() / 2**16
        chi_square((np.square(count - expected) / expected).sum(), count.size - 1, f"{name}, frequencies")


def has_independent_places(draw):
    """Places in a block of words and in the next ones: each has mean 0, and no two are correlated."""
    x = draw(ONE, 0, 1 << 20)
    for width in (16, 256):
        places = unit_rows(x.reshape(-1, width).T)
        root = math.sqrt(places.shape[1])
        white(places.sum(axis=1) / root, f"mean of each of {width} places")
        white((places @ places.T)[np.triu_indices(width, 1)] / root, f"correlation of {width} places")


def has_no_autocorrelation(draw, start=0):
    """A sum of n - k products of independent numbers of variance 1, for each lag k, by way of the spectrum."""
    (x,), n, lags = unit_rows(draw(ONE, start, start + (1 << 20))), 1 << 20, np.arange(1, 4097)
    white(np.fft.irfft(np.abs(np.fft.rfft(x, 2 * n)) ** 2)[lags] / np.sqrt(n - lags), "lag")


def has_independent_rows(draw, keys):
    """Rows of different seeds: no mean, no correlation of any two at an index or near, no numbers in common."""
    drawn = draw(keys, 0, 1 << 12)
    x, (rows, n) = unit_rows(drawn), drawn.shape
    white(x.sum(axis=1) / math.sqrt(n), "sums of rows")
    white(x.sum(axis=0) / math.sqrt(rows), "sums over rows")
    pairs = x @ x.T / math.sqrt(n)
    white(pairs[np.triu_indices(rows, 1)], "correlation of rows")
    white([np.trace(pairs, k) / math.sqrt(rows - k) for k in range(1, rows)], "correlation by distance of rows")
    for lag in (1, 8, 128):
        white(x[:, lag:] @ x[:, :-lag].T / math.sqrt(n - lag), f"correlation of rows at lag {lag}")
    spectrum, lags = np.fft.rfft(x, 2 * n), np.arange(-n // 2, n // 2)
    every = np.fft.irfft(spectrum[1:] * spectrum[:-1].conj())[:, lags] / np.sqrt(n - np.abs(lags))
    small(every, "correlation of neighbouring rows at any lag")
    # Among 2 ** 18 numbers of 64 bits, two are equal with a chance of 2 ** -29.
    chunks = np.sort(np.ascontiguousarray(codes(drawn)).view(np.uint64).ravel())
    assert (chunks[1:] != chunks[:-1]).all(), "numbers in common"


def rounds_to_the_nearest(steps, scale):
    """As many steps as are nearest to a scale, which is known to 15 bits; the opposite draw has the opposite number."""
    exact = scale * TABLE.astype(np.float64)
    assert (np.abs(steps - exact) <= 0.5 + 2.0**-15 * np.abs(exact) + 1e-6 * scale).all(), "error"
    assert (steps == -steps[::-1]).all(), "not odd"


LAWS = {
    "normal": (normal, TABLE),
    "signs": (signs, SIGNS),
    "deltas": (deltas, COARSE.factor(COARSE.scale).steps(COARSE.whole) / 16),
}


@pytest.mark.parametrize(("draw", "values"), LAWS.values(), ids=LAWS)
def test_draws_have_six_moments_and_the_distribution_of_their_values(draw, values):
    has_moments_of(values, draw)
    has_distribution_of(values, draw)


@pytest.mark.parametrize("scale", [16, 17.3, 20, 31.7, 64, 100, 333.3, 1000.7, 7372, 7373, 1e5, 3.8e6])
def test_steps_are_the_nearest_whole_numbers_and_opposite_draws_add_the_opposite(scale):
    factor = fs.Normal(1.0).factor(scale * COARSE.step)
    rounds_to_the_nearest(factor.steps(fs.Normal(1.0).whole), scale)
    ends = [int(end) * factor.multiplier + factor.offset for end in fs.Normal(1.0).whole[[0, -1]]]
    assert -(2**31) <= min(ends) < max(ends) < 2**31
    assert fs.Rademacher(1.0).factor(scale * COARSE.step).steps(np.array([0, -1])).tolist() == [
        round(scale),
        -round(scale),
    ]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_numbers_are_as_likely_and_neighbours_in_a_block_and_between_blocks_independent(draw):
    draws_every_number_as_often(draw)
    has_independent_places(draw)
    for start in (0, FAR):
        has_no_autocorrelation(draw, start)


@pytest.mark.parametrize("keys", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_seeds_are_independent(draw, keys):
    has_independent_rows(draw, keys)


@pytest.mark.parametrize("noise", [FINE, fs.Rademacher(2.0)], ids=["normal", "signs"])
def test_leaves_of_one_shape_draw_numbers_of_their_own(noise):
    has_independent_rows(partial(of_leaf, noise=noise), MANY[:256])


def test_places_far_apart_and_kinds_of_draw_are_independent():
    has_independent_rows(of_window, MANY[:256])
    has_independent_rows(of_window, BIT[:50])
    has_independent_rows(lambda kinds, *at: TABLE[np.vstack([numbers(k, 16, ONE, *at) for k in kinds])], KINDS)


def philox(rounds, keys, start, stop):
    """The numbers that the normal draw of whole blocks is made of, in as many rounds."""
    block, half, mask = np.arange(start // 8, stop // 8, dtype=np.uint64), np.uint64(32), np.uint64(2**32 - 1)
    a, b, c, d = block & mask, block >> half, np.uint64(NORMAL), np.uint64(0)
    low, high = keys[:, None] & mask, keys[:, None] >> half
    for _ in range(rounds):
        one, two = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = two >> half ^ b ^ low, two & mask, one >> half ^ d ^ high, one & mask
        low, high = low + np.uint64(0x9E3779B9) & mask, high + np.uint64(0xBB67AE85) & mask
    return np.stack([a, b, c, d], axis=-1).astype("<u4").view("<u2").reshape(len(keys), -1)


def normal_of(rounds, keys, start, stop):
    """The normal draw of whole blocks, in as many rounds."""
    return TABLE.take(philox(rounds, keys, start, stop))


def congruential(shift, keys, start, stop):
    """16 of the 32 bits of a linear congruential generator that begins with the seed."""
    powers = np.multiply.accumulate(np.full(stop, 1664525, np.uint32))
    sums = np.cumsum(np.append(np.uint32(1), powers[:-1]), dtype=np.uint32) * np.uint32(1013904223)
    state = powers * keys[:, None].astype(np.uint32) + sums
    return TABLE.take((state >> np.uint32(shift)).astype(np.uint16)[:, start:])


def of_one_stream(index, keys, start, stop):
    """The numbers of one seed, elsewhere."""
    at = index(np.arange(start, stop), keys[:, None].astype(np.int64))
    return normal(ONE, int(at.min()), int(at.max()) + 1)[0][at - at.min()]


def uniforms(n, keys, start, stop):
    """The sum of n uniform numbers, as a draw of variance 1."""
    total = sum(numbers(kind, 16, keys, start, stop) / np.float32(65536) for kind in range(n))
    return (total - n / 2) * math.sqrt(12 / n)


moments, distribution = partial(has_moments_of, TABLE), partial(has_distribution_of, TABLE)
seeds, high, windows = (partial(has_independent_rows, keys=k) for k in (MANY[:256], SEEDS["high half"], BIT[:50]))
twice = partial(of_one_stream, lambda i, seed: (i - i % 8 + i % 4)[None])
coarse = partial(of_one_stream, lambda i, seed: i.astype(np.float32).astype(np.int64)[None])
places = has_independent_places
BAD = [
    (partial(has_moments_of, SIGNS), lambda *at: SIGNS.take(numbers(RADEMACHER, 8, *at) >= 127), "moment 1"),
    (moments, partial(uniforms, 12), "moment 4"),
    (distribution, partial(uniforms, 4), "Kolmogorov"),
    (draws_every_number_as_often, partial(congruential, 0), "frequencies"),  # each exactly as often
    (seeds, partial(congruential, 16), "sums over rows"),
    (places, twice, "correlation of 16 places"),
    (partial(has_no_autocorrelation, start=FAR), coarse, "lag"),
    (seeds, partial(of_one_stream, lambda i, seed: i ^ 8 * seed), "sums of rows"),
    (seeds, partial(of_one_stream, lambda i, seed: i + seed), "sums of rows"),
    (seeds, partial(of_one_stream, lambda i, seed: i + 4096 * (seed % 255)), "correlation of rows"),
    (high, lambda keys, *at: normal(keys & 2**32 - 1, *at), "sums of rows"),
    (windows, partial(of_window, width=32), "sums over rows"),
    (seeds, partial(of_leaf, index=0), "sums of rows"),
    *[(check, partial(normal_of, 2), "deviations|Kolmogorov") for check in (moments, distribution, places, seeds)],
    (has_no_autocorrelation, partial(normal_of, 4), "lag"),
    (places, partial(bits, draw=partial(philox, 5)), "correlation of 256 places"),
    (high, partial(normal_of, 5), "numbers in common"),
]


@pytest.mark.parametrize(("check", "draw", "found"), BAD)
def test_a_bad_generator_is_found_out(check, draw, found):
    with pytest.raises(AssertionError, match=found):
        check(draw)


def test_what_makes_the_bad_generators_bad_is_what_they_leave_out():
    keys = SEEDS["one bit apart"]
    assert (normal_of(7, keys, 0, 256) == normal(keys, 0, 256)).all()
    with pytest.raises(AssertionError, match="error"):
        rounds_to_the_nearest(np.trunc(16 * TABLE), 16)
    with pytest.raises(AssertionError, match="not odd"):
        rounds_to_the_nearest(fs.Normal(1.0).whole.astype(int), 3686)  # rounded down from half-way
