"""napo.noise.detectors: AUROCs, rates and calibration by hand, over rows and over bases."""

import numpy as np
import pandas as pd
import pytest
from small_report import some_noise

from napo.noise import detectors


@pytest.fixture(scope="module")
def noise():
    return some_noise()


def test_noise_table_by_hand(noise):
    table = detectors.noise_table(noise, np.random.default_rng(0), beta=1.0).set_index(["kind", "detector"])
    raw = table.loc[("language_biased", "raw_margin")]
    assert (raw["noise_rate"], raw["n_rows"]) == (0.25, 60) and raw["auroc"] > 0.95 and raw["over"] == "rows"
    assert raw["within_kinds"] > 0.95
    assert table.loc[("vision_biased", "differs"), "auroc"] == 1.0  # noise = equals the chosen answer, here
    assert table.loc[("vision_biased", "n_tokens"), "auroc"] == 0.5  # all of one length
    margin = table.loc[("language_biased", "margin")]
    assert margin["lo"] < 0.5 < margin["hi"]
    assert np.isnan(margin["calibration"]) and np.isnan(margin["estimated_rate"])
    ours, papers = (table.loc[("language_biased", name)] for name in ("right", "paper_right"))
    assert ours["estimated_rate"] == pytest.approx(0.25) and ours["auroc"] == 1
    assert ours["calibration"] == pytest.approx(0.25 * 0.3 + 0.75 * 0.1, abs=0.03)
    assert papers["auroc"] == table.loc[("language_biased", "mean_margin"), "auroc"]  # one order, as probabilities
    measured = noise[noise["kind"] == "vision_biased"]
    q = 1 / (1 + np.exp(0.01 * measured["margin"]))
    assert table.loc[("vision_biased", "paper_right"), "estimated_rate"] == pytest.approx(q.mean())
    assert detectors.noise_table(noise.assign(part="probe"), np.random.default_rng(0)).empty
    without = detectors.noise_table(noise.drop(columns="posterior"), np.random.default_rng(0))
    assert set(without["detector"]) == set(detectors.NOISE_DETECTORS) - {"right", "paper_right"}


def test_with_several_bases_the_intervals_of_the_noise_are_over_bases(noise):
    """Base 1 lacks five of the noisy rows of base 0; the kinds of question apart, its margins say nothing."""
    other = noise.assign(base=1, raw_margin=0.0).drop(index=noise.index[:5])
    table = detectors.noise_table(pd.concat([noise, other]), np.random.default_rng(0)).set_index(["kind", "detector"])
    raw = table.loc[("language_biased", "raw_margin")]
    assert set(table[["rate_over", "over", "within_over"]].to_numpy().ravel()) == {"bases"}
    assert raw["noise_rate"] == pytest.approx((15 / 60 + 10 / 55) / 2)  # a mean over bases, no pooled rows
    alone = detectors.noise_table(noise, np.random.default_rng(0)).set_index(["kind", "detector"])
    alone = alone.loc[("language_biased", "raw_margin")]
    assert alone["within_over"] == alone["rate_over"] == "rows"
    low, high = 0.5, alone["within_kinds"]
    assert raw["within_kinds"] == pytest.approx((low + high) / 2)
    half = 12.7062 * (high - low) / 2  # t(.975, 1) * sd / sqrt(2)
    assert raw["within_hi"] - raw["within_kinds"] == pytest.approx(half, abs=1e-3)


def test_detectors_are_judged_apart_on_answers_other_than_the_chosen_one(noise):
    """Every second noisy row equals the chosen answer; of the others the margins are made to say nothing."""
    equal = noise["is_noise"].astype(bool) & (np.arange(len(noise)) % 4 < 2)
    frame = noise.assign(equals_chosen=equal, raw_margin=np.where(equal, -9.0, 0.0))
    raw = detectors.noise_table(frame, np.random.default_rng(0)).set_index(["kind", "detector"])
    raw = raw.loc[("language_biased", "raw_margin")]
    assert raw["within_other"] == 0.5 and raw["within_kinds"] > 0.7 and raw["within_other_over"] == "rows"
