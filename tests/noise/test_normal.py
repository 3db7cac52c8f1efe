"""The numbers that 16 random bits become have the distribution of the normal law."""

from statistics import NormalDist

import numpy as np

from flatstore.noise.normal import DEVIATION, normals

ALL = np.arange(1 << 16)


def test_normal_numbers_have_the_moments_and_the_distribution_of_the_normal_law():
    values, cdf = (normals(ALL) + 0.5) / DEVIATION, NormalDist().cdf
    assert (values == -values[::-1]).all()  # the odd moments are 0
    assert (np.diff(values) >= 0).all()
    assert np.allclose([np.mean(values**k) for k in (2, 4, 6)], [0.9999998, 2.9999997, 14.9934828], rtol=1e-7)
    below = np.array([cdf(value) for value in values])
    assert np.abs(below - (ALL + 0.5) / 2**16).max() < 1.2e-4
    assert np.isclose(values[-1], 4.3959577)


def test_they_are_those_of_a_table_whatever_the_shape_and_dtype_of_the_numbers():
    table = normals(ALL)
    numbers = np.random.default_rng(0).integers(0, 1 << 16, (3, 5, 7))
    for dtype in (np.uint16, np.int32, np.uint32, np.uint64):
        assert normals(numbers.astype(dtype)).tolist() == table[numbers].tolist()


def test_the_square_is_exact_as_a_float32():
    u = ALL - 32768
    square = ((1 << 30) - u * (u + 1)) & -64
    assert (square.astype(np.float32).astype(np.int64) == square).all()
