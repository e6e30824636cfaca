"""napo.stats.auroc against scikit-learn, Hanley and McNeil, and hand-worked numbers."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from napo.stats import auroc


def test_auroc_is_sklearns_with_ties():
    rng = np.random.default_rng(0)
    label = rng.random(300) < 0.3
    score = np.round(rng.normal(size=300) + label, 1)  # rounding makes ties
    got = auroc.auroc(score, label, rng)
    assert got.value == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert got.lo < got.value < got.hi and got.over == "rows" and got.n_rows == 300
    again = auroc.auroc(score, label, np.random.default_rng(0)), auroc.auroc(score, label, np.random.default_rng(0))
    assert again[0] == again[1]


def test_auroc_interval_width_agrees_with_hanley_mcneil():
    rng = np.random.default_rng(1)
    positive, negative = rng.normal(1, 1, 100), rng.normal(0, 1, 200)
    got = auroc.auroc(np.r_[positive, negative], np.r_[np.ones(100), np.zeros(200)], rng, resamples=2000)
    a = got.value
    variance = (a * (1 - a) + 99 * (a / (2 - a) - a * a) + 199 * (2 * a * a / (1 + a) - a * a)) / (100 * 200)
    assert (got.hi - got.lo) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.15)


def test_stratified_auroc_does_not_reward_knowing_the_stratum():
    # within each stratum the score is useless (0.5); between them it separates perfectly
    score = np.r_[np.tile([0.0, 1.0], 50), np.tile([10.0, 11.0], 50)]
    label = np.r_[np.tile([0, 0, 0, 0, 0, 0, 0, 0, 1, 1], 10), np.tile([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], 10)]
    strata = np.repeat(["a", "b"], 100)
    rng = np.random.default_rng(0)
    assert auroc.auroc(score, label, rng).value == pytest.approx(0.8)
    assert auroc.auroc(score, label, rng, strata=strata).value == pytest.approx(0.5)


def test_separation_does_not_pretend_to_certainty():
    rng = np.random.default_rng(0)
    few = auroc.auroc([3, 4, 0, 1, 2], [1, 1, 0, 0, 0], rng)
    many = auroc.auroc(np.arange(400), np.arange(400) >= 200, rng)
    assert few.value == many.value == few.hi == 1.0
    assert few.lo < 0.6 and 0.97 < many.lo < 1
    reverse = auroc.auroc([3, 4, 0, 1, 2], [0, 0, 1, 1, 1], rng)
    assert (reverse.lo, reverse.hi) == pytest.approx((0.0, 1 - few.lo), abs=1e-6)
    assert math.isnan(auroc.auroc([1, 2], [1, 1], rng).value)


def test_calibration_error_by_hand():
    """Two bins of two rows: 0.1 against 0, and 0.8 against 0.5."""
    error = auroc.calibration_error([0.1, 0.9, 0.1, 0.7], [False, True, False, False], n_bins=2)
    assert error == pytest.approx((0.1 + 0.3) / 2)
    assert auroc.calibration_error([0.0, 1.0], [False, True]) == 0
