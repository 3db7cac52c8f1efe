"""What became worse between two commits: bytes by a tenth, ratios by a fifth, of ours alone."""

import pytest

from benchmarks.regressions import PAGES, regressions

BENCHMARKS = {
    "a.Copies.track_bytes_copied": {"unit": "bytes", "param_names": ["peer"]},
    "a.Peak.track_peak_memory": {"unit": "bytes", "param_names": ["peer"]},
    "a.Beside.track_ratio": {"unit": "times as long", "param_names": []},
    "a.Lends.time_calls": {"unit": "seconds", "param_names": ["peer"]},
}
COPIES, PEAK, RATIO, TIME = BENCHMARKS


@pytest.mark.parametrize(
    ("key", "was", "now", "worse"),
    [
        ((COPIES, "'flatstore'"), 0, 0, False),
        ((COPIES, "'flatstore'"), 0, 64, True),
        ((COPIES, "'flatstore, es'"), 100, 109, False),
        ((COPIES, "'flatstore, es'"), 100, 111, True),
        ((COPIES, "'numpy'"), 100, 1000, False),
        ((PEAK, "'flatstore'"), 0, PAGES, False),
        ((PEAK, "'flatstore'"), 100 * PAGES, 112 * PAGES, True),
        ((RATIO,), 1.0, 1.19, False),
        ((RATIO,), 1.0, 1.21, True),
        ((TIME, "'flatstore'"), 1.0, 9.0, False),
        ((COPIES, "'flatstore'"), 100, None, True),
    ],
)
def test_bytes_and_ratios_of_ours_may_not_grow_by_much(key, was, now, worse):
    found = [*regressions(BENCHMARKS, {key: was}, {} if now is None else {key: now})]
    assert len(found) == worse
    assert all(key[0] in line and "before" in line for line in found)
