"""The noise estimate from raw margins: mixtures whose truth is known, certain rows, swaps, calibration."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from napo import posterior


def mixture(rng, n=600, share=0.3, apart=1.5):
    """(raw_margin, raw_mean_margin, n_tokens, is_noise) of two populations `apart` per token."""
    is_noise = np.arange(n) < round(share * n)
    n_tokens = rng.integers(3, 30, n)
    mean_margin = rng.normal(np.where(is_noise, 0.0, apart), 0.3)
    return mean_margin * n_tokens, mean_margin, n_tokens, is_noise


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_two_populations_are_told_apart_and_counted(rng, share):
    *seen, truth = mixture(rng, share=share)
    found = posterior.estimate(*seen)
    assert found.rate == pytest.approx(share, abs=0.04) and np.isnan(found.lo)
    assert ((found.posterior > 0.5) == truth).mean() > 0.95
    assert posterior.calibration_error(found.posterior, truth) < 0.05


def test_the_rate_has_an_interval_that_holds_the_truth(rng):
    *seen, truth = mixture(rng, n=300)
    found = posterior.estimate(*seen, rng=rng, resamples=40)
    assert found.lo < truth.mean() < found.hi and 0.02 < found.hi - found.lo < 0.3
    assert (found.posterior == posterior.estimate(*seen).posterior).all()


def test_the_chosen_answer_once_more_is_noise_for_certain(rng):
    raw, mean, tokens, _ = mixture(rng)
    raw[[5, 400]], mean[[5, 400]] = 0.0, 0.0
    found = posterior.estimate(raw, mean, tokens).posterior
    assert found[5] == found[400] == 1 and found.min() >= 0


def test_few_rows_stay_undecided():
    found = posterior.estimate([1.0, 0.0, -3.0], [0.1, 0.0, -1.0], [10, 4, 3])
    assert found.posterior.tolist() == [0.5, 1.0, 0.5]


def make_reference(rng, n=200):
    frame = pd.DataFrame({"row_id": [f"r{i}" for i in range(n)]})
    for kind, level in (("chosen", 1.0), ("rejected", 2.0), ("language_biased", 3.0), ("vision_biased", 1.5)):
        frame[f"tokens_{kind}"] = rng.integers(4, 20, n)
        frame[f"logps_{kind}"] = -frame[f"tokens_{kind}"] * rng.normal(level, 0.2, n)
    return frame


def test_rows_are_found_by_their_ids_and_swaps_change_sides(rng):
    frame = make_reference(rng)
    ids = list(frame["row_id"][::-1][:150])
    flipped = np.arange(150) < 45
    table, rates = posterior.of_rows(frame.sample(frac=1, random_state=1), ids, flipped)
    assert table["row_id"].tolist() == ids
    assert rates["language_biased"] == pytest.approx(0.3, abs=0.05)
    assert ((table["posterior_language_biased"] > 0.5) == flipped).mean() > 0.95
    assert rates["language_biased"] == pytest.approx(table["posterior_language_biased"].mean())


def test_labelled_margins_by_hand():
    row = {"logps_chosen": -6.0, "tokens_chosen": 3, "logps_language_biased": -10.0, "tokens_language_biased": 4}
    table = pd.DataFrame([row, row])
    margin, mean_margin, n_tokens = posterior.labelled(table, "language_biased", np.array([False, True]))
    assert margin.tolist() == [4, -4] and mean_margin.tolist() == [0.5, -0.5] and n_tokens.tolist() == [4, 3]


def test_calibration_error_by_hand():
    """Two bins of two rows: 0.1 against 0, and 0.8 against 0.5."""
    error = posterior.calibration_error([0.1, 0.9, 0.1, 0.7], [False, True, False, False], n_bins=2)
    assert error == pytest.approx((0.1 + 0.3) / 2)
    assert posterior.calibration_error([0.0, 1.0], [False, True]) == 0


def test_the_papers_rule_row_by_row():
    psi = np.array([-4.0, 0.0, 2.0])
    np.testing.assert_allclose(posterior.paper_estimate(psi, 0.5), 1 - expit(0.5 * psi))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
