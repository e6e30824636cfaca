"""napo.stats.intervals against hand-worked numbers and SciPy."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from napo.stats import intervals


def runs(values):
    """{(method, base, seed): value} -> frame of runs without flips."""
    rows = [dict(method=m, base=b, seed=s, flip_rate=0.0, value=v) for (m, b, s), v in values.items()]
    return pd.DataFrame(rows)


def test_t_interval_is_scipys():
    values = [0.1, 0.3, 0.2, 0.7]
    expected = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, lo, hi = intervals.t_interval(values)
    assert (mean, lo, hi) == pytest.approx((0.325, expected.low, expected.high), abs=1e-12)
    assert math.isnan(intervals.t_interval([0.4])[1])


def test_seeds_are_averaged_within_bases_before_the_interval():
    # base means 0.2 and 0.4 although base 1 has one run only: mean 0.3, half-width t(.975, 1) * 0.1 = 12.706 * 0.1
    frame = runs({("m", 0, 0): 0.1, ("m", 0, 1): 0.3, ("m", 1, 0): 0.4})
    got = intervals.estimate(frame)
    assert (got.value, got.over, got.n_bases, got.n_seeds) == (pytest.approx(0.3), "bases", 2, 1)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.27062, abs=1e-5)


def test_one_base_gives_an_interval_over_seeds_and_says_so():
    got = intervals.estimate(runs({("m", 7, s): v for s, v in enumerate([0.1, 0.2, 0.3])}))
    assert (got.over, got.n_bases, got.n_seeds) == ("seeds", 1, 3)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (got.lo, got.hi) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    single = intervals.estimate(runs({("m", 7, 0): 0.1}))
    assert single.value == 0.1 and math.isnan(single.lo) and single.n_seeds == 1


def test_mixed_runs_are_refused():
    with pytest.raises(ValueError, match="one method and one flip rate"):
        intervals.estimate(runs({("m", 0, 0): 0.1, ("n", 0, 0): 0.3}))


def test_paired_difference_pairs_seeds_and_drops_unmatched_ones():
    frame = runs({("a", 0, 0): 0.9, ("a", 0, 1): 0.5, ("a", 0, 2): 0.0, ("b", 0, 0): 0.6, ("b", 0, 1): 0.1})
    assert intervals.differences(frame, "a", "b")["value"].tolist() == pytest.approx([0.3, 0.4])
    assert intervals.paired_difference(frame, "a", "b").value == pytest.approx(0.35)
    assert intervals.differences(frame, "a", "missing").empty
    assert math.isnan(intervals.paired_difference(frame, "a", "missing").value)


def test_the_untrained_base_stands_beside_every_seed_and_every_flip_rate():
    frame = runs({("base", 0, 0): 0.2, ("a", 0, 0): 0.5, ("a", 0, 1): 0.3})
    assert intervals.differences(frame, "a", "base")["value"].tolist() == pytest.approx([0.3, 0.1])
    assert intervals.differences(frame, "base", "a")["value"].tolist() == pytest.approx([-0.3, -0.1])
    flipped = pd.concat([frame, frame[frame.method == "a"].assign(flip_rate=0.4, value=0.9)])
    assert intervals.differences(flipped, "a", "base", 0.4)["value"].tolist() == pytest.approx([0.7, 0.7])


def test_tost_agrees_with_the_interval_and_with_scipy():
    values = np.array([0.01, -0.02, 0.015, 0.0, 0.005])
    p = intervals.tost_p(values, 0.05)
    assert p == pytest.approx(scipy_stats.ttest_1samp(values, 0.05, alternative="less").pvalue)
    for margin in (0.01, 0.018, 0.019, 0.03):
        _, lo, hi = intervals.t_interval(values)
        assert (intervals.tost_p(values, margin) < 0.025) == (-margin < lo and hi < margin)
    assert intervals.tost_p([0.2, 0.2], 0.05) == 1.0 and intervals.tost_p([0.0, 0.0], 0.05) == 0.0


def test_rate_has_wilsons_interval():
    got = intervals.rate(8, 10)  # Wilson by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (got.value, got.lo, got.hi) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    assert math.isnan(intervals.rate(0, 0).value)
