"""Centred ranks: fitness by its order alone, in shares that sum to zero."""

import re

import numpy as np
import pytest

from flatstore import es


def test_centred_ranks_are_shares_of_the_order_and_sum_to_zero():
    assert es.centred_ranks([3, 1, 2]).tolist() == [0.5, -0.5, 0]
    assert es.centred_ranks([1, 1, 1, 1]).tolist() == [0, 0, 0, 0]
    assert es.centred_ranks([np.nan, -np.inf, 5, np.inf]).tolist()[2:] == pytest.approx([1 / 6, 0.5])
    ranks = es.centred_ranks(np.random.default_rng(0).integers(0, 5, 100))
    assert abs(ranks.sum()) < 1e-12
    assert es.centred_ranks([7.0]).tolist() == [0]
    with pytest.raises(
        ValueError, match="expected fitness with a number in it for the members 0 .. 1, got only NaN; fix"
    ):
        es.centred_ranks([np.nan, np.nan])
    for wrong, got in ((["a"], "str32[1]"), ([[1.0]], "float64[1,1]"), ([1j], "complex128[1]"), ([], "float64[0]")):
        words = f"expected fitness of shape (1,), real, got {got}; fix: return one real number for each member"
        with pytest.raises(ValueError, match=re.escape(words)):
            es.centred_ranks(wrong)


def test_nan_ranks_below_minus_infinity():
    assert es.centred_ranks([np.nan, -np.inf, 1.0]).tolist() == [-0.5, 0.0, 0.5]
    assert es.centred_ranks([np.nan, 2.0, np.nan, 1.0]).tolist() == pytest.approx([-1 / 3, 0.5, -1 / 3, 1 / 6])
